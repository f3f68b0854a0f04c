"""What the agent writes, when, and what it does where that fails."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("grpc")

from fake_apiserver import FakeApiserver, running, until
from fake_kubelet import UUIDS, FakeKubelet, allocatable, container, devices, make_machine
from fake_kubelet import pod as listed
from kube_objects import make_cache, node, pod

from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError
from flextopo.policies.agent import apiserver as connections
from flextopo.policies.agent import publishers
from flextopo.policies.agent.apiserver import Access, Apiserver, find_access
from flextopo.policies.agent.errors import ApiserverError
from flextopo.policies.agent.kubeconfig import read_kubeconfig
from flextopo.policies.agent.loop import Agent, retry_s
from flextopo.policies.agent.machine import read_machine
from flextopo.policies.agent.observer import Observer
from flextopo.policies.agent.pod_resources import Kubelet
from flextopo.policies.agent.publishers import (
    AnnotationPublisher,
    ObjectPublisher,
    format_numbers,
)
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.objects import GPU

GPUS, CORES = "flextopo/gpus", "flextopo/cores"


class Rig:
    """An agent between a fake kubelet and a fake apiserver."""

    def __init__(self, folder: Path) -> None:
        make_machine(folder, gpus=4)
        self.kubelet = FakeKubelet(folder / "kubelet.sock")
        self.server = FakeApiserver()
        self.server.put(node("n0", gpus=4, cpu=8))
        self.folder = folder
        self.lines: list[dict[str, Any]] = []
        self.now = 1000.0
        self.agents: list[Agent] = []

    def start(self, *kinds: type[Any]) -> Agent:
        """Make an agent, as after a start of its container."""
        connection = Apiserver(Access(self.server.url))
        observer = Observer(
            Kubelet(self.kubelet.socket),
            lambda: read_machine(self.folder, lambda _: None),
            clock=lambda: self.now,
        )
        agent = Agent(
            "n0",
            observer,
            [kind(connection, "n0") for kind in kinds or (ObjectPublisher,)],
            alive=self.folder / "alive",
            log=lambda event, **fields: self.lines.append({"event": event, **fields}),
            clock=lambda: self.now,
            draw=lambda: 0.5,
        )
        self.agents.append(agent)
        return agent

    async def round(self) -> list[str]:
        """Go round once, and return the calls that the apiserver got."""
        before = len(self.server.calls)
        await asyncio.to_thread(self.agents[-1].round)
        return self.server.calls[before:]

    async def attempt(self) -> float:
        return await asyncio.to_thread(self.agents[-1].attempt, 1.0)

    def held(self) -> dict[str, str]:
        """Return the written object's GPUs and cores that are held, and by whom."""
        document = self.server.get("FlexTopo", "n0")
        assert document is not None
        found = {entry["id"]: entry["attributes"] for entry in document["spec"]["nodes"]}
        return {name: about["usedBy"] for name, about in found.items() if "usedBy" in about}


def play(folder: Path, scenario: Callable[[Rig], Awaitable[None]]) -> None:
    async def run() -> None:
        rig = Rig(folder)
        try:
            async with running(rig.server):
                await scenario(rig)
        finally:
            for agent in rig.agents:
                agent.close()
            rig.kubelet.close()

    asyncio.run(run())


