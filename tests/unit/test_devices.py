"""Devices and claims: who has which GPU, without an agent."""

import pytest
from kube_devices import NODE, NUMA, Document, claim, claiming, full, slice_of
from kube_objects import make_cache, node, pod, preemptor, read, read_record

from flextopo.baselines.registry import make_selector
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.decider import Decider


def masks(cache: ClusterCache) -> dict[str, int]:
    state = cache.nodes.states["n0"]
    held = {record.name: state.holding(record.uid) for record in state.counted.records}
    return {name: found[0] for name, found in held.items() if found is not None}


def decider(cache: ClusterCache) -> Decider:
    fallback = make_selector("flextopo-best-effort")
    return Decider(cache, make_selector("greedy-cost"), fallback, budget_s=60)


WANTS_TWO = claiming("p", priority=1000)


def test_claims_tell_who_has_which_gpu() -> None:
    cache = make_cache(full())
    state = cache.nodes.states["n0"]
    assert state.known
    assert masks(cache) == {f"b{i}": 1 << i for i in range(8)}
    assert state.hardware.server.gpu_numa == (0, 0, 0, 0, 1, 1, 1, 1)


def test_victims_for_a_claim_are_aligned() -> None:
    cache = make_cache([*full(), claim("p", 2), WANTS_TWO])
    asking = cache.pods["uid-p"]
    assert (asking.gpus, asking.claims) == (2, ("batch/p",))
    found = decider(cache).decide(asking, ["n0"], may_violate=False)
    assert len(found.victims) == 2
    assert found.level == "numa"


def test_a_constraint_on_the_numa_node_is_a_guarantee() -> None:
    near = claim("p", 2, constraints=[{"matchAttribute": NUMA}])
    cache = make_cache([*full(), near, WANTS_TWO])
    assert cache.pods["uid-p"].requirement.name == "GUARANTEED"


