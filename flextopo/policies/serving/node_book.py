"""What is told of nodes: what they offer, whom they take, and where their GPUs and cores are."""

from __future__ import annotations

from collections.abc import Container

from flextopo.cluster.errors import TopologyError
from flextopo.policies.serving.devices import DeviceBook, GpuDevice
from flextopo.policies.serving.hardware import (
    Hardware,
    HardwareCatalogue,
    Marks,
    read_kept,
    read_marks,
    read_spec,
    read_uuids,
)
from flextopo.policies.serving.objects import (
    GPU,
    FlexTopoObject,
    NodeObject,
    ZonesObject,
    parse_quantity,
)
from flextopo.policies.serving.reach import NodeTraits, read_traits
from flextopo.policies.serving.records import PodRecord
from flextopo.policies.serving.sources import Zone, read_zones


class NodeBook:
    """Nodes, and the objects that tell of their hardware, by the names of the nodes.

    Attributes:
        allocatable: what Nodes offer, in thousandths.
        traits: whom nodes take.
        marks: what FlexTopo objects say that pods hold, by pod.
        kept: numbers of the GPUs that FlexTopo objects say are given to no pod.
        zones: what NodeResourceTopologies say that NUMA nodes have.
        devices: what drivers offer, and who claims it.
        catalogue: the kinds of servers.
    """

    def __init__(self) -> None:
        self.allocatable: dict[str, dict[str, int]] = {}
        self.traits: dict[str, NodeTraits] = {}
        self.marks: dict[str, dict[str, Marks]] = {}
        self.kept: dict[str, tuple[int, ...]] = {}
        self.zones: dict[str, tuple[Zone, ...]] = {}
        self.devices = DeviceBook()
        self.catalogue = HardwareCatalogue()
        self._cpus: dict[str, int] = {}
        self._hardware: dict[str, Hardware] = {}
        self._uuids: dict[str, dict[str, int]] = {}

    def put_node(self, obj: NodeObject) -> None:
        """Add or change a Node.

        Raises:
            ObjectError: a quantity in it is not one.
        """
        name = obj.metadata.name
        self.traits[name] = read_traits(obj)
        allocatable = {
            resource: parse_quantity(value, f"node {name!r}: {resource}")
            for resource, value in (obj.status.allocatable or {}).items()
        }
        all_cpus = (obj.status.capacity or {}).get("cpu", 0)
        all_cpus = parse_quantity(all_cpus, f"node {name!r}: capacity cpu")
        self.allocatable[name] = allocatable
        self._cpus[name] = max(all_cpus, allocatable.get("cpu", 0)) // 1000

    def remove_node(self, name: str) -> None:
        """Remove a Node."""
        self.allocatable.pop(name, None)
        self.traits.pop(name, None)
        self._cpus.pop(name, None)

    def put_flextopo(self, obj: FlexTopoObject) -> None:
        """Add or change a FlexTopo object.

        Raises:
            ObjectError: it has another form.
            TopologyError: it is no legal graph.
        """
        name = obj.metadata.name
        self._hardware.pop(name, None)
        spec = read_spec(obj)
        self.marks[name] = read_marks(spec)
        self.kept[name] = read_kept(spec)
        self._uuids[name] = read_uuids(spec)
        self._hardware[name] = self.catalogue.of_flextopo(obj, spec)

    def remove_flextopo(self, name: str) -> None:
        """Remove a FlexTopo object."""
        for table in (self._hardware, self.marks, self.kept, self._uuids):
            table.pop(name, None)

    def put_zones(self, obj: ZonesObject) -> None:
        """Add or change a NodeResourceTopology.

        Raises:
            ObjectError: an amount in it is not one.
        """
        self.zones[obj.metadata.name] = read_zones(obj)

    def hardware_of(self, name: str) -> Hardware | None:
        """Return a node's hardware as the best source tells it, None for a node without GPUs.

        Raises:
            TopologyError: more GPUs or CPUs than a server model has.
        """
        cpus, allocatable = self._cpus.get(name, 0), self.allocatable.get(name, {})
        found = self._hardware.get(name)
        if found is not None:
            return self.catalogue.in_cpus(found, cpus)
        found = self.catalogue.of_devices(self.devices.gpus_of(name), cpus)
        found = found or self.catalogue.of_zones(self.zones.get(name, ()))
        gpus = (self.offered(name) or {}).get(GPU, 0) // 1000
        if found is None and gpus:
            found = self.catalogue.flat(gpus, allocatable.get("cpu", 0) // 1000)
        return found

    def problem_of(self, name: str) -> str:
        """Return why a node's hardware cannot be used, empty if it can."""
        try:
            self.hardware_of(name)
        except TopologyError as error:
            return str(error)
        return ""

    def offered(self, name: str) -> dict[str, int] | None:
        """Return what a node offers; GPUs that a driver offers stand in no Node."""
        found, gpus = self.allocatable.get(name), self.devices.gpus_of(name)
        if found is None or not gpus or found.get(GPU):
            return found
        return {**found, GPU: 1000 * len(gpus)}

    def why_no_gpus(self, name: str, pod: PodRecord) -> str:
        """Return why a node's GPUs are not of the kind that a pod asks for, empty if they are.

        One cluster may have nodes whose GPUs are counted, and others whose GPUs are claimed. That devices
        stand for counted GPUs, too, a DeviceClass says; here it is taken from pods that were given some.
        """
        offered = bool(self.devices.gpus_of(name))
        if pod.by_claim:
            return "" if offered else "no driver offers its GPUs"
        counted = self.allocatable.get(name, {}).get(GPU) or (
            offered and self.devices.serves_counts
        )
        return "its GPUs are only given to claims" if pod.gpus and offered and not counted else ""

    def numbers_of(self, name: str) -> dict[str, int]:
        """Return the numbers of a node's GPUs by UUID, and by driver, pool and device."""
        found = dict(self._uuids.get(name, {}))
        for gpu in self.devices.gpus_of(name):
            found[gpu.id] = found.setdefault(gpu.uuid, gpu.number) if gpu.uuid else gpu.number
        return found

    def blocked(self, name: str, pods: Container[str]) -> list[int]:
        """Return the numbers of GPUs that nobody can be given.

        Args:
            name: of the node.
            pods: uids of the pods there; a GPU that is one's alone is not blocked.

        Returns:
            What a driver keeps back by a taint, and what claims of nobody or of several hold.
        """
        gpus = self.devices.gpus_of(name)
        if not gpus:
            return []
        held, numbers = self.devices.held(), self.numbers_of(name)

        def is_usable(gpu: GpuDevice) -> bool:
            return held[gpu.id] in pods if gpu.id in held else not gpu.tainted

        return [numbers[gpu.id] for gpu in gpus if not is_usable(gpu)]
