"""What a preemptor may do: the candidates of a pod on one node, or of a gang over several."""

from __future__ import annotations

from flextopo.cluster.jit.kernels import kernel
from flextopo.cluster.state.arrays import Cluster
from flextopo.cluster.state.candidates import (
    CandidateArrays,
    Workspace,
    count_preemptible,
    find_for_pod,
)
from flextopo.cluster.state.gang_candidates import find_for_gang
from flextopo.cluster.state.gangs import count_parts, is_gang
from flextopo.cluster.state.loss import Costs


@kernel
def find_candidates(
    c: Cluster, costs: Costs, pod: int, aligned: bool, w: Workspace, out: CandidateArrays
) -> int:
    """Find the candidates of a preemptor, the cheapest first: see `find_for_pod`, `find_for_gang`.

    Args:
        c: the cluster, of which only scratch memory is modified.
        costs: the loss in GPU-seconds.
        pod: index of the preemptor; of a gang, any member.
        aligned: the guaranteed filter holds: only aligned placements are legal.
        w: scratch memory.
        out: memory for the candidates.

    Returns:
        Number of candidates in `out`.
    """
    if is_gang(c, pod):
        return find_for_gang(c, costs, pod, aligned, w, out)
    return find_for_pod(c, costs, pod, aligned, w, out)


@kernel
def count_places(c: Cluster, pod: int, aligned: bool, enough: int) -> int:
    """Count, up to `enough`, the places where a preemptor could get in by evicting.

    That is nodes for a pod, and for a gang parts of the network of the level that it requires.
    """
    if is_gang(c, pod):
        return count_parts(c, pod, c.pods[pod]["required_tier"], aligned, enough)
    return count_preemptible(c, pod, aligned, enough)