def test_what_is_handed_over_to_a_nominated_pod_is_nobody_elses() -> None:
    documents = full()
    for document in documents:
        if document["metadata"]["name"] in ("b0", "b1") and document["kind"] == "Pod":
            document["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:20Z"
    chosen = claiming("p", priority=1000, status={"nominatedNodeName": "n0"})
    low = claiming("low", priority=50)
    cache = make_cache([*documents, claim("p", 2), claim("low", 1), chosen, low])
    assert masks(cache)["p"] == 0b11
    found = decider(cache).decide(cache.pods["uid-low"], ["n0"], may_violate=False)
    assert found.node is None


@pytest.mark.parametrize(
    ("change", "blocked"),
    [
        ({"users": ("uid-b0", "uid-b1")}, True),  # shared: evicting one frees nothing
        ({"users": ()}, True),  # being given back
        ({"users": ("uid-b0",)}, False),
    ],
)
def test_only_what_one_pod_has_alone_is_freed_with_it(change: Document, blocked: bool) -> None:
    documents = [NODE, slice_of(), claim("b0", gpus=(0,), **change)]
    cache = make_cache([*documents, claiming("b0", "n0"), claiming("b1", "n0", ("b0",))])
    state = cache.nodes.states["n0"]
    assert not state.counted.gpu_free & 1
    assert masks(cache).get("b0", 0) == (0 if blocked else 1)


def test_a_look_at_a_device_holds_nothing() -> None:
    watching = claim("b0", gpus=(0,), users=("uid-b0",))
    watching["status"]["allocation"]["devices"]["results"][0]["adminAccess"] = True
    watching["spec"]["devices"]["requests"][0]["exactly"]["adminAccess"] = True
    cache = make_cache([NODE, slice_of(), watching, claiming("b0", "n0")])
    assert cache.nodes.states["n0"].counted.num_gpus == 8
    assert cache.pods["uid-b0"].gpus == 0


def test_only_the_newest_generation_counts_and_only_when_it_is_complete() -> None:
    old = slice_of()
    cache = make_cache([NODE, old])
    assert cache.nodes.states["n0"].hardware.server.num_gpus == 8
    half = (0, 0, 0, 0)
    cache.put(read(slice_of(numas=half, generation=2, count=2, part="-a")))
    # The old one does not count any more, the new one not yet.
    assert "n0" not in cache.nodes.states
    cache.put(read(slice_of(numas=(1,) * 4, generation=2, count=2, part="-b", first=4)))
    assert cache.nodes.states["n0"].hardware.server.gpu_numa == (0, 0, 0, 0, 1, 1, 1, 1)
    cache.remove(read(slice_of(numas=half, generation=2, count=2, part="-a")))
    assert "n0" not in cache.nodes.states


@pytest.mark.parametrize(("effect", "free"), [("NoSchedule", 7), ("NoExecute", 7), ("None", 8)])
def test_tainted_devices_are_given_to_nobody(effect: str, free: int) -> None:
    cache = make_cache([NODE, slice_of(taints={3: effect})])
    assert cache.nodes.states["n0"].counted.num_gpus == free


def test_numa_nodes_that_are_near_make_a_socket() -> None:
    near = [[0, 1], [0, 1], [1, 0], [1, 0], [2, 3], [2, 3], [3, 2], [3, 2]]
    cache = make_cache([NODE, slice_of(numas=tuple(near))])
    server = cache.nodes.states["n0"].hardware.server
    assert server.gpu_numa == (0, 0, 1, 1, 2, 2, 3, 3)
    assert server.numa_socket == (0, 0, 1, 1)
    # Without them nobody knows, and nothing is claimed.
    cache = make_cache([NODE, slice_of(numas=(None,) * 8)])
    assert not cache.nodes.states["n0"].hardware.known


def test_extended_resources_that_a_driver_fulfils() -> None:
    classic = pod(
        "b0", "n0", gpus=2, status={"extendedResourceClaimStatus": {"resourceClaimName": "made"}}
    )
    cache = make_cache([NODE, slice_of(), claim("made", 2, (4, 5), ("uid-b0",)), classic])
    assert masks(cache) == {"b0": 0b110000}
    assert cache.pods["uid-b0"].gpus == 2


def test_counted_gpus_and_claimed_ones_are_on_different_nodes() -> None:
    counted, claimed = preemptor(2), claiming("p", priority=1000)
    cache = make_cache([*full(), node("n1"), claim("p", 2), claimed, counted])

    def reached(uid: str) -> list[str]:
        reach = cache.reach_of(cache.pods[uid])
        return [name for name in ("n0", "n1") if not reach.why_not(name)]

    assert reached("uid-online") == ["n1"]
    assert reached("uid-p") == ["n0"]
    # Where a DeviceClass stands for the extended resource, pods that count GPUs are given devices.
    made = {"extendedResourceClaimStatus": {"resourceClaimName": "made"}}
    cache.put(read(pod("other", "n0", gpus=1, status=made)))
    assert reached("uid-online") == ["n0", "n1"]


def test_claims_may_come_after_their_pods_and_go_before_them() -> None:
    cache = make_cache([NODE, slice_of(), claiming("b0", "n0")])
    assert cache.pods["uid-b0"].gpus == 0
    cache.put(read(claim("b0", 2, (0, 1), ("uid-b0",))))
    assert masks(cache) == {"b0": 0b11}
    cache.remove(read(claim("b0")))
    assert cache.nodes.states["n0"].counted.num_gpus == 8


def test_a_device_is_free_when_its_claim_is_gone_whichever_goes_first() -> None:
    for first in ("Pod", "ResourceClaim"):
        cache = make_cache(full())
        documents = {one["kind"]: one for one in full() if one["metadata"]["name"] == "b0"}
        assert cache.nodes.states["n0"].counted.num_gpus == 0
        cache.remove(read(documents.pop(first)))
        # Without its pod a claim still holds what it was given.
        assert cache.nodes.states["n0"].counted.num_gpus == (first == "ResourceClaim")
        cache.remove(read(documents.popitem()[1]))
        assert cache.nodes.states["n0"].counted.num_gpus == 1


def test_a_template_makes_a_claim_of_another_name() -> None:
    spec = {"resourceClaims": [{"name": "g", "resourceClaimTemplateName": "two"}]}
    status = {"resourceClaimStatuses": [{"name": "g", "resourceClaimName": "p-g-x7"}]}
    cache = make_cache([NODE, slice_of(), claim("p-g-x7", 2), pod("p", gpus=0, spec=spec)])
    assert cache.pods["uid-p"].gpus == 0
    cache.put(read(pod("p", gpus=0, spec=spec, status=status)))
    assert cache.pods["uid-p"].gpus == 2
    assert read_record(preemptor(2)).claims == ()
