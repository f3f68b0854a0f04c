"""Which policies ship with the package; nothing else is imported to know it."""

from __future__ import annotations

from pathlib import Path

FIRST_LAYOUT = "5c0417d93390c99d"
FIRST_FEATURES = {
    "preemptor": ["gpus", "cores", "requires_nothing", "best_effort", "guaranteed", "waited"],
    "cluster": [
        "day_sin",
        "day_cos",
        "free",
        "online",
        "batch",
        "online_waiting",
        "batch_waiting",
        "misaligned",
        "free_nodes",
        "fragmented_nodes",
        "largest_free",
        "candidates",
        "waiting_1",
        "waiting_2",
        "waiting_4",
        "waiting_groups",
    ],
    "candidates": [
        "server_gpus",
        "server_numa_nodes",
        "level_numa",
        "level_socket",
        "level_cross_socket",
        "deficit",
        "level_before",
        "victims",
        "evicted_gpus",
        "largest_victim",
        "surplus_gpus",
        "surplus_cores",
        "priority_gap",
        "middle_class",
        "discarded",
        "cost",
        "cost_gap",
        "oldest_victim",
        "youngest_victim",
        "expected_remaining",
        "since_checkpoint",
        "no_checkpoint",
        "earlier_evictions",
        "group_members",
        "budgeted",
        "free_after",
        "largest_block_after",
        "socket_imbalance_after",
        "online_after",
        "evictable_after",
        "refill",
        "victims_fit",
    ],
}
"""The features that artifacts of version 0.1 read, which say `FIRST_LAYOUT` in their place."""

ZOO = Path(__file__).parent / "zoo"


def zoo_names() -> list[str]:
    """Return the names of the policies that ship with the package."""
    return sorted(path.parent.name for path in ZOO.glob("*/meta.json"))
