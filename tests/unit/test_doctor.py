"""`flextopo doctor`: a sound cluster has no problem, and each stumble is found."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_apiserver import FakeApiserver, running
from kube_objects import flextopo, node, pod
from manifests import DEPLOY, documents

pytest.importorskip("lightkube")

from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.models import Cluster, User

from flextopo.cli.app import main
from flextopo.policies.serving.doctor import CRD, Doctor
from flextopo.policies.serving.findings import Finding
from flextopo.policies.serving.kube import connect
from flextopo.policies.serving.reader import Reader
from flextopo.policies.serving.scheduler_file import check_scheduler_file, read_scheduler_file

SPACE = "flextopo-system"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    script = ["sh", str(DEPLOY / "certificates" / "by-hand.sh"), str(folder)]
    subprocess.run(script, check=True, capture_output=True)
    return folder


def named(kind: str, name: str, namespace: str = SPACE, **more: Any) -> dict[str, Any]:
    labels = more.pop("labels", {})
    return {
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        **more,
    }


def time(**before: float) -> str:
    return (datetime.now(UTC) - timedelta(**before)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def sound(certificates: Path) -> FakeApiserver:
    """Return a cluster in which nothing is wrong."""
    server = FakeApiserver()
    held = pod("b0", "n0", status={"startTime": time(hours=2)})
    topology = flextopo("n0", {"b0": [0]})
    topology["metadata"]["creationTimestamp"] = time(hours=1)
    for document in (node("n0"), topology, held):
        server.put(document)
    crd = named("CustomResourceDefinition", CRD)
    del crd["metadata"]["namespace"]
    keys = ("tls.crt", "tls.key", "ca.crt")
    data = {key: base64.b64encode((certificates / key).read_bytes()).decode() for key in keys}
    slice_labels = {"kubernetes.io/service-name": "flextopo"}
    ready = {"conditions": {"ready": True}}
    running_since = {"state": {"running": {"startedAt": time(seconds=0)}}}
    scheduler = named(
        "Pod", "kube-scheduler-m", "kube-system", labels={"component": "kube-scheduler"},
        spec={"containers": [{"command": ["kube-scheduler", "--config=x"]}]},
        status={"phase": "Running", "containerStatuses": [running_since]},
    )  # fmt: skip
    extender = named(
        "Pod", "flextopo-1", labels={"app.kubernetes.io/component": "extender"},
        spec={"containers": []}, status={"phase": "Running"},
    )  # fmt: skip
    template = {"spec": {"containers": [{"args": ["serve", "--kube", "--controller"]}]}}
    lease = {"holderIdentity": "me", "renewTime": time(seconds=1)}
    for document in (
        crd,
        named("Service", "flextopo", spec={"clusterIP": "10.0.0.5"}),
        named("EndpointSlice", "flextopo-x", labels=slice_labels, endpoints=[ready, ready]),
        named("Secret", "flextopo-tls", data=data),
        scheduler | {"metadata": {**scheduler["metadata"], "uid": "uid-scheduler"}},
        extender | {"metadata": {**extender["metadata"], "uid": "uid-extender"}},
        named("Deployment", "flextopo-controller", spec={"template": template}),
        named("Lease", "flextopo-controller", spec=lease),
    ):
        server.put(document)
    server.texts["/version"] = json.dumps({"gitVersion": "v1.36.2"})
    metrics = 'flextopo_requests_total{status="200",verb="filter"} 12.0\n'
    server.texts[f"/api/v1/namespaces/{SPACE}/pods/flextopo-1:8081/proxy/metrics"] = metrics
    return server


def set_age(path: Path, age_s: float) -> None:
    at = datetime.now(UTC).timestamp() - age_s
    os.utime(path, (at, at))


def scheduler_file(folder: Path, certificates: Path, change: Callable[[Any], None]) -> Path:
    """Write the given configuration with its files on this machine, changed."""
    (config,) = documents("scheduler")
    (extender,) = config["extenders"]
    extender["urlPrefix"] = extender["urlPrefix"].replace("CLUSTER_IP", "10.0.0.5")
    for key in ("caFile", "certFile", "keyFile"):
        extender["tlsConfig"][key] = str(certificates / Path(extender["tlsConfig"][key]).name)
    change(config)
    path = folder / "kube-scheduler.yaml"
    path.write_text(yaml.safe_dump(config))
    set_age(path, 3600)
    return path


def examined(server: FakeApiserver, path: Path) -> list[Finding]:
    async def examine() -> list[Finding]:
        async with running(server):
            config = KubeConfig.from_one(cluster=Cluster(server=server.url), user=User())
            client = connect(config)
            doctor = Doctor(Reader(client), scheduler=read_scheduler_file(path))
            try:
                return await doctor.examine()
            finally:
                await client.close()  # type: ignore[no-untyped-call]

    return asyncio.run(examine())


def nothing(_: Any) -> None:
    pass


def test_a_sound_cluster_has_no_problem(tmp_path: Path, certificates: Path) -> None:
    server = sound(certificates)
    found = examined(server, scheduler_file(tmp_path, certificates, nothing))
    assert [str(finding) for finding in found if finding.state != "ok"] == []
    assert {finding.check for finding in found} >= {"certificates", "requests", "rights"}
    assert {call.split()[0] for call in server.calls} <= {"list", "get"}


def test_who_may_not_look_at_volumes_sees_the_rest(tmp_path: Path, certificates: Path) -> None:
    server = sound(certificates)
    server.faults["persistentvolumes"] = server.faults["persistentvolumeclaims"] = 403
    found = examined(server, scheduler_file(tmp_path, certificates, nothing))
    assert [str(finding) for finding in found if finding.state != "ok"] == []


def without(kind: str, key: str) -> Callable[[FakeApiserver], None]:
    return lambda server: server.delete(kind, key)


def changed(document: dict[str, Any]) -> Callable[[FakeApiserver], object]:
    return lambda server: server.put(document)


def text(path: str, said: str) -> Callable[[FakeApiserver], None]:
    return lambda server: server.texts.update({path: said})


def denied(right: str) -> Callable[[FakeApiserver], None]:
    return lambda server: server.denied.add(right)


def fault(resource: str, status: int) -> Callable[[FakeApiserver], None]:
    return lambda server: server.faults.update({resource: status})


def late(server: FakeApiserver) -> None:
    server.put(pod("b0", "n0", status={"startTime": time(minutes=5)}))


OLD_LEASE = {"holderIdentity": "me", "renewTime": time(minutes=1)}
METRICS = f"/api/v1/namespaces/{SPACE}/pods/flextopo-1:8081/proxy/metrics"
STUMBLES = {
    "no CRD": (without("CustomResourceDefinition", CRD), "problem: no custom resource"),
    "no FlexTopo": (without("FlexTopo", "n0"), "problem: nobody tells how 1 of 1 nodes"),
    "old FlexTopo": (late, "problem: 1 FlexTopo objects are older than pods there: n0"),
    "placements unknown": (
        changed(pod("b9", "n0")),
        "problem: nobody tells which GPUs or cores 1 pods hold: batch/b9",
    ),
    "a bad pod": (
        changed(pod("bad", "n0", cpu="much")),
        "problem: 1 objects cannot be used: Pod uid-bad",
    ),
    "no Service": (without("Service", f"{SPACE}/flextopo"), "problem: no Service flextopo"),
    "not ready": (
        changed(named("EndpointSlice", "flextopo-x", endpoints=[])),
        "problem: no extender is ready",
    ),
    "another address": (
        changed(named("Service", "flextopo", spec={"clusterIP": "10.0.0.6"})),
        "problem: kube-scheduler asks 10.0.0.5, the Service is at 10.0.0.6",
    ),
    "no secret": (without("Secret", f"{SPACE}/flextopo-tls"), "problem: no secret flextopo-tls"),
    "half a secret": (
        changed(named("Secret", "flextopo-tls", data={"tls.crt": "eA=="})),
        "problem: secret flextopo-tls lacks tls.key, ca.crt",
    ),
    "never asked": (text(METRICS, ""), "warning: no extender was ever asked"),
    "no Lease": (
        without("Lease", f"{SPACE}/flextopo-controller"),
        "problem: nobody holds the Lease",
    ),
    "old Lease": (
        changed(named("Lease", "flextopo-controller", spec=OLD_LEASE)),
        "problem: me has not renewed the Lease",
    ),
    "no controller": (
        without("Deployment", f"{SPACE}/flextopo-controller"),
        "warning: no controller, and kube-scheduler of this version does not ask",
    ),
    "no right": (
        denied("create pods/eviction"),
        "problem: 1 rights are missing: flextopo-controller: create pods/eviction of core",
    ),
    "no right that matters less": (denied("watch podgroups"), "warning: "),
    "no scheduler": (
        without("Pod", "kube-system/kube-scheduler-m"),
        "warning: no kube-scheduler is to be seen",
    ),
    "may not look": (
        fault("get secrets", 403),
        "warning: certificates could not be looked at: status 403",
    ),
}


@pytest.mark.parametrize("stumble", STUMBLES)
def test_stumbles_in_the_cluster_are_found(
    stumble: str, tmp_path: Path, certificates: Path
) -> None:
    server = sound(certificates)
    change, told = STUMBLES[stumble]
    change(server)
    found = examined(server, scheduler_file(tmp_path, certificates, nothing))
    bad = [str(finding) for finding in found if finding.state != "ok"]
    assert any(line.startswith(told) for line in bad), bad
    assert all("; " in line for line in bad)


def test_a_scheduler_that_was_not_restarted_is_found(tmp_path: Path, certificates: Path) -> None:
    path = scheduler_file(tmp_path, certificates, nothing)
    set_age(path, -60)
    found = examined(sound(certificates), path)
    (bad,) = [str(finding) for finding in found if finding.state != "ok"]
    assert bad.startswith("problem: kube-scheduler-m has run since")


def setting(*keys: str | int, to: Any) -> Callable[[Any], None]:
    def change(config: Any) -> None:
        for key in keys[:-1]:
            config = config[key]
        if to is None:
            del config[keys[-1]]
        else:
            config[keys[-1]] = to

    return change


EXTENDER = ("extenders", 0)
TLS = (*EXTENDER, "tlsConfig")
MISTAKES = {
    "kubeconfig": (setting("clientConnection", to=None), "clientConnection.kubeconfig is not set"),
    "no extender": (setting("extenders", to=[]), "has no extender"),
    "placeholder": (
        setting(*EXTENDER, "urlPrefix", to="https://CLUSTER_IP:8443"),
        "CLUSTER_IP is not filled in",
    ),
    "resolver": (
        setting(*EXTENDER, "urlPrefix", to="https://flextopo.flextopo-system.svc:8443"),
        "which a machine's resolver does not know",
    ),
    "no TLS": (setting(*EXTENDER, "urlPrefix", to="http://10.0.0.5:8443"), "asks for no TLS"),
    "no name": (setting(*TLS, "serverName", to=None), "tlsConfig.serverName is not set"),
    "no certificate": (setting(*TLS, "certFile", to=None), "tlsConfig.certFile is not set"),
    "elsewhere": (setting(*TLS, "keyFile", to="/no/such/client.key"), "not on this machine"),
    "slow bodies": (setting(*EXTENDER, "nodeCacheCapable", to=False), "nodeCacheCapable"),
    "ignored": (
        setting(*EXTENDER, "managedResources", 0, "ignoredByScheduler", to=True),
        "ignoredByScheduler is true",
    ),
    "not managed": (
        setting(*EXTENDER, "managedResources", 0, "name", to="x/y"),
        "managedResources lacks nvidia.com/gpu",
    ),
    "hasty": (setting(*EXTENDER, "httpTimeout", to="200ms"), "httpTimeout is 200ms"),
    "no verb": (setting(*EXTENDER, "preemptVerb", to=None), "preemptVerb not set"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_the_configuration_are_found(
    mistake: str, tmp_path: Path, certificates: Path
) -> None:
    change, told = MISTAKES[mistake]
    file = read_scheduler_file(scheduler_file(tmp_path, certificates, change))
    (finding,) = check_scheduler_file(file)
    assert told in finding.found
    assert finding.advice


def test_a_wrong_server_name_and_a_foreign_client_are_found(
    tmp_path: Path, certificates: Path
) -> None:
    wrong = setting(*TLS, "serverName", to="flextopo.elsewhere.svc")
    found = examined(sound(certificates), scheduler_file(tmp_path, certificates, wrong))
    (bad,) = [str(finding) for finding in found if finding.state != "ok"]
    assert "refused: hostname mismatch" in bad
    foreign = tmp_path / "foreign"
    script = ["sh", str(DEPLOY / "certificates" / "by-hand.sh"), str(foreign)]
    subprocess.run(script, check=True, capture_output=True)

    def change(config: Any) -> None:
        tls = config["extenders"][0]["tlsConfig"]
        tls["certFile"], tls["keyFile"] = str(foreign / "client.crt"), str(foreign / "client.key")

    found = examined(sound(certificates), scheduler_file(tmp_path, certificates, change))
    (bad,) = [str(finding) for finding in found if finding.state != "ok"]
    assert bad.startswith("problem: kube-scheduler's files and the extender's do not fit")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    return int(stop.value.code or 0)


def test_exit_statuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flextopo.cli import doctor

    found: list[Finding] = [Finding("x", "warning", "so it is", "do that")]
    monkeypatch.setattr(doctor, "_examine", lambda *_: found)
    assert run("doctor", "--kube") == 0
    assert capsys.readouterr().out == "warning: so it is; do that\n"
    found.append(Finding("y", "problem", "so it must not be", "do this"))
    assert run("doctor", "--kube", "--json", "-") == 1
    said = capsys.readouterr()
    assert [entry["state"] for entry in json.loads(said.out)] == ["warning", "problem"]
    assert said.err.splitlines()[-1] == "error: 1 problem"
    assert run("doctor") == 2
    monkeypatch.undo()
    (tmp_path / "x.yaml").write_text("kind: Pod")
    for path in ("x.yaml", "no.yaml"):
        assert run("doctor", "--kube", "--scheduler-config", str(tmp_path / path)) == 2


def test_a_cluster_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, {})))
    assert run("doctor", "--kube") == 2
    assert capsys.readouterr().err.startswith("error: no cluster: ")


@pytest.mark.parametrize(
    ("keys", "to", "told"),
    [
        (("urlPrefix",), "https://[::1", "urlPrefix 'https://[::1': Invalid IPv6 URL; legal: such"),
        (("managedResources",), 3, "managedResources '3'; legal: a list"),
        (("managedResources",), {"name": "x"}, "managedResources \"{'name': 'x'}\"; legal: a list"),
        (("tlsConfig", "caFile"), [1], "tlsConfig.caFile '[1]'; legal: a text"),
        (("tlsConfig", "certData"), 3, "tlsConfig.certData '3'; legal: a text"),
    ],
)
def test_a_scheduler_file_of_other_types_is_one_sentence(
    keys: tuple[str, ...], to: Any, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (config,) = documents("scheduler")
    setting("extenders", 0, *keys, to=to)(config)
    path = tmp_path / "kube-scheduler.yaml"
    path.write_text(yaml.safe_dump(config))
    assert run("doctor", "--kube", "--scheduler-config", str(path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: {told}")


@pytest.mark.parametrize("text", ["a: 2027-99-99", "[" * 20_000, "a: [", "\xff"])
def test_a_scheduler_file_that_is_no_yaml_is_one_sentence(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kube-scheduler.yaml"
    path.write_bytes(text.encode("latin-1"))
    assert run("doctor", "--kube", "--scheduler-config", str(path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: no YAML (")


def kubeconfig(folder: Path, user: Any) -> Path:
    """Write a kubeconfig of a cluster that does not answer."""
    path = folder / "config"
    server = {"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config = {
        "clusters": [server],
        "users": [{"name": "u", "user": user}],
        "contexts": [context],
        "current-context": "c",
    }
    path.write_text(yaml.safe_dump(config))
    return path


COMMANDS = [("doctor",), ("record", "--hours", "0.0003", "-o", "day.jsonl")]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("text", ["", "[1]", "a: [", "a: \0", "clusters: 3\ncontexts: []", "{}"])
def test_a_file_that_is_no_kubeconfig_is_one_sentence(
    text: str, command: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    assert run(*command, "--kube") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no cluster: ")
    assert "'clusters' is missing" in line if text == "{}" else f"{tmp_path}/config is no" in line
    assert line.endswith("legal: inside a pod, or with KUBECONFIG set to one kubeconfig")


@pytest.mark.parametrize("command", COMMANDS)
def test_several_kubeconfigs_are_told_apart_from_one(
    command: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    two = f"{tmp_path}/none:{kubeconfig(tmp_path, {})}"
    monkeypatch.setenv("KUBECONFIG", two)
    assert run(*command, "--kube") == 2
    line = capsys.readouterr().err
    assert two in line
    assert "legal: inside a pod, or with KUBECONFIG set to one kubeconfig" in line


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("version", "program", "told"),
    [
        ("v1", ["echo"], "apiVersion 'client.authentication.k8s.io/v1'; legal: client.authentic"),
        ("v1beta1", ["false"], "ConfigError: Exec false returned 1"),
        ("v1beta1", ["echo", "x"], "JSONDecodeError"),
        ("v1beta1", ["echo", "{}"], "KeyError: 'status'"),
    ],
)
def test_a_program_that_does_not_log_in_is_one_sentence(
    version: str, program: list[str], told: str, command: tuple[str, ...], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    login = {"command": program[0], "args": program[1:]}
    login["apiVersion"] = f"client.authentication.k8s.io/{version}"
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, {"exec": login})))
    assert run(*command, "--kube") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert told in line
