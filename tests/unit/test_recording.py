"""A cluster recorded without names, and what selectors would have done with it."""

import asyncio
import io
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_apiserver import FakeApiserver, running
from kube_devices import claim, claiming, full
from kube_objects import (
    NOW_S,
    budget,
    flextopo,
    full_node,
    make_cache,
    node,
    pod,
    preemptor,
    read,
)

from flextopo.baselines.registry import make_selector
from flextopo.cli.app import main
from flextopo.policies.serving.budgets import covers
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.objects import (
    GangObject,
    Meta,
    NodeObject,
    ObjectError,
    PodGroupObject,
    PodObject,
    VolcanoGroupObject,
    VolumeObject,
    key_of,
)
from flextopo.policies.serving.recording import (
    HASHED,
    Anonymiser,
    Playback,
    Recorder,
    RecordingWarning,
)
from flextopo.policies.serving.records import CLASS_BANDS
from flextopo.policies.serving.what_if import summarise_moments, what_if

REFUSED = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}
Document = dict[str, Any]


def recorded(path: Path, changes: list[tuple[float, str, Document]]) -> Path:
    """Record changes, each with its second and whether it is put or removed."""
    now = [float(NOW_S)]
    with path.open("wb") as out:
        recorder = Recorder(out, lambda: now[0])
        for t_s, what, document in changes:
            now[0] = NOW_S + t_s
            (recorder.put if what == "put" else recorder.remove)(read(document))
    return path


def day(path: Path) -> Path:
    """Record a full node, a preemptor, and what kube-scheduler made of it."""
    documents = [*full_node(), budget("secret-budget", 1, {"app": "secret"})]
    victims = []
    for i in (0, 7):
        reason = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
        meta = {"deletionTimestamp": "2027-01-15T08:00:40Z"}
        victims.append(pod(f"n0-b{i}", "n0", meta=meta, status={"conditions": [reason]}))
    bound = preemptor(2, name="secret-online")
    bound["spec"]["nodeName"] = "n0"
    return recorded(path, [
        *((0.0, "put", document) for document in documents),
        (5.0, "put", preemptor(2, name="secret-online", status=REFUSED)),
        (5.5, "put", victims[0]),
        (5.5, "put", victims[1]),
        (8.0, "remove", victims[0]),
        (8.0, "remove", victims[1]),
        (9.25, "put", bound),
    ])  # fmt: skip


def test_a_recording_holds_no_name(tmp_path: Path) -> None:
    spec = {
        "nodeSelector": {"team": "secret-team"},
        "priorityClassName": "secret-class",
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname",
             "labelSelector": {"matchLabels": {"secret-key": "secret-value"}}}]}},
    }  # fmt: skip
    annotations = {
        "mail": "somebody@secret.example",
        "dgxc.nvidia.com/devices": '{"devices":{"nvidia.com/gpu":["GPU-455d8f70-2051-db6c-0430"]}}',
        "scheduling.k8s.io/group-name": "secret-group",
    }
    secret_claim = claim("p", 2)
    exactly = secret_claim["spec"]["devices"]["requests"][0]["exactly"]
    exactly["selectors"] = [{"cel": {"expression": "device.driver == 'secret'"}}]
    secret_claim["spec"]["devices"]["requests"][0]["name"] = "secret-request"
    changes = [
        pod("secret-pod", "secret-node", spec=spec, annotations=annotations),
        node("secret-node", labels={"secret-key": "secret-value"}),
        flextopo("secret-node", {"batch/secret-pod": [0]}),
        budget("b", 1, {"a": "b"}, disruptedPods={"secret-pod": "2027-01-15T08:00:00Z"}),
        secret_claim,
        *full(),
    ]
    path = recorded(tmp_path / "day.jsonl", [(0.0, "put", one) for one in changes])
    text = path.read_text()
    for word in ("secret", "somebody", "455d8f70", "uid-b0", "batch"):
        assert word not in text, word
    for word in ("kubernetes.io/hostname", "nvidia.com/gpu", "gpu.nvidia.com", "dgxc.nvidia.com"):
        assert word in text
    # Another recording of the same cluster cannot be told to be of the same.
    again = recorded(tmp_path / "again.jsonl", [(0.0, "put", one) for one in changes])
    assert again.read_text() != text


