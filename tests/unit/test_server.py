"""The service as a process: start, TLS, a cluster behind it, and being killed."""

import asyncio
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fake_apiserver import FakeApiserver, running, until
from kube_objects import full_node, node, pod, preemptor

from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError
from flextopo.policies.serving.connections import HEADER_S
from flextopo.policies.serving.server import Listen
from flextopo.policies.serving.snapshot_file import load_snapshot
from flextopo.policies.serving.telemetry import Telemetry

PREEMPT = {
    "Pod": preemptor(2),
    "NodeNameToMetaVictims": {"n0": {"Pods": [{"UID": "uid-n0-b0"}], "NumPDBViolations": 0}},
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def serving(
    *arguments: str, environment: dict[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start the command line's service; yield it when it listens."""
    port = free_port()
    command = [sys.executable, "-m", "flextopo", "serve", "--port", str(port)]
    command += ["--selector", "greedy-cost", "--budget-ms", "60000", *arguments]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, env={**os.environ, **(environment or {})}
    )
    try:
        for _ in range(1500):
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
            except OSError:
                time.sleep(0.04)
        yield process, port
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    path = tmp_path / "snapshot.json"
    path.write_text(json.dumps({"kind": "List", "items": full_node()}))
    return path


def test_a_snapshot_is_served_until_the_process_is_told_to_stop(snapshot: Path) -> None:
    health = free_port()
    with serving("--snapshot", str(snapshot), "--health-port", str(health)) as (process, port):
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            answer = client.post("/preempt", json=PREEMPT)
            assert answer.status_code == 200
            assert len(answer.json()["NodeNameToMetaVictims"]["n0"]["Pods"]) == 2
        with httpx.Client(base_url=f"http://127.0.0.1:{health}") as client:
            assert client.get("/readyz").json() == {"ready": True}
            assert "flextopo_nodes 1.0" in client.get("/metrics").text
            assert client.post("/preempt", json=PREEMPT).status_code == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) in (0, -signal.SIGTERM)
        assert process.stderr is not None
        events = [json.loads(line) for line in process.stderr.read().splitlines()]
        told = [event["event"] for event in events if event["event"] != "compiling"]
        assert told == ["serving", "decision"]


def test_a_client_that_vanishes_and_a_body_that_is_cut_off_harm_nobody(snapshot: Path) -> None:
    with serving("--snapshot", str(snapshot)) as (_, port):
        for sent in (b"POST /preempt HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n{",
                     b"POST /preempt HTTP/1.1\r\nhost: x\r\ncontent-le", b"\x16\x03\x01rubbish\r\n\r\n"):  # fmt: skip
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(sent)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            huge = b'{"Pod": "' + b"x" * (10 * 2**20)
            assert client.post("/preempt", content=huge).status_code == 400
            assert client.post("/preempt", content=b"x" * (17 * 2**20)).status_code == 413
            assert client.post("/preempt", json=PREEMPT).status_code == 200


def test_killed_in_the_middle_it_starts_again_and_answers_the_same(snapshot: Path) -> None:
    answers = []
    for _ in range(2):
        with serving("--snapshot", str(snapshot)) as (process, port):
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                answers.append(client.post("/preempt", json=PREEMPT).json())
            with socket.create_connection(("127.0.0.1", port)) as connection:
                head = b"POST /preempt HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n{"
                connection.sendall(head)
                process.kill()
                process.wait()
                # kube-scheduler sees an error at once, and goes on by itself.
                connection.settimeout(5)
                with suppress(ConnectionResetError):
                    assert connection.recv(1) == b""
    assert answers[0] == answers[1]


def make_certificate(folder: Path, name: str, ca: str | None = None) -> tuple[Path, Path]:
    """Make a certificate and its key with openssl, signed by itself or by another."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    key, certificate = folder / f"{name}.key", folder / f"{name}.crt"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
               "-nodes", "-days", "2", "-subj", f"/CN={name}", "-keyout", str(key), "-out",
               str(certificate), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]  # fmt: skip
    if ca is None:
        command += ["-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"]
    else:
        command += ["-CA", str(folder / f"{ca}.crt"), "-CAkey", str(folder / f"{ca}.key")]
        command += ["-addext", "basicConstraints=critical,CA:FALSE"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and ca is not None:
        pytest.skip("openssl is too old to sign here")
    assert done.returncode == 0, done.stderr
    return certificate, key


def test_tls_with_client_certificates(snapshot: Path, tmp_path: Path) -> None:
    ca, _ = make_certificate(tmp_path, "ca")
    certificate, key = make_certificate(tmp_path, "server", "ca")
    client_certificate, client_key = make_certificate(tmp_path, "client", "ca")
    health = free_port()
    options = ["--snapshot", str(snapshot), "--tls-cert", str(certificate), "--tls-key", str(key)]
    options += ["--client-ca", str(ca), "--health-port", str(health)]
    with serving(*options) as (_, port):
        trusting = ssl.create_default_context(cafile=str(ca))
        with (
            pytest.raises(httpx.HTTPError),
            httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusting) as client,
        ):
            client.post("/preempt", json=PREEMPT)
        with pytest.raises(httpx.HTTPError):
            httpx.post(f"http://127.0.0.1:{port}/preempt", json=PREEMPT)
        trusting.load_cert_chain(client_certificate, client_key)
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trusting) as client:
            assert client.post("/preempt", json=PREEMPT).status_code == 200
        # The kubelet's probes have no certificate.
        assert httpx.get(f"http://127.0.0.1:{health}/readyz").status_code == 200


def test_a_cluster_is_watched_and_served(tmp_path: Path) -> None:
    pytest.importorskip("lightkube")

    async def ask(port: int, path: str, body: Any = None) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            return await (client.get(path) if body is None else client.post(path, json=body))

    async def scenario() -> None:
        server = FakeApiserver()
        server.faults["list pods"] = 500
        for document in full_node():
            server.put(document)
        async with running(server):
            config = tmp_path / "config"
            config.write_text(yaml.safe_dump(kubeconfig(server.url)))
            with serving("--kube", "--controller", environment={"KUBECONFIG": str(config)}) as (
                _,
                port,
            ):
                # Not ready, and no answer, before all has been seen.
                assert (await ask(port, "/readyz")).status_code == 503
                assert (await ask(port, "/preempt", PREEMPT)).status_code == 503
                server.faults.clear()
                for _ in range(200):
                    if (await ask(port, "/readyz")).status_code == 200:
                        break
                    await asyncio.sleep(0.05)
                answer = (await ask(port, "/preempt", PREEMPT)).json()
                assert len(answer["NodeNameToMetaVictims"]["n0"]["Pods"]) == 2
                assert "flextopo_watch_age_seconds" in (await ask(port, "/metrics")).text

    asyncio.run(scenario())


def test_a_controller_that_is_told_to_stop_gives_up_its_lease(tmp_path: Path) -> None:
    """Kubernetes sends SIGTERM; the process was gone before that, and the next one waited for 17 s."""

    async def scenario() -> None:
        server = FakeApiserver()
        async with running(server):
            config = tmp_path / "config"
            config.write_text(yaml.safe_dump(kubeconfig(server.url)))
            with serving("--kube", "--controller", environment={"KUBECONFIG": str(config)}) as (
                process,
                _,
            ):
                await until(lambda: bool(holder(server)))
                process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait, 15) == -signal.SIGTERM
                assert holder(server) == ""

    def holder(server: FakeApiserver) -> str:
        lease = server.get("Lease", "default/flextopo-controller") or {"spec": {}}
        return str(lease["spec"].get("holderIdentity", ""))

    asyncio.run(scenario())


def kubeconfig(url: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


def test_mistakes_are_one_sentence(
    snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    (tmp_path / "empty").write_text("")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = [
            (("--snapshot", str(tmp_path / "none.json")), "No such file"),
            (("--snapshot", str(tmp_path / "empty")), "no node with GPUs"),
            (("--snapshot", str(snapshot), "--kube"), "one of them"),
            (("--controller",), "--kube"),
            (("--kube",), "no cluster"),
            (("--budget-ms", "0"), "1 or more"),
            (("--selector", "nobody"), "unknown selector 'nobody'"),
            (("--selector", "oracle-lookahead"), "knows the future"),
            (("--tls-cert", "x"), "both"),
            (("--client-ca", "x"), "--tls-cert"),
            (("--tls-cert", "x", "--tls-key", "y"), "no such file"),
            (("--snapshot", str(snapshot), "--port", port), "cannot listen"),
            (("--port", "-1"), "legal: 0 to 65535"),
        ]
        for arguments, words in cases:
            assert run("serve", "--selector", "greedy-cost", *arguments) == 2, arguments
            error = capsys.readouterr().err.splitlines()[-1]
            assert error.startswith("error: "), arguments
            assert words in error, arguments


def test_keys_that_are_none_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("rubbish")
    from flextopo.policies.serving.server import _tls

    with pytest.raises(FlextopoError, match="legal: PEM files"):
        _tls(Listen(certificate=tmp_path / "a", key=tmp_path / "b"))


def test_snapshots_are_read_as_kubectl_writes_them(tmp_path: Path) -> None:
    items = full_node()
    documents = {
        "list.json": json.dumps({"apiVersion": "v1", "kind": "List", "items": items}),
        "array.json": json.dumps(items),
        "list.yaml": yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": items}),
        "documents.yaml": yaml.safe_dump_all(items),
        "one.json": json.dumps(node("n0")),
    }
    for name, text in documents.items():
        (tmp_path / name).write_text(text)
        state = load_snapshot(tmp_path / name).nodes.states["n0"]
        assert len(state.counted.records) == (0 if name == "one.json" else 8), name
        assert state.known is (name != "one.json")
    bare = pod("x", "n0")
    del bare["metadata"]["uid"], bare["metadata"]["namespace"]
    # Times that YAML would turn into dates stay text.
    text = yaml.safe_dump_all([node("n0"), bare]).replace(
        "'2027-01-15T07:00:00Z'", "2027-01-15T07:00:00Z"
    )
    (tmp_path / "bare.yaml").write_text(text)
    assert list(load_snapshot(tmp_path / "bare.yaml").pods) == ["default/x"]


BOMB = "\n".join(
    ["", *(f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'lol'] * 10)}]" for i in range(12))]
)
"""Aliases of aliases: ten lines of YAML, a terabyte of JSON."""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "truncated"),
        ("[1]", "Expected `object`"),
        ('{"kind": "Deployment", "metadata": {}}', "kind 'Deployment'; legal: Pod, Node"),
        ("a: [", "no YAML"),
        ("- a", "no object"),
        ("items: 3", "no list"),
        ("kind: Pod\nmetadata: {name: x}\nspec: {priority: high}", "priority"),
        (json.dumps([node("n0", gpus=17)]), "17 GPUs"),
        ("kind: Node\nmetadata: {name: n0}\nspec: " + BOMB, "aliases make it too large"),
        ("kind: Node\nmetadata: &m {name: n0, labels: *m}", "aliases make it too large"),
    ],
)
def test_bad_snapshots_are_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "s").write_text(text)
    with pytest.raises(FlextopoError) as error:
        load_snapshot(tmp_path / "s")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def half_open(port: int, count: int) -> list[socket.socket]:
    """Open connections that begin a request and never end it."""
    found = []
    for _ in range(count):
        one = socket.create_connection(("127.0.0.1", port), timeout=5)
        one.sendall(b"POST /preempt HTTP/1.1\r\nhost: x\r\n")
        found.append(one)
    return found


def test_half_open_connections_take_neither_port_down(snapshot: Path) -> None:
    health = free_port()
    with serving("--snapshot", str(snapshot), "--health-port", str(health)) as (_, port):
        url, beside = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{health}"
        open_ones = half_open(port, 700)
        try:
            # More than a port takes: the oldest go first, and whoever comes with a request is answered.
            for address in (url, beside):
                assert httpx.get(f"{address}/healthz", timeout=5).status_code == 200
            body = {"Pod": preemptor(2), "NodeNames": ["n0"]}
            assert httpx.post(f"{url}/filter", json=body, timeout=5).status_code == 200
            time.sleep(HEADER_S + 1)
            for one in open_ones:
                one.settimeout(1)
                with suppress(ConnectionError):
                    assert one.recv(1) == b""  # closed, and not just silent
        finally:
            for one in open_ones:
                one.close()


def test_health_answers_while_a_large_snapshot_is_decided_about(snapshot: Path) -> None:
    hardware = {"gpu_numa": [0] * 4 + [1] * 4, "numa_socket": [0, 1], "numa_cores": [32, 32]}
    names = [f"s{i}" for i in range(2000)]
    pods: list[dict[str, Any]] = [
        {"name": f"{name}-{i}", "gpus": 1, "cores": 7, "priority": 100, "node": name}
        for name in names
        for i in range(8)
    ]
    asking = {"name": "p", "gpus": 2, "cores": 14, "priority": 1000, "requirement": "guaranteed"}
    servers = [{"name": name, "hardware": hardware} for name in names]
    body = {"servers": servers, "pods": [*pods, asking], "preemptor": "p", "now_s": 10_000}
    health = free_port()
    with (
        serving("--snapshot", str(snapshot), "--health-port", str(health)) as (_, port),
        ThreadPoolExecutor(1) as beside,
    ):
        url = f"http://127.0.0.1:{port}/v1/decide"
        deciding = beside.submit(httpx.post, url, json=body, timeout=60)
        answered = 0
        while not deciding.done():
            assert httpx.get(f"http://127.0.0.1:{health}/healthz", timeout=5).status_code == 200
            answered += 1
        assert len(deciding.result().json()["victims"]) == 2
        assert answered >= 3


def test_odd_objects_are_left_out_and_told_of(tmp_path: Path) -> None:
    odd = [
        node("sliced", gpus=80),
        node("huge", cpu=40_000),
        node("milli", gpus=8) | {"status": {"allocatable": {"nvidia.com/gpu": "5m"}}},
        pod("slow", "n1", cpu="x"),
        {"kind": "ConfigMap", "metadata": {"name": "c"}},
        {"kind": "Pod", "metadata": {"name": "typo"}, "spec": {"priority": "high"}},
        7,
    ]
    (tmp_path / "s.json").write_text(json.dumps([*full_node(), *full_node("n1"), *odd]))
    cache = load_snapshot(tmp_path / "s.json")
    assert {name for name, state in cache.nodes.states.items() if not state.broken} == {"n0"}
    assert "batch/slow" in cache.nodes.states["n1"].broken
    told = " | ".join(f"{place}: {why}" for place, why in cache.problems.items())
    for words in ("sliced: ", "80 GPUs", "huge: ", "40000", "cpu: 'x'", "'ConfigMap'", "priority"):
        assert words in told
    lines: list[bytes] = []
    telemetry = Telemetry(cache, write=lines.append)
    telemetry.left_out()
    telemetry.left_out()
    assert len(lines) == len(cache.problems) == 6
    assert b"flextopo_bad_objects 6.0" in telemetry.metrics()


def test_the_shadow_report_compares_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], snapshot: Path
) -> None:
    log = tmp_path / "shadow.log"
    with serving("--snapshot", str(snapshot), "--shadow") as (process, port):
        two = {"Pods": [{"UID": "uid-n0-b0"}, {"UID": "uid-n0-b7"}], "NumPDBViolations": 0}
        body = {"Pod": preemptor(2), "NodeNameToMetaVictims": {"n0": two}}
        answer = httpx.post(f"http://127.0.0.1:{port}/preempt", json=body)
        assert answer.json()["NodeNameToMetaVictims"] == {"n0": two}
        process.terminate()
        process.wait(15)
        assert process.stderr is not None
        log.write_bytes(b"WARNING:  Invalid HTTP request received.\n" + process.stderr.read())
    assert run("shadow-report", str(log)) == 0
    out = capsys.readouterr().out
    assert "| decisions | 1 | 1 |" in out
    assert "|   level cross_socket | 1 | 0 |" in out
    assert "|   level socket | 0 | 1 |" in out
    assert "same node 1, same victims 0; fallbacks: none\nloss: what victims lose," in out
    # A controller decides where kube-scheduler was not asked.
    log.write_text(
        '{"event": "decision", "verb": "controller", "shadow": true, "outcome": "wait"}\n'
    )
    assert run("shadow-report", str(log)) == 2
    assert "no shadow decision beside kube-scheduler's" in capsys.readouterr().err
    log.write_text('{"event": "decision"}\n')
    assert run("shadow-report", str(log)) == 2
    assert "no shadow decision" in capsys.readouterr().err
    # Lines that other code of the process writes are passed over.
    log.write_text("rubbish\n[1]\n")
    assert run("shadow-report", str(log)) == 2
    assert "no shadow decision" in capsys.readouterr().err


WARMED_UP = """
import json, sys
from numba.core.dispatcher import Dispatcher
from flextopo.baselines.registry import make_selector
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.extender import Extender
from flextopo.policies.serving.server import warm_up
from flextopo.policies.serving.snapshot_file import load_snapshot
from flextopo.policies.serving.telemetry import Telemetry
from pathlib import Path

def compiled():
    modules = [module for name, module in sys.modules.items() if name.startswith("flextopo")]
    kernels = {id(one): one for module in modules for one in vars(module).values()}
    return {
        one.py_func.__name__: len(one.signatures)
        for one in kernels.values()
        if isinstance(one, Dispatcher)
    }

cache = load_snapshot(Path(sys.argv[1]))
decider = Decider(cache, make_selector("greedy-cost"), make_selector("flextopo-best-effort"), 60.0)
warm_up(decider)
before = compiled()
answer = Extender(decider, Telemetry(cache, write=len)).preempt(sys.argv[2].encode())
cache.refresh()
after = compiled()
print([name for name in after if after[name] != before.get(name, 0)], answer.decode())
"""


def test_no_kernel_is_compiled_for_the_first_answer(snapshot: Path) -> None:
    request = {**PREEMPT, "Pod": preemptor(2)}
    command = [sys.executable, "-c", WARMED_UP, str(snapshot), json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    late, _, answer = done.stdout.partition(" ")
    assert json.loads(answer)["NodeNameToMetaVictims"]["n0"]["Pods"]
    assert late == "[]"
