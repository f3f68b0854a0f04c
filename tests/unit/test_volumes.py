"""Where a pod's volumes let it go: as kube-scheduler filters nodes by claims, volumes and classes."""

from typing import Any

import msgspec
import pytest
from kube_objects import make_cache, node, pod, read_record

from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.objects import VOLUME_KINDS

Document = dict[str, Any]
ZONE, BETA = "topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"
HOST = "kubernetes.io/hostname"
KINDS: dict[str, Any] = {kind.KIND: kind for kind in VOLUME_KINDS}
NODES = [
    node("a", labels={HOST: "a", ZONE: "x"}),
    node("b", labels={HOST: "b", ZONE: "y"}),
    node("c", labels={HOST: "c"}),
]


def claim(name: str = "data", volume: str = "", kind: str = "slow", **more: Any) -> Document:
    """Return a claim of namespace `batch` for 10Gi, bound where it has a volume."""
    bound = {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}} if volume else {}
    return {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": "batch", **bound, **more.pop("meta", {})},
        "spec": {
            "storageClassName": kind,
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "10Gi"}},
            **({"volumeName": volume} if volume else {}),
            **more.pop("spec", {}),
        },
        "status": {"phase": "Bound" if volume else "Pending", **more},
    }


def volume(name: str = "v", *, labels: Any = None, phase: str = "Bound", **spec: Any) -> Document:
    """Return a volume of 20Gi; `on` ties it to values of a label."""
    tied = {}
    if "on" in spec:
        key, values = spec.pop("on")
        rule = {"key": key, "operator": "In", "values": values}
        terms = [{"matchExpressions": [rule]}]
        tied = {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}
    meta = {"name": name, "labels": labels or {}, **spec.pop("meta", {})}
    about = {"storageClassName": "slow", "accessModes": ["ReadWriteOnce"], **tied, **spec}
    return {
        "kind": "PersistentVolume",
        "metadata": meta,
        "spec": {"capacity": {"storage": "20Gi"}, **about},
        "status": {"phase": phase},
    }


def storage_class(
    mode: str = "WaitForFirstConsumer", provisioner: str = "disks", places: Any = None
) -> Document:
    return {
        "kind": "StorageClass",
        "metadata": {"name": "slow"},
        "provisioner": provisioner,
        "volumeBindingMode": mode,
        **({"allowedTopologies": places} if places else {}),
    }


def place(key: str, *values: str) -> Document:
    return {"matchLabelExpressions": [{"key": key, "values": list(values)}]}


def using(*names: str) -> Document:
    volumes = [{"name": n, "persistentVolumeClaim": {"claimName": n}} for n in names]
    return {"volumes": [{"name": "token", "projected": {"sources": []}}, *volumes]}


def cache_of(storage: list[Document], others: list[Document] | None = None) -> ClusterCache:
    """Return a cache that has listed volumes."""
    cache = make_cache([*NODES, *(others or [])])
    for word, kind in KINDS.items():
        documents = [document for document in storage if document["kind"] == word]
        cache.replace(kind, [msgspec.convert(one, kind) for one in documents])
    return cache


def reachable(cache: ClusterCache, spec: Document | None = None) -> set[str]:
    reach = cache.reach_of(read_record(pod("p", spec=spec or using("data"))))
    return {name for name in cache.hosts.traits if not reach.why_not(name)}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (volume(), "abc"),
        (volume(on=(HOST, ["a", "c"])), "ac"),
        (volume(on=(ZONE, ["y"])), "b"),
        (volume(nodeAffinity={"required": {"nodeSelectorTerms": []}}), ""),
        # A node without any zone takes volumes of all zones.
        (volume(labels={ZONE: "x"}), "ac"),
        (volume(labels={ZONE: "x__ y"}), "abc"),
        (volume(labels={BETA: "y"}), "bc"),
        (volume(labels={"topology.kubernetes.io/region": "r"}), "c"),
        (volume(labels={ZONE: "x__"}), "abc"),
        (volume("another"), ""),
    ],
)
def test_a_bound_claim_goes_where_its_volume_is(told: Document, expected: str) -> None:
    assert reachable(cache_of([claim(volume="v"), told])) == set(expected)


