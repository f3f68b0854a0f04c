"""Request rates of services in windows of ten minutes, and what makes them of recorded demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import WorkloadError
from flextopo.cluster.workload.online_demand import STEP_S
from flextopo.cluster.workload.trace_files import stem
from flextopo.cluster.workload.trace_tables import TraceTable

DAY_S = 86400
DAY_STEPS = DAY_S // STEP_S
MAX_TIME_S = 1e11
MAX_RATE = 1e12
MAX_CELLS = 10**7
"""Windows of all services of a trace, gaps included: 190 years of one. A damaged time asks for no more memory."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ServiceRates:
    """Request rates of services in 10-min windows.

    Attributes:
        names: S names, sorted.
        rates: (S, T) float64, requests/s, 0 or more; gaps are filled.
        aligned: column 0 is 00:00 and T is whole days; False for traces under a day.
        source: file name.
        notes: what the reader changed, "" = nothing.
        first: window of column 0, counted from t_s = 0 of the trace.
    """

    names: tuple[str, ...]
    rates: Floats
    aligned: bool
    source: str
    notes: str = ""
    first: int = 0


@dataclass(frozen=True)
class RateWindows:
    """Request rates as recorded: nothing cut, no gap filled.

    Attributes:
        path: of the trace, or of the first of several.
        names: S names, sorted.
        rates: (S, T) float64, requests/s, 0 or more; NaN = a gap.
        first: window of column 0, counted from t_s = 0.
        since: date whose midnight is t_s = 0; None = the trace tells none.
    """

    path: Path
    names: tuple[str, ...]
    rates: Floats
    first: int
    since: date | None = None

    def filled(self) -> ServiceRates:
        """Cut to whole days where there is one, and fill the gaps.

        Raises:
            WorkloadError: no window has a rate.
        """
        begin = -(-self.first // DAY_STEPS) * DAY_STEPS - self.first
        end = (self.first + self.rates.shape[1]) // DAY_STEPS * DAY_STEPS - self.first
        aligned = end > begin
        rates = self.rates[:, begin:end] if aligned else self.rates
        known = ~np.isnan(rates)
        empty: npt.NDArray[np.bool_] = np.logical_not(known.any(axis=1))
        if empty.all():
            raise WorkloadError(f"{self.path}: no window with a rate; legal: one at least")
        kept = [name for name, bad in zip(self.names, empty.tolist(), strict=True) if not bad]
        filled, known = rates[~empty], known[~empty]
        columns = np.arange(filled.shape[1])
        for row, mask in zip(filled, known, strict=True):
            row[~mask] = np.interp(columns[~mask], columns[mask], row[mask])
        cut = self.rates.shape[1] - rates.shape[1]
        counts = (
            (int((~known).sum()), "gaps of 10 min interpolated"),
            (int(empty.sum()), "services without a rate left out"),
            (cut, "windows of 10 min of incomplete days cut"),
        )
        notes = [f"{count} {what}" for count, what in counts if count]
        notes += [] if aligned else ["shorter than a day, so not aligned to the hour of day"]
        notes += [f"day 0 is {self.since}"] if self.since else []
        first = self.first + (begin if aligned else 0)
        return ServiceRates(tuple(kept), filled, aligned, self.path.name, ", ".join(notes), first)


def windows_of_rates(
    table: TraceTable, services: tuple[Sequence[str], npt.NDArray[np.int64]], rates: Floats
) -> RateWindows:
    """Return 10-min means of rates; finer windows are averaged.

    Args:
        table: with the column `t_s`.
        services: names, and (N,) int64 which each row is of.
        rates: (N,) float64 requests/s; NaN = a gap.

    Raises:
        WorkloadError: a time is illegal, or a service has it twice, or the trace spans too much.
    """
    names, service = services
    times = table.numbers("t_s", 0, MAX_TIME_S)
    order = np.lexsort((times, service))
    twice = (np.diff(times[order]) == 0) & (np.diff(service[order]) == 0)
    if twice.any():
        row = int(order[np.argmax(twice) + 1])
        name = names[int(service[row])]
        table.fail(row, f"t_s = {times[row]:.10g} of {name!r} twice", "once for each service")
    step = (times // STEP_S).astype(np.int64)
    first = int(step.min())
    width = int(step.max()) - first + 1
    if width * len(names) > MAX_CELLS:
        table.fail(
            int(step.argmax()),
            f"t_s spans {width} steps of 10 min for {len(names)} services",
            f"{MAX_CELLS} cells at most",
        )
    known = ~np.isnan(rates)
    cell = service[known] * width + step[known] - first
    size = width * len(names)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(cell, rates[known], size) / np.bincount(cell, minlength=size)
    return RateWindows(table.path, tuple(names), mean.reshape(len(names), width), first)


def read_service_rates(table: TraceTable) -> RateWindows:
    """Read service,t_s,rate_rps: what users write; an empty rate is a gap.

    Raises:
        WorkloadError: a cell is illegal.
    """
    rates = table.numbers("rate_rps", 0, MAX_RATE, empty=np.nan)
    return windows_of_rates(table, table.names("service"), rates)


def read_model_rates(table: TraceTable) -> RateWindows:
    """Read model,t_s,rate_rps,valid: totals of ServeGen's models; valid = 0 is a gap.

    Raises:
        WorkloadError: a cell is illegal.
    """
    rates = table.numbers("rate_rps", 0, MAX_RATE, empty=np.nan)
    rates[table.numbers("valid", 0, 1) == 0] = np.nan
    return windows_of_rates(table, table.names("model"), rates)


def read_servegen(table: TraceTable) -> RateWindows:
    """Read a client of ServeGen: t_s,rate_rps,cv,pattern,shape,scale, without a line of names.

    The service is called by the file: `m-large/chunk-3-trace.csv` is `m-large/3`.

    Raises:
        WorkloadError: a cell is illegal.

    References:
        alibaba/ServeGen, data/*/*/chunk-*-trace.csv and servegen/clientpool.py: seconds from the
        first midnight, local; windows without a request have rate 0.
    """
    rates = table.numbers("rate_rps", 0, MAX_RATE)
    name = stem(table.path)
    client = name.removeprefix("chunk-").removesuffix("-trace")
    if client.isdecimal():
        name = f"{table.path.resolve().parent.name}/{client}"
    return windows_of_rates(table, ((name,), np.zeros(len(table), np.int64)), rates)


def is_servegen(row: Sequence[str]) -> bool:
    """Say whether six cells are of ServeGen: a family of arrivals, or none, in the fourth."""
    return row[0].strip().isdecimal() and row[3].strip() in ("", "Gamma", "Weibull")


def read_minutes(table: TraceTable) -> RateWindows:
    """Read minute,requests: one service, requests of each minute.

    Raises:
        WorkloadError: a cell is illegal.
    """
    minute = np.floor(table.numbers("minute", 0, MAX_TIME_S / 60)) * 60
    requests = table.numbers("requests", 0, MAX_RATE)
    values, counts = np.unique(minute, return_counts=True)
    if counts.max() > 1:
        again = np.flatnonzero(minute == values[counts.argmax()])[1]
        table.fail(int(again), f"minute = {minute[again] / 60:g} twice", "each minute once")
    covered = (0.0, float(minute.max()) + 60)
    return windows_of_requests(table, stem(table.path), minute, requests, covered)


def windows_of_requests(
    table: TraceTable, name: str, times: Floats, requests: Floats, covered: tuple[float, float]
) -> RateWindows:
    """Count requests into 10-min rates; the first and the last window count as far as covered.

    Args:
        table: whose rows they are.
        name: of the service.
        times: (N,) float64 s.
        requests: (N,) float64 at these times.
        covered: from and until when requests were recorded, s.

    Raises:
        WorkloadError: the trace spans too much.
    """
    step = (times // STEP_S).astype(np.int64)
    first, last = int(step.min()), int(step.max())
    if last - first >= MAX_CELLS:
        table.fail(int(step.argmax()), f"t_s spans {last - first} steps", f"{MAX_CELLS} at most")
    counts = np.bincount(step - first, requests)
    edges = np.clip(np.arange(first, last + 2) * STEP_S, *covered)
    # Below a minute the rate of a window would be a guess from a handful of requests.
    rates = counts / np.clip(np.diff(edges), 60.0, STEP_S)
    return RateWindows(table.path, (name,), rates[None], first)


def join_windows(parts: Sequence[RateWindows]) -> RateWindows:
    """Put the services of several traces side by side; what one does not cover is a gap.

    Traces with dates are put on the clock of the earliest; the others keep theirs.

    Raises:
        WorkloadError: two have a service of the same name, or together they span too much.
    """
    dates = [part.since for part in parts if part.since]
    since = min(dates, default=None)
    moved = [
        replace(part, first=part.first + (part.since - since).days * DAY_STEPS)
        if since and part.since
        else part
        for part in parts
    ]
    names = [name for part in parts for name in part.names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        files = ", ".join(part.path.name for part in parts if twice[0] in part.names)
        raise WorkloadError(f"service {twice[0]!r} in {files}; legal: each service in one file")
    first = min(part.first for part in moved)
    width = max(part.first + part.rates.shape[1] for part in moved) - first
    if width * len(names) > MAX_CELLS:
        raise WorkloadError(
            f"{len(names)} services over {width} steps of 10 min; legal: {MAX_CELLS} cells at most"
        )
    rates = np.full((len(names), width), np.nan)
    row = 0
    for part in moved:
        at = part.first - first
        rates[row : row + len(part.names), at : at + part.rates.shape[1]] = part.rates
        row += len(part.names)
    order = np.argsort(np.array(names, object), kind="stable")
    ordered = tuple(names[i] for i in order.tolist())
    return RateWindows(parts[0].path, ordered, rates[order], first, since)
