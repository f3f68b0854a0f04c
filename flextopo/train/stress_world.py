"""Perturbations of what happens: the same day with a server less, or one that is claimed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.state.schema import POD_DTYPE, blank
from flextopo.cluster.topology.model import Fleet
from flextopo.cluster.workload.tape import ONLINE_PRIORITY, Tape

CLAIM_S = 4 * 3600
"""How long a claimed server is gone: an assumption, a repair within half a shift."""


def without_a_server(tape: Tape, fleet: Fleet, seed: int) -> tuple[Tape, Fleet]:
    """Return the day on a cluster without its last server.

    Raises:
        FlextopoError: there is one server only.
    """
    if fleet.num_nodes < 2:
        raise FlextopoError("perturbation 'server-missing' of 1 server; legal: 2 or more")
    return tape, Fleet(fleet.models, fleet.node_model[:-1])


def with_a_claim(tape: Tape, fleet: Fleet, seed: int) -> tuple[Tape, Fleet]:
    """Return the day with a pod of a whole server's GPUs, for which all but online pods may go.

    It arrives at a random second, stays for `CLAIM_S` or half of the day if that is less, outranks
    every other pod, asks for no alignment and cannot be evicted. It is a pod, not a broken server: the
    scheduler chooses the server, and the pod's waiting counts in the loss.
    """
    held_s = min(CLAIM_S, tape.end_s // 2)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    pod = blank(1, POD_DTYPE)
    pod["arrive_s"] = rng.integers(0, tape.end_s - held_s)
    pod["depart_s"] = pod["arrive_s"] + held_s
    pod["gpus"] = fleet.gpus_per_server
    pod["cores"] = fleet.gpus_per_server * fleet.cores_per_gpu
    pod["priority"] = ONLINE_PRIORITY + 1
    pod["online"] = 1
    # Before all that arrive in that second, so that no PodGroup is torn apart.
    at = int(np.searchsorted(tape.pods["arrive_s"], pod["arrive_s"][0]))
    pods = np.concatenate((tape.pods[:at], pod, tape.pods[at:]))
    return replace(tape, pods=pods), fleet