def test_only_changes_are_written(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.kubelet.pods = [listed("a", container(UUIDS[:1], [1, 2]))]
        rig.start()
        read = ["get nodes", "get flextopos"]
        assert await rig.round() == [*read, "create flextopos"]
        # Under this name the apiserver keeps who manages the fields.
        assert {caller.partition("/")[0] for caller in rig.server.callers} == {"flextopo-agent"}
        assert rig.held() == {"core-1": "batch/a", "core-2": "batch/a", "gpu-0": "batch/a"}
        document = rig.server.get("FlexTopo", "n0")
        assert document is not None
        owner = {"apiVersion": "v1", "kind": "Node", "name": "n0", "uid": "uid-n0"}
        assert document["metadata"]["ownerReferences"] == [owner]
        # kubelet lists in any order, and pods that hold nothing come and go.
        for pods in (rig.kubelet.pods, [listed("idle", container()), *rig.kubelet.pods]):
            rig.kubelet.pods = pods
            assert await rig.round() == []
        edges = document["spec"]["edges"]
        rig.kubelet.pods = [listed("b", container(UUIDS[3:4]))]
        assert await rig.round() == ["patch flextopos"]
        assert rig.held() == {"gpu-3": "batch/b"}
        assert (rig.server.get("FlexTopo", "n0") or {})["spec"]["edges"] == edges
        # Another agent after this one finds it as it should be.
        rig.start()
        assert await rig.round() == read
        assert await rig.round() == []
        rig.server.delete("FlexTopo", "n0")
        assert await rig.round() == []
        rig.now += publishers.RESYNC_S
        assert await rig.round() == [*read, "create flextopos"]
        # A Node that was registered anew is another owner.
        rig.server.put({**node("n0"), "metadata": {"name": "n0", "uid": "new"}})
        rig.now += publishers.RESYNC_S
        assert await rig.round() == [*read, "patch flextopos"]
        owners = (rig.server.get("FlexTopo", "n0") or {})["metadata"]["ownerReferences"]
        assert owners == [{**owner, "uid": "new"}]

    play(tmp_path, scenario)


def seen_by_the_service(rig: Rig, gpus: int) -> ClusterCache:
    """Return what the service knows of the node with a pod, and of how many GPUs its Node offers."""
    written = rig.server.get("FlexTopo", "n0")
    assert written is not None
    return make_cache([node("n0", gpus, 8), written, pod("a", "n0", cpu="2")])


def test_the_service_reads_what_the_agent_writes(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.kubelet.pods = [listed("a", container(UUIDS[1:2], [1, 5]))]
        rig.kubelet.offers = allocatable([1, 2, 3, 5, 6, 7])
        rig.start()
        await rig.round()
        cache = seen_by_the_service(rig, 4)
        state = cache.nodes.states["n0"]
        assert state.known
        # NUMA node 0 has CPUs 0, 1, 4, 5, of which 0 and 4 are reserved.
        assert state.counted.cores_free[:2].tolist() == [0, 4]
        assert state.counted.gpu_free == 0b1101
        assert cache.problems == {}

    play(tmp_path, scenario)


def test_a_pod_in_the_shared_pool_is_known_by_the_object_alone(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        # kubelet's CPU policy `none`: CPUs are told of no pod.
        rig.kubelet.pods = [listed("a", container(UUIDS[1:2]))]
        rig.start()
        await rig.round()
        state = seen_by_the_service(rig, 4).nodes.states["n0"]
        assert state.known
        assert (state.guessed, state.sure.gpu_free) == ([], 0b1101)
        assert state.counted.cores_free[:2].tolist() == [4, 4]

    play(tmp_path, scenario)


def test_with_an_unhealthy_gpu_all_of_a_node_is_still_known(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.kubelet.pods = [listed("a", container(UUIDS[1:2], [1, 5]))]
        rig.kubelet.offers = allocatable([1, 2, 3, 5, 6, 7], devices(GPU, UUIDS[:3], 0))
        rig.start()
        await rig.round()
        for offered in (3, 4):  # the Node may not have been updated yet
            state = seen_by_the_service(rig, offered).nodes.states["n0"]
            assert state.known
            assert (state.sure.gpu_free, state.unknown_gpus) == (0b0101, 0)
        # Another one is away that nobody tells of.
        cache = seen_by_the_service(rig, 2)
        assert cache.nodes.states["n0"].unknown_gpus == 1

    play(tmp_path, scenario)


def test_what_fails_is_tried_again_ever_more_rarely(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.kubelet.pods = [listed("a", container(UUIDS[:1]))]
        rig.start()
        rig.server.faults = {"create flextopos": 500}
        waits = [await rig.attempt() for _ in range(9)]
        assert waits == [1, 1, 1.5, 3, 6, 12, 24, 45, 45]
        # The same error is told once.
        (told,) = rig.lines
        assert told["about"].startswith("POST /apis/flextopo.baichuan-inc.com/v1alpha1/flextopos:")
        assert told["about"].endswith("status 500, fault; legal: 200 or 201")
        for fault, about in ((403, "status 403"), ("garbage", "JSON is malformed")):
            rig.server.faults = {"get flextopos": fault}
            await rig.attempt()
            assert about in rig.lines[-1]["about"]
        rig.server.faults = {}
        assert await rig.attempt() == 1
        assert rig.lines[-2]["event"] == "written"
        assert rig.lines[-1] == {"event": "recovered", "after": 11}
        assert rig.held() == {"gpu-0": "batch/a"}
        # What could not be written is read again first: it may have been, after all.
        rig.kubelet.pods = []
        rig.server.faults = {"patch flextopos": 409}
        await rig.attempt()
        rig.server.faults = {}
        assert await rig.round() == ["get nodes", "get flextopos", "patch flextopos"]
        assert rig.held() == {}

    play(tmp_path, scenario)


def test_a_kubelet_that_is_away_is_waited_for(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.kubelet.pods = [listed("a", container(UUIDS[:1]))]
        rig.start()
        await rig.attempt()
        rig.kubelet.stop()
        waits = [await rig.attempt() for _ in range(7)]
        assert waits == [1, 1, 1.5, 3, 3.75, 3.75, 3.75]
        assert rig.held() == {"gpu-0": "batch/a"}
        (tmp_path / "alive").unlink()
        rig.kubelet.pods = []
        rig.kubelet.start()
        assert await rig.attempt() == 1
        # It lives, and has believed no empty list.
        assert (tmp_path / "alive").exists()
        assert rig.held() == {"gpu-0": "batch/a"}
        assert rig.lines[-1] == {"event": "recovered", "after": 7}

    play(tmp_path, scenario)


def test_a_node_that_is_not_there(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.start()
        rig.server.delete("Node", "n0")
        await rig.attempt()
        assert "node 'n0' is not in the cluster; legal: the name of a Node" in str(rig.lines)

    play(tmp_path, scenario)


def test_waits_double_and_have_jitter_and_an_end() -> None:
    assert [retry_s(n, 60, 0.0) for n in (1, 2, 3, 10**6)] == [0.25, 0.5, 1.0, 30.0]
    assert retry_s(3, 60, 0.999) == pytest.approx(2.0, rel=0.01)


def annotations_of(server: FakeApiserver, name: str) -> dict[str, str]:
    document = server.get("Pod", f"batch/{name}")
    assert document is not None
    return dict(document["metadata"]["annotations"])


def test_annotations_of_pods(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        for name in ("a", "b", "slice", "idle"):
            rig.server.put(pod(name, "n0"))
        rig.server.put(pod("elsewhere", "n1", annotations={GPUS: "7"}))
        rig.kubelet.pods = [
            listed("a", container(UUIDS[2:3], [1, 2, 3]), container(UUIDS[:1], [7])),
            listed("b", container(cpus=[5])),
            listed("slice", container([UUIDS[1] + "::2"])),
            listed("idle", container()),
            listed("gone", container(UUIDS[3:4])),
        ]
        rig.start(AnnotationPublisher)
        # Two pages, since the fake gives three a page.
        reads = ["list pods", "list pods"]
        assert await rig.round() == [*reads, "patch pods", "patch pods"]
        assert annotations_of(rig.server, "a") == {GPUS: "0,2", CORES: "1-3,7"}
        assert annotations_of(rig.server, "b") == {CORES: "5"}
        assert annotations_of(rig.server, "slice") == annotations_of(rig.server, "idle") == {}
        assert annotations_of(rig.server, "elsewhere") == {GPUS: "7"}
        assert await rig.round() == []
        # Another agent finds them as they should be.
        rig.start(AnnotationPublisher)
        assert await rig.round() == reads
        # A pod that holds nothing any more is said to, and once.
        rig.kubelet.pods = [listed("b", container(cpus=[6])), listed("a", container())]
        assert await rig.round() == [*reads, "patch pods", "patch pods"]
        assert (annotations_of(rig.server, "a"), annotations_of(rig.server, "b")) == (
            {},
            {CORES: "6"},
        )
        rig.kubelet.pods.pop()
        assert await rig.round() == []

    play(tmp_path, scenario)


def test_a_pod_that_has_become_another_is_left_alone(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.server.put(pod("a", "n0"))
        rig.kubelet.pods = [listed("a", container(UUIDS[:1]))]
        rig.start(AnnotationPublisher, ObjectPublisher)
        rig.server.faults = {"patch pods": 409}
        assert await rig.attempt() == 1
        assert "status 409" in rig.lines[-1]["about"]
        rig.server.faults = {"patch pods": 404}
        assert await rig.attempt() == 1
        assert rig.held() == {"gpu-0": "batch/a"}
        assert annotations_of(rig.server, "a") == {}

    play(tmp_path, scenario)


def test_a_pod_that_is_back_between_two_looks_is_soon_annotated(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        rig.server.put(pod("a", "n0"))
        rig.kubelet.pods = [listed("a", container(UUIDS[:1]))]
        rig.start(AnnotationPublisher)
        await rig.round()
        # Another of that name, on the same GPU: kubelet lists no uid.
        rig.server.delete("Pod", "batch/a")
        rig.server.put(pod("a", "n0"))
        assert await rig.round() == []
        rig.now += 1.5 * publishers.RESYNC_PODS_S
        assert await rig.round() == ["list pods", "patch pods"]
        assert annotations_of(rig.server, "a") == {GPUS: "0", CORES: ""}

    play(tmp_path, scenario)


def test_numbers_are_written_as_the_service_reads_them() -> None:
    from flextopo.cluster.topology.captures.from_text import parse_cpu_list

    for numbers in ((), (3,), (0, 1, 2, 5), (0, 2, 3, 9, 10)):
        assert parse_cpu_list(format_numbers(numbers)) == numbers
    assert format_numbers((0, 1, 2, 5)) == "0-2,5"


def test_inside_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SERVICE_ACCOUNT", tmp_path)
    inside = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    with pytest.raises(FlextopoError, match="no cluster around; legal: inside a pod, or with KUBE"):
        find_access(inside)
    (tmp_path / "ca.crt").write_text(CERTIFICATE)
    access = find_access(inside)
    assert access.server == "https://[fd00::1]:6443"
    assert access.tls is not None
    assert access.tls.check_hostname
    with pytest.raises(ApiserverError, match="token: No such file or directory; legal: a file"):
        access.headers()
    # Tokens are replaced every hour.
    for token in ("first", "second"):
        (tmp_path / "token").write_text(token)
        assert access.headers() == {"Authorization": f"Bearer {token}"}


def kubeconfig(folder: Path, user: Any, server: str = "http://h:1/base") -> Path:
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": server, **TRUST}}],
        "users": [{"name": "u", "user": user}],
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_kubeconfig(tmp_path: Path) -> None:
    access = read_kubeconfig(kubeconfig(tmp_path, {"token": "t"}))
    assert (access.server, access.headers()) == ("http://h:1/base", {"Authorization": "Bearer t"})
    access = read_kubeconfig(kubeconfig(tmp_path, {"username": "u", "password": "p"}))
    assert access.headers() == {"Authorization": "Basic dTpw"}
    assert read_kubeconfig(kubeconfig(tmp_path, None)).headers() == {}
    access = read_kubeconfig(kubeconfig(tmp_path, {"tokenFile": "token"}, "https://h"))
    assert access.token_file == tmp_path / "token"
    assert access.tls is not None
    with pytest.raises(FlextopoError, match="user logs in with 'exec'; legal: a token or a certif"):
        find_access({"KUBECONFIG": str(kubeconfig(tmp_path, {"exec": {}}))})
    broken = {"client-certificate-data": "x", "client-key-data": "x"}
    with pytest.raises(FlextopoError, match="a certificate cannot be read"):
        read_kubeconfig(kubeconfig(tmp_path, broken, "https://h"))
    (tmp_path / "kubeconfig").write_text("current-context: none")
    with pytest.raises(FlextopoError, match="names no cluster; legal: a current-context"):
        read_kubeconfig(tmp_path / "kubeconfig")
    with pytest.raises(FlextopoError, match="No such file or directory; legal: a kubeconfig"):
        read_kubeconfig(tmp_path / "none")


def run_main(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["agent", *arguments])
    return int(stop.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--node-name", ""], "--node-name ''; legal: the name of a Node, here or in NODE_NAME"),
        (["--node-name", "a_b"], "--node-name 'a_b'; legal: the name of a Node"),
        (["--node-name", "n", "--write", "x"], "--write 'x'; legal: object, annotations, both"),
        (["--node-name", "n", "--interval-s", "0"], "--interval-s 0; legal: 0.1 to 60"),
        (["--node-name", "n", "--dry-run", "--socket", "none"], "none: No such file or directory"),
        (["--node-name", "n"], "no cluster around; legal: inside a pod, or with KUBECONFIG set"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "NODE_NAME"):
        monkeypatch.delenv(name, raising=False)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert run_main(*arguments) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"error: {message}")
    assert told.err.count("\n") == 1
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_dry_run_prints_the_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_machine(tmp_path)
    kubelet = FakeKubelet(tmp_path / "kubelet.sock")
    kubelet.pods = [listed("a", container(UUIDS[:1]))]
    options = ["--node-name", "n0", "--socket", str(kubelet.socket), "--root", str(tmp_path)]
    assert run_main(*options, "--dry-run") == 0
    kubelet.close()
    document = yaml.safe_load(capsys.readouterr().out)
    assert document["metadata"] == {"name": "n0"}
    assert "batch/a" in str(document)


def test_the_command_writes_until_it_is_told_to_end(tmp_path: Path) -> None:
    """The whole of it in a process of its own, without what would make it large."""

    async def scenario(rig: Rig) -> None:
        rig.kubelet.pods = [listed("a", container(UUIDS[:1], [1]))]
        rig.server.put(pod("a", "n0"))
        options = ["--socket", str(rig.kubelet.socket), "--root", str(tmp_path), "--write", "both"]
        config = kubeconfig(tmp_path, None, rig.server.url)
        code = (
            "import sys, flextopo.cli.app as app\n"
            "try:\n    app.main(sys.argv[1:])\n"
            "finally:\n    print(*sorted(sys.modules))"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, "agent", "--interval-s", "0.1", *options,
            env={**os.environ, "NODE_NAME": "n0", "KUBECONFIG": str(config)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            await until(lambda: annotations_of(rig.server, "a") == {GPUS: "0", CORES: "1"})
            rig.kubelet.pods = []
            await until(lambda: rig.held() == {})
        finally:
            process.send_signal(signal.SIGTERM)
            out, err = await process.communicate()
        assert process.returncode == 0, err
        assert [json.loads(line)["event"] for line in err.splitlines()] == ["written"] * 2
        heavy = {"numba", "networkx", "scipy", "torch", "lightkube", "httpx2", "prometheus_client"}
        assert not heavy & set(out.decode().split())

    play(tmp_path, scenario)


def test_a_loop_ends_at_once(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        agent, stop = rig.start(), threading.Event()
        thread = threading.Thread(target=agent.run, args=(60.0, stop))
        thread.start()
        await until(lambda: bool(rig.lines))
        stop.set()
        await asyncio.to_thread(thread.join, 5)
        assert not thread.is_alive()

    play(tmp_path, scenario)


CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBdDCCARugAwIBAgIUMDg3YXtBw0GZzR+37yUZiETif2cwCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjkwMjUxNTZaGA8yMTI2MTEwNTAyNTE1
NlowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABCds
3ZFgnH31WBYsdzXfe3cV96lIlexVNf3rwgLs3ofi+vt5a9ZNtGHFT6kfZN5KxgsT
J8u4FXf35Rg8i0PtJQ6jUzBRMB0GA1UdDgQWBBQ/lAVLZ/C4ANbq6Sh/7fhg192c
mTAfBgNVHSMEGDAWgBQ/lAVLZ/C4ANbq6Sh/7fhg192cmTAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0cAMEQCIFcWTTcwF3b/63SZJXYkCDiqtibhP2lMTYaT
DGMC/Ja0AiBxG9TgW80GptYIrFwPnYzfFgbRsA+swBLmDOefZ+hpmQ==
-----END CERTIFICATE-----
"""
TRUST = {"certificate-authority-data": base64.b64encode(CERTIFICATE.encode()).decode()}
