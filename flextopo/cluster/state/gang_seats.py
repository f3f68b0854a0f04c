"""Where the members of a gang sit when some victims are gone, as Python sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from flextopo.cluster.state.arrays import Cluster
from flextopo.cluster.state.decision import Candidate, Seat
from flextopo.cluster.state.gangs import tier_shortfall
from flextopo.cluster.state.loss import Costs, misalignment_cost, network_row, waiting_cost
from flextopo.cluster.state.placement import place
from flextopo.cluster.topology.levels import (
    NO_FIT,
    AlignmentLevel,
    NetworkLevel,
    is_aligned,
    level_deficit,
)
from flextopo.cluster.topology.model import ServerModel


class Nodes(Protocol):
    """What is asked of a `ClusterState` here."""

    arrays: Cluster
    costs: Costs

    def model(self, node: int) -> ServerModel:
        """Return the server model of a node."""
        ...

    def slots_of(self, node: int, victims: Sequence[int]) -> int:
        """Return the places of victims on a node, as bits."""
        ...

    def leaving_slots(self, node: int, wait_s: int) -> int:
        """Return those of pods that are gone after some time."""
        ...

    def free_s(self, node: int, slots: int) -> int:
        """Return the seconds until they are gone."""
        ...

    def freed(self, node: int, slots: int) -> tuple[int, list[int]]:
        """Return the GPUs and cores free without some pods."""
        ...


class Seating(NamedTuple):
    """Seats of a gang in the order of its members, the places on each node that they need without their
    pods, as bits, and the time until the last is free.
    """

    seats: tuple[Seat, ...]
    slots: dict[int, int]
    wait_s: int


def tier_over(network: npt.NDArray[np.int32], nodes: Sequence[int]) -> NetworkLevel:
    """Return the closest level of the network that holds some nodes; the array is `Cluster.network`."""
    if len(set(nodes)) == 1:
        return NetworkLevel.SERVER
    for level, column in ((NetworkLevel.LEAF, 1), (NetworkLevel.BLOCK, 2)):
        if len(network) and len(set(network[list(nodes), column].tolist())) == 1:
            return level
    return NetworkLevel.CLUSTER


def is_seat_aligned(cluster: Nodes, seat: Seat) -> bool:
    """Say whether the guaranteed filter accepts a seat."""
    pod = cluster.arrays.pods[seat.pod]
    best = cluster.model(seat.node).best_level(int(pod["gpus"]), int(pod["cores"]))
    return best is not None and is_aligned(seat.level, best)


def gang_seats(
    cluster: Nodes,
    members: Sequence[int],
    nodes: Mapping[int, int],
    victims: Sequence[int],
    aligned: bool = False,
) -> Seating | None:
    """Place members on nodes without some victims; None if one of them does not fit.

    On each node the larger members come first. What terminating pods hold counts where the node needs
    it: all that is free before victims would be.

    Args:
        cluster: the nodes.
        members: rows of the gang.
        nodes: of each member.
        victims: rows of pods on those nodes.
        aligned: a node needs it also where its members fit without, and would not be aligned.

    Raises:
        PodError: there is no such node, or a victim is not on one of them.
    """
    c, grace_s = cluster.arrays, int(cluster.costs.grace_s)
    seats: dict[int, Seat] = {}
    wait_s, places = 0, dict[int, int]()
    where = {victim: int(c.live[victim]["node"]) for victim in victims}
    for node in sorted({*nodes.values(), *where.values()}):
        here = [member for member in members if nodes[member] == node]
        here.sort(key=lambda pod: (-int(c.pods[pod]["gpus"]), -int(c.pods[pod]["cores"])))
        on_node = [victim for victim, its in where.items() if its == node]
        slots, soon = cluster.slots_of(node, on_node), cluster.leaving_slots(node, grace_s)
        attempts = [(slots | soon, grace_s)] if on_node else [(0, 0)]
        if not on_node and soon:
            attempts.append((soon, cluster.free_s(node, soon)))
        found = [(seats_on(cluster, node, here, gone), gone, end_s) for gone, end_s in attempts]
        fits = [each for each in found if each[0] is not None]
        right = (
            each
            for each in fits
            if not aligned
            or all(is_seat_aligned(cluster, seat) for seat in (each[0] or {}).values())
        )
        fitting = next(chain(right, fits), None)
        if fitting is None or fitting[0] is None:
            return None
        seats |= fitting[0]
        places[node] = fitting[1]
        wait_s = max(wait_s, fitting[2])
    return Seating(tuple(seats[member] for member in members), places, wait_s)


def seats_on(cluster: Nodes, node: int, pods: Sequence[int], slots: int) -> dict[int, Seat] | None:
    """Place pods on a node, one after the other, without those in some places; None if one does not fit."""
    c = cluster.arrays
    gpu_free, free = cluster.freed(node, slots)
    cores = np.zeros(c.cores_free.shape[1], np.int16)
    cores[: len(free)] = free
    seats = {}
    for pod in pods:
        taken = np.zeros_like(cores)
        spec = c.pods[pod]
        level, mask = place(
            c.models, c.nodes[node]["model"], gpu_free, cores, spec["gpus"], spec["cores"], taken
        )
        if level == NO_FIT:
            return None
        gpu_free &= ~int(mask)
        cores -= taken
        held = tuple(map(int, taken))
        seats[pod] = Seat(pod, node, int(mask), held, AlignmentLevel(level))
    return seats


def seating_cost(cluster: Nodes, candidate: Candidate) -> float:
    """Return what the seats of a gang cost in weighted GPU-seconds: waiting, misalignment, the network."""
    c, costs, total = cluster.arrays, cluster.costs, 0.0
    below = int(tier_shortfall(c, candidate.seats[0].pod, int(candidate.tier)))
    for seat in candidate.seats:
        spec = c.pods[seat.pod]
        best = cluster.model(seat.node).best_level(int(spec["gpus"]), int(spec["cores"]))
        deficit = 0 if best is None else level_deficit(seat.level, best)
        total += float(misalignment_cost(c, costs, seat.pod, deficit))
        total += float(waiting_cost(c, costs, seat.pod, float(candidate.wait_s)))
        if below:
            total += float(misalignment_cost(c, costs, seat.pod, int(network_row(below))))
    return total