def test_a_number_that_is_a_name_is_not_kept(tmp_path: Path) -> None:
    labels = {"phone": "4915112345678"}
    spec = {"schedulerName": "800200800200", "nodeSelector": {"rack": "700500700500"}}
    meta = {"namespace": "900123900123", "labels": labels}
    group = {"kind": "PodGroup", "metadata": {"name": "600300600300", "namespace": "900123900123"}}
    covering = budget("b", 1, labels)
    changes = [
        pod("771177771177", "884488884488", meta=meta, spec=spec),
        node(
            "884488884488",
            labels={"rack": "700500700500", "kubernetes.io/hostname": "884488884488"},
        ),
        flextopo("884488884488", {"900123900123/771177771177": [0]}),
        {**covering, "metadata": {"name": "660066660066", "namespace": "900123900123"}},
        group,
    ]
    path = recorded(tmp_path / "day.jsonl", [(0.0, "put", one) for one in changes])
    text = path.read_text()
    assert not [one for one in re.findall(r"\d{12,}", json.dumps(changes)) if one in text]
    playback = Playback(path, CLASS_BANDS)
    assert len(list(playback)) == len(changes)
    (bound,) = playback.cache.pods.values()
    assert playback.cache.nodes.states[bound.node].counted.gpu_free.bit_count() == 7
    (found,) = playback.cache.budgets.by_key.values()
    assert covers(found, bound)


def test_a_pod_under_disruption_is_no_budgets_in_a_recording_either(tmp_path: Path) -> None:
    names = {"a": "2027-01-15T08:00:00Z"}
    changes = [
        *(pod(name, "n0", meta={"labels": {"app": "x"}}) for name in "ab"),
        budget("b", 1, {"app": "x"}, disruptedPods=names),
    ]
    path = recorded(tmp_path / "day.jsonl", [(0.0, "put", one) for one in changes])
    playback = Playback(path, CLASS_BANDS)
    first, second, _ = [obj.metadata.uid for obj in playback]
    (found,) = playback.cache.budgets.by_key.values()
    assert found.status.disruptedPods is not None
    assert list(found.status.disruptedPods.values()) == list(names.values())
    assert [covers(found, playback.cache.pods[uid]) for uid in (first, second)] == [False, True]


@pytest.mark.parametrize(
    ("operator", "value", "there"),
    [("Gt", "8191", ["n1", "n2"]), ("Lt", "8192", ["n0"]), ("In", "81920", ["n2"]),
     ("Gt", "-1", ["n0", "n1", "n2"]), ("Lt", "-1", []), ("Gt", "much", []),
     ("NotIn", "81920", ["n0", "n1", "none", "word"]), ("Exists", None, ["n0", "n1", "n2", "word"])],
)  # fmt: skip
def test_labels_are_compared_as_in_the_cluster(
    operator: str, value: str | None, there: list[str], tmp_path: Path
) -> None:
    memory = {"n0": "900", "n1": "8192", "n2": "81920", "word": "much", "none": None}
    nodes = [node(name, labels={"mib": one} if one else {}) for name, one in memory.items()]
    expression = {"key": "mib", "operator": operator, "values": [value] if value else None}
    terms = {"nodeSelectorTerms": [{"matchExpressions": [expression]}]}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
    changes = [*nodes, pod("p", spec={"affinity": affinity})]
    live = make_cache(changes)
    path = recorded(tmp_path / "day.jsonl", [(0.0, "put", one) for one in changes])
    playback = Playback(path, CLASS_BANDS)
    called = dict(zip(memory, [obj.metadata.name for obj in playback], strict=False))
    for cache, names in ((live, {name: name for name in memory}), (playback.cache, called)):
        (pending,) = cache.pods.values()
        reach = cache.reach_of(pending)
        found = [name for name in memory if not reach.why_not(names[name])]
        assert sorted(found) == there