@pytest.mark.parametrize(
    ("told", "passes"),
    [
        ([claim(volume="v")], True),
        ([claim("other", volume="v")], False),
        ([claim(volume="v", phase="Lost")], False),
        ([claim(volume="v", meta={"deletionTimestamp": "2027-01-15T08:00:00Z"})], False),
        # Meant for a volume, which does not know it yet.
        ([claim(spec={"volumeName": "v"})], False),
        ([claim(), storage_class()], True),
        ([claim(), storage_class("Immediate")], False),
        ([claim()], False),
        ([claim(kind=""), storage_class()], False),
        (
            [
                claim(kind="", meta={"annotations": {"volume.beta.kubernetes.io/storage-class": "slow"}}),
                storage_class(),
            ],
            True,
        ),
    ],
)  # fmt: skip
def test_a_claim_that_is_not_ready_keeps_the_pod_from_all_nodes(
    told: list[Document], passes: bool
) -> None:
    assert reachable(cache_of([*told, volume()])) == (set("abc") if passes else set())


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([storage_class(places=[place(ZONE, "x")])], "a"),
        ([storage_class(places=[place(ZONE, "x"), place(HOST, "c")])], "ac"),
        ([storage_class(places=[{}])], ""),
        ([storage_class(provisioner="kubernetes.io/no-provisioner")], ""),
        # One that is there already goes before one that would have to be made.
        ([storage_class(places=[place(ZONE, "x")]), volume(phase="Available", on=(ZONE, ["y"]))], "ab"),
    ],
)  # fmt: skip
def test_a_claim_without_volume_goes_where_one_can_be_had(
    told: list[Document], expected: str
) -> None:
    assert reachable(cache_of([claim(), *told])) == set(expected)


LOCAL = storage_class(provisioner="kubernetes.io/no-provisioner")


@pytest.mark.parametrize(
    ("of_volume", "asked", "passes"),
    [
        ({}, {}, True),
        ({"phase": "Released"}, {}, False),
        ({"storageClassName": "fast"}, {}, False),
        ({"meta": {"deletionTimestamp": "2027-01-15T08:00:00Z"}}, {}, False),
        ({"capacity": {"storage": "9Gi"}}, {}, False),
        ({"volumeMode": "Block"}, {}, False),
        ({"volumeMode": "Block"}, {"volumeMode": "Block"}, True),
        ({"volumeAttributesClassName": "gold"}, {}, False),
        ({}, {"accessModes": ["ReadWriteMany"]}, False),
        ({}, {"selector": {"matchLabels": {"disk": "nvme"}}}, False),
        ({"labels": {"disk": "nvme"}}, {"selector": {"matchLabels": {"disk": "nvme"}}}, True),
        ({"claimRef": {"namespace": "batch", "name": "other"}}, {}, False),
        ({"claimRef": {"namespace": "batch", "name": "data"}, "phase": "Released"}, {}, True),
        ({"claimRef": {"namespace": "batch", "name": "data", "uid": "old"}}, {}, False),
    ],
)
def test_which_volumes_suit_a_claim(of_volume: Document, asked: Document, passes: bool) -> None:
    local = volume(**{"phase": "Available", "on": (HOST, ["a"]), **of_volume})
    told = [claim(spec=asked), LOCAL, local]
    assert reachable(cache_of(told)) == ({"a"} if passes else set())


def test_two_claims_do_not_get_one_volume() -> None:
    def local(name: str, host: str, size: str = "20Gi") -> Document:
        return volume(name, phase="Available", on=(HOST, [host]), capacity={"storage": size})

    large = {"resources": {"requests": {"storage": "20Gi"}}}
    told = [claim("large", spec=large), claim(), LOCAL, local("v", "a"), local("w", "b")]
    spec = using("large", "data")
    assert reachable(cache_of(told), spec) == set()
    assert reachable(cache_of([*told, local("z", "a", "10Gi")]), spec) == {"a"}
    assert reachable(cache_of([*told, local("anywhere", "c")]), spec) == set()


