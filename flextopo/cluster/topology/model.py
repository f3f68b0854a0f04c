"""A server's hardware compiled to small tables: no graph is walked after this point."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from flextopo.cluster.errors import TopologyError, UnknownNameError
from flextopo.cluster.topology.levels import AlignmentLevel, Domain, level_of, server_domains
from flextopo.cluster.topology.network import Network

MAX_GPUS = 16
MAX_NUMA_NODES = 32
MAX_SOCKETS = 8


@dataclass(frozen=True)
class ServerModel:
    """One kind of server: where its GPUs and cores are.

    Attributes:
        name: unique among the models of a cluster.
        gpu_numa: NUMA node index in [0, num_numa_nodes) of GPU 0, 1, ...; at most 16 GPUs.
        numa_socket: socket index of NUMA node 0, 1, ...; at most 32 NUMA nodes, 8 sockets.
        numa_cores: whole physical cores of each NUMA node (0 for memory-only NUMA nodes).
        core_ids: the core numbers of each NUMA node; empty means numbered in NUMA-node order.
        gpu_name: what the vendor calls the GPU.
        gpu_memory_mib: memory of one GPU in MiB, 0 = unknown.
        gpu_island: number of the PCIe switch or NVLink island of GPU 0, 1, ..., dense, each on one
            NUMA node; empty = that level is not told apart.
    """

    name: str
    gpu_numa: tuple[int, ...]
    numa_socket: tuple[int, ...]
    numa_cores: tuple[int, ...]
    core_ids: tuple[tuple[int, ...], ...] = ()
    gpu_name: str = "GPU"
    gpu_memory_mib: int = 0
    gpu_island: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        where = f"server model {self.name!r}"
        if not 1 <= len(self.numa_socket) <= MAX_NUMA_NODES:
            raise TopologyError(
                f"{where}: {len(self.numa_socket)} NUMA nodes; legal: 1 to {MAX_NUMA_NODES}"
            )
        if len(self.gpu_numa) > MAX_GPUS:
            raise TopologyError(f"{where}: {len(self.gpu_numa)} GPUs; legal: 0 to {MAX_GPUS}")
        if len(self.numa_cores) != len(self.numa_socket):
            raise TopologyError(
                f"{where}: core counts for {len(self.numa_cores)} NUMA nodes, "
                f"sockets for {len(self.numa_socket)}; legal: one of each a NUMA node"
            )
        for gpu, numa_node in enumerate(self.gpu_numa):
            if not 0 <= numa_node < len(self.numa_socket):
                raise TopologyError(
                    f"{where}: GPU {gpu} on NUMA node {numa_node}; "
                    f"legal: 0 to {len(self.numa_socket) - 1}"
                )
        if sorted(set(self.numa_socket)) != list(range(self.num_sockets)):
            raise TopologyError(
                f"{where}: socket indices {sorted(set(self.numa_socket))}; legal: 0, 1, ... dense"
            )
        if self.num_sockets > MAX_SOCKETS:
            raise TopologyError(f"{where}: {self.num_sockets} sockets; legal: 1 to {MAX_SOCKETS}")
        if min(self.numa_cores) < 0 or max(self.numa_cores) > 1024:
            raise TopologyError(f"{where}: core counts {self.numa_cores}; legal: 0 to 1024 each")
        if self.core_ids and tuple(map(len, self.core_ids)) != self.numa_cores:
            raise TopologyError(f"{where}: core_ids do not match the core counts {self.numa_cores}")
        self._check_islands(where)

    def _check_islands(self, where: str) -> None:
        islands = self.gpu_island
        if islands and len(islands) != len(self.gpu_numa):
            raise TopologyError(
                f"{where}: islands of {len(islands)} GPUs; legal: of all {len(self.gpu_numa)}"
            )
        if sorted(set(islands)) != list(range(len(set(islands)))):
            raise TopologyError(
                f"{where}: island numbers {sorted(set(islands))}; legal: 0, 1, ... dense"
            )
        for island in set(islands):
            on = sorted({u for u, i in zip(self.gpu_numa, islands, strict=True) if i == island})
            if len(on) > 1:
                raise TopologyError(f"{where}: island {island} on NUMA nodes {on}; legal: on one")

    @property
    def num_gpus(self) -> int:
        return len(self.gpu_numa)

    @property
    def num_numa_nodes(self) -> int:
        return len(self.numa_socket)

    @property
    def num_sockets(self) -> int:
        return max(self.numa_socket) + 1

    @property
    def num_cores(self) -> int:
        return sum(self.numa_cores)

    @cached_property
    def cores(self) -> tuple[tuple[int, ...], ...]:
        """Core numbers of each NUMA node, given or numbered in NUMA-node order."""
        if self.core_ids:
            return self.core_ids
        starts = np.concatenate(([0], np.cumsum(self.numa_cores))).tolist()
        return tuple(tuple(range(a, b)) for a, b in itertools.pairwise(starts))

    @cached_property
    def domains(self) -> tuple[Domain, ...]:
        """Every part of the server that a pod may sit on, the best level first."""
        return server_domains(self.gpu_numa, self.numa_socket, self.gpu_island)

    def best_level(self, gpus: int, cores: int) -> AlignmentLevel | None:
        """Return the best level an empty server of this kind can give, None if it never fits."""
        return level_of(self.domains, (1 << self.num_gpus) - 1, self.numa_cores, gpus, cores)


@dataclass(frozen=True)
class Fleet:
    """The servers of a cluster.

    Attributes:
        models: the distinct server models.
        node_model: index into `models` of node 0, 1, ...
        network: where each server hangs; None = nobody knows, and no gang can be placed.
    """

    models: tuple[ServerModel, ...]
    node_model: tuple[int, ...]
    network: Network | None = None

    def __post_init__(self) -> None:
        if not self.node_model or not self.models:
            raise TopologyError("a cluster of 0 servers; legal: 1 or more")
        if self.network is not None and len(self.network.leaf) != len(self.node_model):
            raise TopologyError(
                f"a network of {len(self.network.leaf)} servers; legal: {len(self.node_model)}"
            )
        if not 0 <= min(self.node_model) <= max(self.node_model) < len(self.models):
            raise TopologyError(
                f"node models {min(self.node_model)} to {max(self.node_model)}; "
                f"legal: 0 to {len(self.models) - 1}"
            )
        if self.num_gpus == 0:
            raise TopologyError("a cluster without GPUs; legal: one GPU at least")

    @property
    def num_nodes(self) -> int:
        return len(self.node_model)

    @property
    def num_gpus(self) -> int:
        return sum(self.models[model].num_gpus for model in self.node_model)

    @property
    def has_islands(self) -> bool:
        """Say whether some server tells PCIe switches or NVLink islands apart."""
        return any(self.models[model].gpu_island for model in set(self.node_model))

    @property
    def gpus_per_server(self) -> int:
        """Most GPUs of a server, which is the most that a pod may ask for."""
        return max(self.models[model].num_gpus for model in self.node_model)

    @property
    def cores_per_gpu(self) -> int:
        """Cores that a generated pod asks for with each GPU: 7/8 of the scarcest server's share.

        7 on the 64-core and 14 on the 128-core preset, so that some cores of a NUMA node stay free.
        """
        used = (self.models[model] for model in set(self.node_model))
        shares = [model.num_cores / model.num_gpus for model in used if model.num_gpus]
        return max(1, int(min(shares) * 7 / 8))


MODEL_DTYPE = np.dtype(
    [
        ("num_gpus", "i8"),
        ("num_numa", "i8"),
        ("num_sockets", "i8"),
        ("num_islands", "i8"),
        ("numa_socket", "i8", (MAX_NUMA_NODES,)),  # -1 = no such NUMA node
        ("numa_gpus", "i8", (MAX_NUMA_NODES,)),  # bit masks of GPUs
        ("socket_gpus", "i8", (MAX_SOCKETS,)),  # the same a socket
        ("socket_numa", "i8", (MAX_SOCKETS,)),  # bit masks of NUMA nodes
        ("island_gpus", "i8", (MAX_GPUS,)),  # bit masks of GPUs
        ("island_numa", "i8", (MAX_GPUS,)),  # NUMA node of each island
        ("numa_cores", "i2", (MAX_NUMA_NODES,)),
    ],
    align=True,
)
"""A server model as the kernels read it; what is beyond its sizes is 0."""


def compile_models(models: Sequence[ServerModel]) -> npt.NDArray[Any]:
    """Compile server models into the table that the kernels read, (M,) MODEL_DTYPE, read-only."""
    tables = np.zeros(len(models), MODEL_DTYPE)
    tables["numa_socket"] = -1
    for table, model in zip(tables, models, strict=True):
        table["num_gpus"] = model.num_gpus
        table["num_numa"] = model.num_numa_nodes
        table["num_sockets"] = model.num_sockets
        table["numa_socket"][: model.num_numa_nodes] = model.numa_socket
        table["numa_cores"][: model.num_numa_nodes] = model.numa_cores
        by_level: dict[AlignmentLevel, list[Domain]] = {level: [] for level in AlignmentLevel}
        for domain in model.domains:
            by_level[domain.level].append(domain)
        for u, domain in enumerate(by_level[AlignmentLevel.NUMA]):
            table["numa_gpus"][u] = domain.gpu_mask
        for socket, domain in enumerate(by_level[AlignmentLevel.SOCKET]):
            table["socket_gpus"][socket] = domain.gpu_mask
            table["socket_numa"][socket] = domain.numa_mask
        table["num_islands"] = len(by_level[AlignmentLevel.ISLAND])
        for island, domain in enumerate(by_level[AlignmentLevel.ISLAND]):
            table["island_gpus"][island] = domain.gpu_mask
            table["island_numa"][island] = domain.numa_nodes[0]
    tables.setflags(write=False)
    return tables


PRESETS: dict[str, ServerModel] = {
    "rtx4090": ServerModel(
        name="rtx4090",
        gpu_numa=(3, 2, 1, 0, 7, 6, 5, 4),
        numa_socket=(0, 0, 0, 0, 1, 1, 1, 1),
        numa_cores=(8,) * 8,
        gpu_name="NVIDIA GeForce RTX 4090",
        gpu_memory_mib=24564,
    ),
    "a100": ServerModel(
        name="a100",
        gpu_numa=(0, 0, 0, 0, 1, 1, 1, 1),
        numa_socket=(0, 1),
        numa_cores=(64, 64),
        gpu_name="NVIDIA A100-SXM4-80GB",
        gpu_memory_mib=81920,
    ),
    "gh200": ServerModel(
        name="gh200",
        gpu_numa=(0, 1, 2, 3),
        numa_socket=(0, 1, 2, 3),
        numa_cores=(72,) * 4,
        gpu_name="NVIDIA GH200 120GB",
    ),
    "gb200": ServerModel(
        name="gb200",
        gpu_numa=(0, 0, 1, 1),
        numa_socket=(0, 1),
        numa_cores=(72, 72),
        gpu_name="NVIDIA GB200",
    ),
    "mi300a": ServerModel(
        name="mi300a",
        gpu_numa=(0, 1, 2, 3),
        numa_socket=(0, 1, 2, 3),
        numa_cores=(24,) * 4,
        gpu_name="AMD Instinct MI300A",
    ),
    "dgx-spark": ServerModel(
        name="dgx-spark",
        gpu_numa=(0,),
        numa_socket=(0,),
        numa_cores=(20,),
        gpu_name="NVIDIA GB10",
    ),
}
"""Servers by name. NUMA nodes that are the memory of a GPU, and have no CPU, are left out.