@pytest.mark.parametrize(
    "documents", [full_node(), [*full(), claim("p", 2), claiming("p", priority=1000)]]
)
def test_a_recording_decides_as_the_cluster_would(
    documents: list[Document], tmp_path: Path
) -> None:
    path = recorded(tmp_path / "day.jsonl", [(0.0, "put", one) for one in documents])
    playback = Playback(path, CLASS_BANDS)
    assert len(list(playback)) == len(documents)
    live = ClusterCache(lambda: NOW_S)
    for document in documents:
        live.put(read(document))
    assert not playback.cache.problems
    states = [sorted(cache.nodes.states.values(), key=lambda s: s.hardware.server.name)
              for cache in (live, playback.cache)]  # fmt: skip
    for here, there in zip(*states, strict=True):
        assert here.known == there.known
        assert here.counted.gpu_free == there.counted.gpu_free
        assert here.counted.cores_free.tolist() == there.counted.cores_free.tolist()
        assert sorted(r.gpus for r in here.sure.records) == sorted(
            r.gpus for r in there.sure.records
        )


def test_volumes_are_left_out() -> None:
    out = io.BytesIO()
    recorder = Recorder(out, lambda: float(NOW_S))
    recorder.put(VolumeObject(Meta(name="secret")))
    recorder.replace(VolumeObject, [VolumeObject(Meta(name="secret"))])
    recorder.lack(VolumeObject)
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "secret"}}]
    recorder.put(read(pod("a", spec={"volumes": volumes})))
    (_, line) = out.getvalue().splitlines()
    assert "volumes" not in json.loads(line)["o"]["spec"]


def test_what_did_not_change_is_not_written_and_lists_are_compared() -> None:
    out = io.BytesIO()
    recorder = Recorder(out, lambda: float(NOW_S))
    first = read(pod("a", "n0", meta={"resourceVersion": "1"}))
    recorder.put(first)
    recorder.put(read(pod("a", "n0", meta={"resourceVersion": "2"})))
    assert recorder.lines == 2
    recorder.replace(PodObject, [read(pod("b", "n0"))])
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line.get("put") or line.get("gone") for line in lines[1:]] == ["Pod"] * 3
    assert "gone" in lines[3]
    recorder.replace(NodeObject, [read(node("n0"))])
    recorder.replace(NodeObject, [])
    last = json.loads(out.getvalue().splitlines()[-1])
    assert last["gone"] == "Node"
    assert (
        last["o"]["metadata"]["name"]
        == json.loads(out.getvalue().splitlines()[-2])["o"]["metadata"]["name"]
    )


GROUPS: list[type[PodGroupObject]] = [PodGroupObject, GangObject, VolcanoGroupObject]


@pytest.mark.parametrize("kind", GROUPS)
def test_groups_of_one_api_stay_where_another_api_is_lacking(
    kind: type[PodGroupObject], tmp_path: Path
) -> None:
    """A watch says again and again that a cluster lacks the other APIs."""
    group = kind(Meta(name="g", namespace="batch", resourceVersion="5"), {"minMember": 2})
    path = tmp_path / "day.jsonl"
    with path.open("wb") as out:
        recorder = Recorder(out, lambda: float(NOW_S))
        recorder.replace(kind, [group])
        for other in GROUPS:
            if other is not kind:
                recorder.lack(other)
        assert recorder.lines == 2
        recorder.replace(kind, [])
    playback = Playback(path, CLASS_BANDS)
    changes = iter(playback)
    found = playback.cache.group(key_of(next(changes).metadata))
    assert found is not None
    assert found.least == 2
    assert playback.cache.group(key_of(next(changes).metadata)) is None


def test_a_pod_that_a_list_lacks_is_gone_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    with path.open("wb") as out:
        recorder = Recorder(out, lambda: float(NOW_S))
        recorder.replace(PodObject, [read(pod("a", "n0")), read(pod("b", "n0"))])
        recorder.replace(PodObject, [read(pod("b", "n0"))])
    playback = Playback(path, CLASS_BANDS)
    assert len(list(playback)) == 3
    assert len(playback.cache.pods) == 1


def test_every_selector_is_asked_about_the_cluster_as_it_was(tmp_path: Path) -> None:
    path = day(tmp_path / "day.jsonl")
    names = ("kubernetes", "greedy-cost")
    selectors = {name: make_selector(name) for name in names}
    (moment,) = what_if(path, selectors, make_selector("flextopo-best-effort"))
    assert (moment.t_s, moment.gpus, moment.requirement) == (5.0, 2, "guaranteed")
    assert moment.waited_s == 4.25
    assert len(moment.victims) == moment.victim_gpus == 2
    best = moment.choices["greedy-cost"]
    assert best.level in ("numa_node", "socket")
    assert len(best.victims) == best.gpus == 2
    assert best.lost_gpu_h > 0
    assert best.next_best is not None
    assert best.next_best["victims"] != best.victims
    assert best.next_best["lost_gpu_h"] >= best.lost_gpu_h
    assert best.fewer.count("1 GPUs") == 2
    rows = {row["selector"]: row for row in summarise_moments([moment])}
    assert rows["greedy-cost"]["aligned"] == 1.0
    assert rows["the cluster itself"]["victims"] == 2


