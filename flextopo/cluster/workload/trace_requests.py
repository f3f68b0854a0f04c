"""Logs of requests to language models: when each came, and its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import cast

import numpy as np

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.workload.online_demand import STEP_S
from flextopo.cluster.workload.trace_files import stem
from flextopo.cluster.workload.trace_json import JsonTrace
from flextopo.cluster.workload.trace_rates import (
    DAY_S,
    MAX_CELLS,
    MAX_TIME_S,
    Floats,
    RateWindows,
    windows_of_requests,
)
from flextopo.cluster.workload.trace_tables import TraceTable
from flextopo.cluster.workload.trace_times import TIME, seconds_of_times

MAX_TOKENS = 1e9
MOONCAKE = ("timestamp", "input_length", "output_length")
AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


@dataclass(frozen=True)
class RequestLog:
    """Requests of one service, one row each; N rows in the order of the file.

    Attributes:
        table: whose rows they are.
        name: of the service.
        times_s: (N,) float64 s from t_s = 0.
        input_tokens: (N,) float64, 0 or more.
        output_tokens: (N,) float64, 0 or more.
        since: date whose midnight is t_s = 0; None = the log tells none.
    """

    table: TraceTable
    name: str
    times_s: Floats
    input_tokens: Floats
    output_tokens: Floats
    since: date | None = None

    @property
    def tokens(self) -> Floats:
        """Tokens in and out of each request, (N,) float64."""
        return self.input_tokens + self.output_tokens

    def windows(self) -> RateWindows:
        """Return requests a second in 10-min windows.

        Raises:
            WorkloadError: the log spans too much.
        """
        # A clock with dates did not begin with the log, as that of t_s = 0 may have.
        begin = float(np.floor(self.times_s.min())) if self.since else 0.0
        covered = (begin, float(self.times_s.max()) + 1)
        ones = np.ones(len(self.times_s))
        found = windows_of_requests(self.table, self.name, self.times_s, ones, covered)
        return replace(found, since=self.since)

    def peak_tokens_per_s(self) -> float:
        """Return the most tokens a second, in and out, of a 10-min window."""
        step = (self.times_s // STEP_S).astype(np.int64)
        counts = np.bincount(step - step.min(), self.tokens)
        requests = np.bincount(step - step.min())
        rates = self.windows().rates[0]
        # A window that is covered in part has the rate of that part.
        return float((rates * counts / np.maximum(requests, 1)).max())


def read_requests(table: TraceTable) -> RequestLog:
    """Read t_s,input_tokens,output_tokens: one row a request, t_s = 0 at 00:00 or at the beginning.

    Raises:
        WorkloadError: a cell is illegal.
    """
    times = table.numbers("t_s", 0, MAX_TIME_S)
    return RequestLog(
        table,
        stem(table.path),
        times,
        table.numbers("input_tokens", 0, MAX_TOKENS),
        table.numbers("output_tokens", 0, MAX_TOKENS),
    )


def read_azure(table: TraceTable) -> RequestLog:
    """Read Azure's LLM inference traces: TIMESTAMP,ContextTokens,GeneratedTokens.

    A part of a file, which has no line of names, is read, too: the weeks of 2024 are larger than what
    is read at once.

    Raises:
        WorkloadError: a cell is illegal.

    References:
        Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md (`2023-11-16 18:17:03.9799600`, no
        offset given) and AzureLLMInferenceDataset2024.md (`2024-05-10 00:00:00.009930+00:00`; whole
        seconds have no fraction).
    """
    name, inputs, outputs = AZURE
    times, since = seconds_of_times(table.columns[name], table.fail, name)
    return RequestLog(
        table,
        stem(table.path),
        times,
        table.numbers(inputs, 0, MAX_TOKENS),
        table.numbers(outputs, 0, MAX_TOKENS),
        since,
    )


def is_azure(row: Sequence[str]) -> bool:
    """Say whether three cells are a row of Azure's traces: a time in the first."""
    return TIME.fullmatch(row[0]) is not None


def read_mooncake(trace: JsonTrace) -> RequestLog:
    """Read Mooncake's traces: a line each of timestamp (ms), input_length, output_length.

    Raises:
        WorkloadError: a line is illegal.

    References:
        kvcache-ai/Mooncake, FAST25-release/traces; milliseconds from the beginning of the trace, whose
        hour is not told; hash_ids are left out.
    """
    table = trace.table(MOONCAKE)
    clock, inputs, outputs = MOONCAKE
    return RequestLog(
        table,
        stem(table.path),
        table.numbers(clock, 0, MAX_TIME_S * 1000) / 1000,
        table.numbers(inputs, 0, MAX_TOKENS),
        table.numbers(outputs, 0, MAX_TOKENS),
    )


def join_logs(logs: Sequence[RequestLog], name: str) -> RequestLog:
    """Return the requests of one service that several files tell of.

    Raises:
        WorkloadError: some files have dates and others none.
    """
    dates = {log.since for log in logs}
    if None in dates and len(dates) > 1:
        without = next(log.table.path for log in logs if log.since is None)
        raise WorkloadError(f"{without}: times without dates beside others with; legal: all alike")
    since = min(cast("set[date]", dates)) if None not in dates else None
    shift = [float((log.since - since).days * DAY_S if since and log.since else 0) for log in logs]
    times = np.concatenate([log.times_s + s for log, s in zip(logs, shift, strict=True)])
    if float(np.ptp(times)) >= MAX_CELLS * STEP_S:
        raise WorkloadError(
            f"service {name!r} spans {np.ptp(times):.4g} s; legal: {MAX_CELLS * STEP_S} at most"
        )
    return RequestLog(
        logs[0].table,
        name,
        times,
        np.concatenate([log.input_tokens for log in logs]),
        np.concatenate([log.output_tokens for log in logs]),
        since,
    )