References:
    rtx4090: flextopo examples/crds/10.122.192.40-flextopo.yaml; GPUs as on an MLPerf server of that
    shape. a100: `nvidia-smi topo -m` in sgl-project/sglang pull request 965.
    gh200: four GH200 in a node of JUPITER (apps.fz-juelich.de/jsc/hps/jupiter/configuration.html);
    a NUMA node a Grace CPU, and 32 of GPU memory (NVIDIA/mlperf-common pull request 16).
    gb200: a compute tray, `nvidia-smi topo -m` in sgl-project/sglang issue 11208 (CPUs 0-71 and
    72-143), GPUs 0 and 1 on NUMA node 0 (NVIDIA/srt-slurm pull request 164).
    mi300a: four APUs in a node of El Capitan, each a socket and a NUMA node (hpc.llnl.gov/node/1244);
    24 cores in each (AMD's data sheet of the Instinct MI300A).
    dgx-spark: tests/hwloc/linux/nvidia-dgx-gb10.xml of open-mpi/hwloc.
"""


ISLANDS = "+islands"
"""Behind the name or file of a server: tell PCIe switches and NVLink islands apart."""

PRESET_ISLANDS: dict[str, tuple[int, ...]] = {"a100": (0, 0, 1, 1, 2, 2, 3, 3)}
"""GPUs that share a PCIe switch, for presets where that is known.

References:
    The NCCL dump of an AWS p4d.24xlarge in aws-ofi-nccl: two A100s behind each of four switches.
"""


def preset(name: str) -> ServerModel:
    """Return the server model called `name`; with `+islands` behind it, one that tells them apart.

    Raises:
        UnknownNameError: no preset has that name.
        TopologyError: nobody knows its islands.
    """
    plain = name.removesuffix(ISLANDS)
    if plain not in PRESETS:
        raise UnknownNameError("server", name, list(PRESETS))
    if plain == name:
        return PRESETS[name]
    if plain not in PRESET_ISLANDS:
        legal = ", ".join(other + ISLANDS for other in PRESET_ISLANDS)
        raise TopologyError(
            f"server {name!r}: no islands are known; legal: {legal}, or a file that tells"
        )
    return replace(PRESETS[plain], gpu_island=PRESET_ISLANDS[plain])