def test_what_lies_as_near_as_the_server_allows_is_aligned(tmp_path: Path) -> None:
    documents = [*full_node(), preemptor(8, status=REFUSED)]
    path = recorded(tmp_path / "day.jsonl", [(0.0, "put", one) for one in documents])
    (moment,) = what_if(path, {"a": make_selector("godel")}, make_selector("flextopo"))
    assert moment.choices["a"].level == "cross_socket"
    assert moment.choices["a"].aligned
    # Kubernetes' choice of two pods on two sockets is not, where two on one would do.
    spread = full_node()
    for i, start in enumerate((9, 8, 7, 6, 5, 4, 3, 10)):
        spread[2 + i]["status"]["startTime"] = f"2027-01-15T0{start % 10}:00:00Z"
    documents = [*spread, preemptor(2, "none", status=REFUSED)]
    path = recorded(tmp_path / "two.jsonl", [(0.0, "put", one) for one in documents])
    (moment,) = what_if(path, {"a": make_selector("kubernetes")}, make_selector("flextopo"))
    assert moment.choices["a"].aligned == (moment.choices["a"].level != "cross_socket")


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(day(tmp_path / "day.jsonl"))
    for command in ("what-if", "replay"):
        json_path = tmp_path / f"{command}.json"
        options = ["-s", "godel", "-s", "greedy-cost", "--json", str(json_path)]
        assert run(command, path, *options) == 0
        out = capsys.readouterr().out
        assert "| greedy-cost | 1 | 1 | 2 | 2 | 100 % |" in out
        assert "the cluster itself" in out
        found = json.loads(json_path.read_text())
        assert {row["selector"] for row in found["selectors"]} >= {"godel", "greedy-cost"}
        assert len(found["moments"]) == 1
        # The selectors differ, so the pod and its victims are told of, under names that can be read.
        assert "\n5.0 s: pod-1, 2 GPUs, guaranteed; was bound to node-1 after" in out
        assert not HASHED.search(out)
        assert found["names"]["pod-1"] == found["moments"][0]["pod"]
        assert found["names"]["node-1"] == found["moments"][0]["node"]
        assert found["counted"] in out


def test_hashes_of_names_are_found_wherever_they_stand() -> None:
    token = Anonymiser().token
    pods = [f"{token('team')}/{token(name)}" for name in ("job-0", "kindnet-x8k2f")]
    said = f"{pods[0]}: priority 100; on {token('n0')}, {pods[1]}."
    assert HASHED.findall(said) == [pods[0], token("n0"), pods[1]]


def run(*arguments: str) -> int:
    try:
        main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("text", ["", "{", '{"recording": 99}', "[1]"])
def test_other_files_are_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "day.jsonl").write_text(text)
    with pytest.raises(ObjectError, match="legal: what flextopo record writes"):
        Playback(tmp_path / "day.jsonl", CLASS_BANDS)
    (tmp_path / "day.jsonl").write_text('{"recording": 1, "begin_s": 0}\n{"t": 1, "put": "Cow"}\n')
    with pytest.raises(ObjectError, match="line 2"):
        list(Playback(tmp_path / "day.jsonl", CLASS_BANDS))


@pytest.mark.parametrize(
    ("head", "told"),
    [
        ('{"recording": 1}', "begin_s 'None'; legal: Unix seconds"),
        ('{"recording": 1, "begin_s": null}', "begin_s 'None'"),
        ('{"recording": 1, "begin_s": "x"}', "begin_s 'x'"),
        ('{"recording": 1, "begin_s": 1e300}', "begin_s '1e+300'"),
        ('{"recording": 1, "begin_s": -1}', "begin_s '-1'"),
        ("[" * 10**6, "recursion"),
    ],
)
def test_a_first_line_that_is_none_is_one_sentence(
    head: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "day.jsonl").write_text(f"{head}\n")
    assert run("what-if", str(tmp_path / "day.jsonl"), "-s", "godel") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert told in error
    assert "legal: " in error


