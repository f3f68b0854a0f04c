"""What other agents write on pods of where these are: read, and put into one form.

References:
    NVSentinel's metadata collector, HAMi's and Koordinator's schedulers, KAI's placement exporter:
    the annotations as they write them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from flextopo.cluster.topology.captures.from_text import parse_cpu_list
from flextopo.policies.serving.objects import GPU, ZonesObject, parse_quantity

GPUS_HELD = "flextopo/gpus"
CORES_HELD = "flextopo/cores"
NVSENTINEL = "dgxc.nvidia.com/devices"
HAMI = "hami.io/vgpu-devices-allocated"
KOORDINATOR_DEVICES = "scheduling.koordinator.sh/device-allocated"
KOORDINATOR_CPUS = "scheduling.koordinator.sh/resource-status"
MOST = 1 << 15
"""Above the number of any GPU, CPU or NUMA node."""
KAI = "kai.scheduler/numa-placement-observed"


class Zone(NamedTuple):
    """What a pod holds of a NUMA node: whole GPUs and CPUs, which ones is not said."""

    numa: int
    gpus: int
    cpus: int


class Held(NamedTuple):
    """What annotations tell of a pod's placement; None = nothing.

    Fields: `gpus` and `cores`, numbers as in FlexTopo objects; `ids`, GPUs by UUID or by driver, pool
    and device; `zones`, amounts by NUMA node; `shared`, whether it only has parts of its GPUs.
    """

    gpus: tuple[int, ...] | None = None
    cores: tuple[int, ...] | None = None
    ids: tuple[str, ...] | None = None
    zones: tuple[Zone, ...] | None = None
    shared: bool = False


NOTHING = Held()


def read_held(annotations: Mapping[str, str], where: str, faults: list[str]) -> Held:
    """Read all that is known of a pod's placement; what flextopo itself writes goes first.

    What is not legal is passed over, and added to `faults` where it is an annotation of flextopo's.
    """
    found = NOTHING
    for name, read in READERS.items():
        if name in annotations:
            try:
                said = read(annotations[name])
            except Exception as error:  # noqa: BLE001  anybody may write anything there
                if name in (GPUS_HELD, CORES_HELD):
                    faults.append(f"{where}: {name}: {error}; it is passed over")
                continue
            found = _merged(found, said) if _is_possible(said) else found
    return found


def _is_possible(held: Held) -> bool:
    """Say whether numbers and amounts are such as a server can have."""
    amounts = [amount for zone in held.zones or () for amount in zone]
    return all(0 <= number < MOST for number in [*(held.gpus or ()), *(held.cores or ()), *amounts])


def read_zones(resource: ZonesObject) -> tuple[Zone, ...]:
    """Return what the NUMA nodes of a NodeResourceTopology have in all.

    Raises:
        ObjectError: an amount is no quantity.
    """
    where, found = f"NodeResourceTopology {resource.metadata.name!r}", []
    for zone in resource.zones or ():
        number = zone.name.rpartition("-")[2]
        if zone.type.lower() in ("node", "numa") and number.isdecimal():
            has = {one.name: one.capacity for one in zone.resources or ()}
            gpus, cpus = (parse_quantity(has.get(n, 0), where) // 1000 for n in (GPU, "cpu"))
            found.append(Zone(int(number), gpus, cpus))
    return tuple(found)


def _merged(first: Held, then: Held) -> Held:
    """Return what the first says, and the second where the first says nothing."""
    return Held(
        gpus=then.gpus if first.gpus is None else first.gpus,
        cores=then.cores if first.cores is None else first.cores,
        ids=then.ids if first.ids is None else first.ids,
        zones=then.zones if first.zones is None else first.zones,
        shared=first.shared or then.shared,
    )


def _nvsentinel(text: str) -> Held:
    devices = _as(dict[str, dict[str, list[str]]], text)["devices"]
    return Held(ids=tuple(uuid for name, ids in devices.items() if _is_gpu(name) for uuid in ids))


def _is_gpu(resource: str) -> bool:
    return resource in (GPU, "nvidia.com/pgpu", "gpu.nvidia.com")


def _hami(text: str) -> Held:
    """`UUID,kind,MiB,percent:` for each device of a container, `;` after each container."""
    devices = [one.split(",") for part in text.split(";") for one in part.split(":") if one]
    shared = any(len(one) > 3 and one[3] not in ("0", "100") for one in devices)
    return Held(ids=tuple(one[0] for one in devices), shared=shared)


def _koordinator(text: str) -> Held:
    gpus = _as(dict[str, list[dict[str, Any]]], text).get("gpu", [])
    whole = [_share(one) >= 100_000 for one in gpus]
    return Held(gpus=tuple(int(one["minor"]) for one in gpus), shared=not all(whole))


def _share(device: dict[str, Any]) -> int:
    resources = device.get("resources") or {}
    shares = [v for name, v in resources.items() if name.endswith(("gpu-core", "memory-ratio"))]
    return min((parse_quantity(share, KOORDINATOR_DEVICES) for share in shares), default=100_000)


def _koordinator_cpus(text: str) -> Held:
    cpus = _as(dict[str, Any], text).get("cpuset") or ""
    return Held(cores=parse_cpu_list(cpus)) if cpus else NOTHING


def _kai(text: str) -> Held:
    """Amounts by zone; older versions write amounts by resource and then by NUMA node."""
    found = _as(list[dict[str, Any]] | dict[str, dict[str, int]], text)
    if isinstance(found, dict):
        numas = sorted({int(numa) for amounts in found.values() for numa in amounts})
        return Held(zones=tuple(
            Zone(n, *(int(found.get(name, {}).get(str(n), 0)) for name in (GPU, "cpu")))
            for n in numas
        ))  # fmt: skip
    zones = []
    for one in found:
        amounts = [parse_quantity(one["amount"].get(name, 0), KAI) // 1000 for name in (GPU, "cpu")]
        zones.append(Zone(int(str(one["zone"]).rpartition("-")[2]), *amounts))
    return Held(zones=tuple(zones))


def _as(kind: Any, text: str) -> Any:
    return msgspec.json.decode(text, type=kind)


READERS: dict[str, Callable[[str], Held]] = {
    # Whoever asks for GPUs holds some: an empty list tells nothing, and must not hide who does tell.
    GPUS_HELD: lambda text: Held(gpus=parse_cpu_list(text) or None),
    CORES_HELD: lambda text: Held(cores=parse_cpu_list(text)),
    NVSENTINEL: _nvsentinel,
    HAMI: _hami,
    KOORDINATOR_DEVICES: _koordinator,
    KOORDINATOR_CPUS: _koordinator_cpus,
    KAI: _kai,
}
