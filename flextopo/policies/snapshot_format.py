"""The JSON document that describes a cluster: its fields, and how it is read."""

from __future__ import annotations

import msgspec

from flextopo.cluster.errors import FlextopoError


class SnapshotError(FlextopoError):
    """Report a snapshot that is not one, with the path of the field."""


class Server(msgspec.Struct, forbid_unknown_fields=True):
    """A node: its name, and a preset's name or the server itself in `hardware`.

    `leaf` and `block` name the leaf switch or rack that it hangs from and the block of leaves; every
    server names its leaf, or none does, and so for blocks.
    """

    name: str
    model: str = ""
    hardware: Hardware | None = None
    leaf: str = ""
    block: str = ""


class Hardware(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Where a server's GPUs and cores are; see `ServerModel`."""

    gpu_numa: tuple[int, ...]
    numa_socket: tuple[int, ...]
    numa_cores: tuple[int, ...]
    gpu_island: tuple[int, ...] = ()


class SnapshotPod(msgspec.Struct, forbid_unknown_fields=True):
    """A pod; with `node` it runs there, on `gpus_held` or where the node would have put it.

    Without a `batch_class` its priority tells, by bands. Of a `group` so many `min_members` have to run; without
    that it stops as a whole. The members of a gang lie within one part of the
    network of `required_level`, and better of `preferred_level`, by default a leaf.
    """

    name: str
    gpus: int
    cores: int
    priority: int
    node: str = ""
    gpus_held: tuple[int, ...] | None = None
    requirement: str = "none"
    online: bool = False
    preemptible: bool = True
    protection_s: int = 0
    checkpoint_s: int = 0
    batch_class: int | None = None
    group: str = ""
    min_members: int | None = None
    budget: str = ""
    start_s: int = 0
    required_level: str = "cluster"
    preferred_level: str = ""


class Budget(msgspec.Struct, forbid_unknown_fields=True):
    """A disruption budget: how many of its pods may still be disrupted."""

    name: str
    disruptions_allowed: int


class Snapshot(msgspec.Struct, forbid_unknown_fields=True):
    """Nodes, pods, the pending pod in question, and the time in seconds.

    A list of pods in `preemptor` is a gang: 2 to 16 online pods that start together or not at all.
    """

    servers: list[Server]
    pods: list[SnapshotPod]
    preemptor: str | list[str]
    budgets: list[Budget] = []
    now_s: int = 0


def decode(body: bytes) -> Snapshot:
    """Read a snapshot.

    Raises:
        SnapshotError: not JSON, or a field is missing, unknown or of another type.
    """
    try:
        return msgspec.json.decode(body, type=Snapshot)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotError(f"snapshot: {error}") from None