@pytest.mark.parametrize(
    "line",
    [b'{"t":1,"put":"Pod","o":{"metadata":{"name":"\xff"}}}', b'{"t":1,"put":"\xff"}',
     b'{"t":1,"put":"Pod","o":' + b"[" * 10**6 + b"]" * 10**6 + b"}"],
)  # fmt: skip
def test_a_line_that_is_none_is_one_sentence(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "day.jsonl"
    path.write_bytes(b'{"recording": 1, "begin_s": 1}\n' + line + b"\n")
    with pytest.raises(ObjectError, match=r"line 2: .*; legal: what flextopo record writes"):
        list(Playback(path, CLASS_BANDS))


def test_a_recording_that_was_cut_is_read_up_to_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recorder that was killed leaves such a file."""
    whole = day(tmp_path / "day.jsonl").read_bytes()
    path = tmp_path / ".day.jsonl.unfinished"
    path.write_bytes(whole.rstrip(b"\n"))
    everything = len(list(Playback(path, CLASS_BANDS)))
    path.write_bytes(whole[:-20])
    with pytest.warns(RecordingWarning, match=f"line {everything + 1}: cut at its end"):
        assert len(list(Playback(path, CLASS_BANDS))) == everything - 1
    assert run("what-if", str(path), "-s", "godel") == 0
    assert "warning: " in capsys.readouterr().err
    # A line in the middle is no end.
    path.write_bytes(whole.replace(b"}\n", b"\n", 3))
    with pytest.raises(ObjectError, match="legal"):
        list(Playback(path, CLASS_BANDS))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "day.jsonl"], "without --kube"),
        (["--kube", "-o", "day.json"], "legal: .jsonl"),
        (["--kube", "-o", "day.jsonl", "--hours", "0"], "--hours 0"),
    ],
)
def test_bad_options(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("record", *options) == 2
    assert words in capsys.readouterr().err


def test_a_cluster_is_recorded_until_it_is_enough(tmp_path: Path) -> None:
    pytest.importorskip("lightkube")
    path = tmp_path / "day.jsonl"

    async def record() -> int:
        server = FakeApiserver()
        for document in full_node():
            server.put(document)
        async with running(server):
            (tmp_path / "config").write_text(json.dumps({
                "apiVersion": "v1", "kind": "Config", "current-context": "x",
                "clusters": [{"name": "c", "cluster": {"server": server.url}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            }))  # fmt: skip
            command = [sys.executable, "-m", "flextopo", "record", "--kube", "-o", str(path)]
            process = await asyncio.create_subprocess_exec(
                *command,
                env={"KUBECONFIG": str(tmp_path / "config"), "PATH": "/usr/bin:/bin"},
                stdout=subprocess.DEVNULL,
            )
            unfinished = tmp_path / ".day.jsonl.unfinished"
            for _ in range(500):
                await asyncio.sleep(0.05)
                if unfinished.exists() and unfinished.read_bytes().count(b"\n") >= 11:
                    break
            assert not path.exists()
            server.put(pod("late", "n0"))
            await asyncio.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            return await asyncio.wait_for(process.wait(), 20)

    assert asyncio.run(record()) == 0
    playback = Playback(path, CLASS_BANDS)
    list(playback)
    assert len(playback.cache.pods) == 9
    assert not (tmp_path / ".day.jsonl.unfinished").exists()


def test_what_a_pod_group_may_lose_is_recorded() -> None:
    """A recorded group is priced as the live one was."""
    spec = {
        "schedulingPolicy": {"gang": {"minCount": 2}}, "disruptionMode": {"all": {}},
        "schedulingConstraints": {"topology": [{"key": "topology.kubernetes.io/zone"}]},
    }  # fmt: skip
    group = read({"kind": "PodGroup", "metadata": {"name": "g", "namespace": "n"}, "spec": spec})
    assert isinstance(group, PodGroupObject)
    written = {"kind": "PodGroup", **Anonymiser().written(group)}
    again = read(written)
    assert isinstance(again, PodGroupObject)
    assert (again.least, again.stops_whole) == (2, True)
    assert again.topology == ("topology.kubernetes.io/zone",)