def test_the_smallest_claim_chooses_first() -> None:
    picky = {"selector": {"matchLabels": {"disk": "nvme"}}, "resources": {}}
    local: Document = {"phase": "Available", "on": (HOST, ["a"])}
    told = [claim(), claim("picky", spec=picky), LOCAL, volume("w", **local)]
    told.append(volume("v", labels={"disk": "nvme"}, **local))
    assert reachable(cache_of(told), using("data", "picky")) == {"a"}


def test_a_claim_whose_node_was_chosen_goes_there() -> None:
    chosen = {"annotations": {"volume.kubernetes.io/selected-node": "b"}}
    assert reachable(cache_of([claim(meta=chosen), storage_class()])) == {"b"}
    # Its volume is being made there, so one that lies around does not count.
    assert reachable(cache_of([claim(meta=chosen), LOCAL, volume(phase="Available")])) == set()


def test_a_volume_made_for_a_claim_is_its_only_one() -> None:
    meant = {"namespace": "batch", "name": "data"}
    free = volume("w", phase="Available", on=(HOST, ["b"]))
    told = [claim(), LOCAL, volume(on=(HOST, ["a"]), claimRef=meant), free]
    assert reachable(cache_of(told)) == {"a"}


def test_an_ephemeral_volume_has_a_claim_named_after_pod_and_volume() -> None:
    spec = {"volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}}]}
    there = volume(on=(HOST, ["c"]))
    assert reachable(cache_of([claim("p-scratch", volume="v"), there]), spec) == {"c"}
    assert reachable(cache_of([claim("scratch", volume="v"), there]), spec) == set()


def test_a_claim_that_one_pod_at_a_time_may_use() -> None:
    def there(mode: str, *others: Document) -> set[str]:
        told = [claim(volume="v", spec={"accessModes": [mode]}), volume()]
        return reachable(cache_of(told, list(others)))

    user = pod("user", "b", spec=using("data"))
    assert there("ReadWriteOnce", user) == set("abc")
    assert there("ReadWriteOncePod") == set("abc")
    assert there("ReadWriteOncePod", user) == set()
    assert there("ReadWriteOncePod", pod("user", "b", spec=using("other"))) == set("abc")
    assert there("ReadWriteOncePod", pod("waits", spec=using("data"))) == set("abc")
    done = pod("user", "b", spec=using("data"), status={"phase": "Succeeded"})
    assert there("ReadWriteOncePod", done) == set("abc")


@pytest.mark.parametrize("lacking", KINDS)
def test_volumes_that_nobody_tells_of_keep_nobody_away(lacking: str) -> None:
    cache = cache_of([])
    assert reachable(cache) == set()
    cache.lack(KINDS[lacking])
    assert reachable(cache) == set("abc")


def test_volumes_that_change_and_go() -> None:
    cache = cache_of([claim(volume="v"), volume(on=(HOST, ["a"]))])
    assert reachable(cache) == {"a"}
    cache.put(msgspec.convert(volume(on=(HOST, ["b"])), KINDS["PersistentVolume"]))
    assert reachable(cache) == {"b"}
    cache.remove(msgspec.convert(volume(), KINDS["PersistentVolume"]))
    assert reachable(cache) == set()


def test_thousands_of_local_volumes_are_looked_at_by_host() -> None:
    """With all of them for each of their nodes this would take minutes."""

    class Counting(dict[str, str]):
        looks = 0

        def get(self, key: str, *default: Any) -> Any:
            Counting.looks += 1
            return super().get(key, *default)

    told = [volume(f"v{i}", phase="Available", on=(HOST, [f"h{i}"])) for i in range(1000)]
    cache = cache_of([claim(), LOCAL, *told])
    needs = cache.volumes.needs(["batch/data"])
    assert needs.why_not("n7", Counting({HOST: "h7"})) == ""
    assert needs.why_not("n", Counting({HOST: "none"}))
    assert Counting.looks < 10
