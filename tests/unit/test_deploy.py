"""The manifests: sound objects, and no more rights than the calls that the code makes."""

import asyncio
import json
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from fake_apiserver import FakeApiserver, running, until
from kube_objects import node, pod
from manifests import DEPLOY, Document, documents, objects

import flextopo
from flextopo.cli.app import app
from flextopo.policies.agent.options import WRITES, AgentOptions

pytest.importorskip("lightkube")

from controllers import WAITING, dying, make_client, make_controller, spread
from lightkube import codecs

from flextopo.policies.serving import leases
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.certificates import client_context, server_context, shake_hands
from flextopo.policies.serving.leases import Leadership
from flextopo.policies.serving.rights import CONTROLS
from flextopo.policies.serving.telemetry import Telemetry


def without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_empty(item) for key, item in value.items() if item not in ({}, [])}
    return [without_empty(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("folder", ["base", "controller", "agent", "agent-annotations", "crd"])
def test_every_field_is_one_of_the_api(folder: str) -> None:
    for document in documents(folder):
        if document["kind"] == "Kustomization":
            continue
        if document["kind"] == "CustomResourceDefinition":
            # The library writes a field of the schema's under another name.
            document = json.loads(json.dumps(document).replace("x-kubernetes-", "x_kubernetes_"))
        (typed,) = codecs.load_all_yaml(yaml.safe_dump(document))
        # A field that the API does not know would be lost on the way.
        known = typed.to_dict()  # type: ignore[no-untyped-call]
        assert without_empty(known) == without_empty(document), document["metadata"]


def rights(folder: str) -> set[str]:
    """Return the rights of a folder's roles, such as `list pods`."""
    return {
        f"{verb} {resource}"
        for role in objects("ClusterRole", folder) + objects("Role", folder)
        for rule in role["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_rights_are_exactly_the_calls_that_are_made() -> None:
    async def calls() -> set[str]:
        server = FakeApiserver()
        for document in [*spread(), WAITING]:
            server.put(document)
        async with running(server):
            controller = make_controller(server)
            leadership = Leadership(make_client(server), controller.telemetry)
            controller.leads, leadership.changed = leadership.held, controller.wake
            runs = (controller.attend, leadership.contend, controller.watch.follow)
            tasks = [asyncio.create_task(run()) for run in runs]
            await until(lambda: {"update leases", "create events"} <= set(server.calls))
            assert dying(server)
            for task in tasks:
                task.cancel()
                await asyncio.wait([task])
        return set(server.calls)

    made = asyncio.run(calls())
    watching = {call for call in made if call.split()[0] in ("list", "watch")}
    assert watching == rights("base")
    # Where there are devices to hold, see test_holds; nobody calls what stands for writing an allocation.
    held = {f"{right.verb} {right.resource}" for right in CONTROLS if right.optional}
    assert (made - watching) | held == rights("controller")
    assert {f"{right.verb} {right.resource}" for right in CONTROLS} == rights("controller")


def test_the_lease_is_the_one_that_the_role_names() -> None:
    (role,) = objects("Role", "controller")
    named = [rule for rule in role["rules"] if "resourceNames" in rule]
    assert [rule["resourceNames"] for rule in named] == [[leases.NAME]]


def test_api_groups_are_those_that_are_asked() -> None:
    from flextopo.policies.serving.kube import WATCHED

    infos = [kind._api_info for kind in WATCHED]
    asked = {(info.plural, info.resource.group) for info in infos}
    told = {
        (resource, group)
        for role in objects("ClusterRole", "base")
        for rule in role["rules"]
        for resource in rule["resources"]
        for group in rule["apiGroups"]
    }
    assert asked == told


def options_of(name: str) -> set[str]:
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    return {option for parameter in command.params for option in parameter.opts}


def test_arguments_are_options_of_serve() -> None:
    deployments = objects("Deployment", "base", "controller")
    assert len(deployments) == 2
    for deployment in deployments:
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        command, *arguments = container["args"]
        assert command == "serve"
        assert {argument.partition("=")[0] for argument in arguments} <= options_of("serve")
        ports = {port["containerPort"] for port in container["ports"]}
        told = {int(text) for text in re.findall(r"port=(\d+)", " ".join(arguments))}
        assert told == ports
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    for option in re.findall(r'"(--[a-z-]+)"', dockerfile):
        assert option in options_of("serve")


def test_pods_run_with_no_rights_on_their_machine() -> None:
    for deployment in objects("Deployment", "base", "controller"):
        spec = deployment["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"]
        assert {"readinessProbe", "livenessProbe"} <= set(container)


def test_names_and_ports_fit_together() -> None:
    (service,) = objects("Service", "base")
    (extender,) = objects("Deployment", "base")
    template = extender["spec"]["template"]
    assert extender["spec"]["replicas"] == 2
    assert service["spec"]["sessionAffinity"] == "ClientIP"
    labels = template["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert extender["spec"]["selector"]["matchLabels"].items() <= labels.items()
    accounts = {
        account["metadata"]["name"] for account in objects("ServiceAccount", "base", "controller")
    }
    for deployment in objects("Deployment", "base", "controller"):
        assert deployment["spec"]["template"]["spec"]["serviceAccountName"] in accounts
    bindings = objects("ClusterRoleBinding", "base", "controller")
    for binding in bindings + objects("RoleBinding", "controller"):
        assert {subject["name"] for subject in binding["subjects"]} <= accounts
    (policy,) = objects("NetworkPolicy", "base")
    allowed = {port["port"] for port in policy["spec"]["ingress"][0]["ports"]}
    assert allowed == {port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}


def test_kube_scheduler_is_told_what_the_service_is() -> None:
    (config,) = documents("scheduler")
    (extender,) = config["extenders"]
    (service,) = objects("Service", "base")
    name = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    # A machine's resolver knows no Service: an address stands in the one place, the name beside it.
    assert extender["urlPrefix"] == f"https://CLUSTER_IP:{service['spec']['ports'][0]['port']}"
    text = (DEPLOY / "scheduler" / "kube-scheduler.yaml").read_text()
    assert len(re.findall(r"^[^#\n]*CLUSTER_IP", text, re.MULTILINE)) == 1
    assert config["clientConnection"]["kubeconfig"] == "/etc/kubernetes/scheduler.conf"
    assert config["leaderElection"]["leaderElect"] is True
    assert extender["tlsConfig"]["serverName"] == name
    routes = {"filterVerb": "filter", "prioritizeVerb": "prioritize", "preemptVerb": "preempt"}
    assert {key: extender[key] for key in routes} == routes
    assert extender["ignorable"] is True
    assert extender["nodeCacheCapable"] is True
    (resource,) = extender["managedResources"]
    assert resource == {"name": "nvidia.com/gpu", "ignoredByScheduler": False}


def test_alerts_are_about_metrics_that_there_are() -> None:
    told = Telemetry(ClusterCache(), write=lambda line: None)
    # A counter with labels is told of from the first time on.
    told.answered("filter", 200, 0.001)
    known = set(re.findall(r"^# TYPE (\w+)", told.metrics().decode(), re.MULTILINE))
    (rules,) = objects("PrometheusRule", "monitoring")
    (group,) = rules["spec"]["groups"]
    named = set()
    for rule in group["rules"]:
        metrics = set(re.findall(r"\bflextopo_\w+", rule["expr"])) | set(
            re.findall(r"\bup\b", rule["expr"])
        )
        assert metrics, rule["alert"]
        named |= metrics - {"up"}
        assert rule["annotations"]["summary"]
        assert len(rule["annotations"]["description"]) > 80
        assert rule["expr"].count("(") == rule["expr"].count(")")
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert named <= known
    assert named >= {name for name in known if name.endswith(("_placements", "_objects"))}


def test_what_is_scraped_is_what_listens() -> None:
    (service,) = objects("Service", "monitoring")
    (monitor,) = objects("ServiceMonitor", "monitoring")
    (port,) = service["spec"]["ports"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] == port["name"]
    labels = monitor["spec"]["selector"]["matchLabels"]
    assert labels == service["metadata"]["labels"]
    (rules,) = objects("PrometheusRule", "monitoring")
    assert f'job="{service["metadata"]["name"]}"' in str(rules)
    for deployment in objects("Deployment", "base", "controller"):
        template = deployment["spec"]["template"]
        assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        (container,) = template["spec"]["containers"]
        assert port["port"] in [
            there["containerPort"]
            for there in container["ports"]
            if there["name"] == port["targetPort"]
        ]


def test_certificates_of_cert_manager_are_those_that_are_asked_for() -> None:
    certificates = {entry["metadata"]["name"]: entry for entry in documents("certificates")}
    issuers = {entry["metadata"]["name"] for entry in objects("Issuer", "certificates")}
    for entry in objects("Certificate", "certificates"):
        assert entry["spec"]["issuerRef"]["name"] in issuers
        assert entry["metadata"]["namespace"] == "flextopo-system"
    (config,) = documents("scheduler")
    server, client = (certificates[f"flextopo-{name}"]["spec"] for name in ("tls", "scheduler"))
    assert config["extenders"][0]["tlsConfig"]["serverName"] == server["dnsNames"][0]
    assert "server auth" in server["usages"]
    assert "client auth" in client["usages"]
    (extender,) = objects("Deployment", "base")
    secrets = [
        volume["secret"]["secretName"]
        for volume in extender["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    ]
    assert secrets == [server["secretName"]]
    authority = certificates["flextopo-ca"]["spec"]
    assert authority["isCA"] is True
    assert certificates["flextopo"]["spec"]["ca"]["secretName"] == authority["secretName"]


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("by-hand")
    script = ["sh", str(DEPLOY / "certificates" / "by-hand.sh"), str(folder)]
    said = subprocess.run(script, check=True, capture_output=True, text=True).stdout
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(re.findall(r"\b[a-z]+\.(?:crt|key)\b", said)) == set(made)
    page = (DEPLOY.parent / "docs" / "how-to" / "kube-scheduler.md").read_text()
    (table,) = re.findall(r"\| file \|.*?\n\n", page, re.DOTALL)
    assert set(re.findall(r"\b[a-z]+\.(?:crt|key)\b", table)) == set(made)
    assert set(re.findall(r"--from-file=\S+", page)) == set(re.findall(r"--from-file=\S+", said))
    subprocess.run(script, check=True, capture_output=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made
    return folder


def test_certificates_by_hand_let_kube_scheduler_in_and_nobody_else(by_hand: Path) -> None:
    ca, name = by_hand / "ca.crt", "flextopo.flextopo-system.svc"
    server = server_context(by_hand / "tls.crt", by_hand / "tls.key", ca)
    client = client_context(ca, by_hand / "client.crt", by_hand / "client.key")
    found = shake_hands(server, client, name)
    assert ("DNS", name) in found["subjectAltName"]
    with pytest.raises(ssl.SSLError, match=r"(?i)did not return a certificate"):
        shake_hands(server, client_context(ca), name)
    with pytest.raises(ssl.SSLError, match=r"(?i)hostname mismatch"):
        shake_hands(server, client, "flextopo.elsewhere.svc")
    # The server's own certificate is none of a client.
    with pytest.raises(ssl.SSLError, match=r"(?i)purpose"):
        shake_hands(server, client_context(ca, by_hand / "tls.crt", by_hand / "tls.key"), name)


def test_the_agents_rights_are_exactly_the_calls_that_it_makes(tmp_path: Path) -> None:
    pytest.importorskip("grpc")
    from fake_kubelet import UUIDS, FakeKubelet, container, make_machine
    from fake_kubelet import pod as listed

    from flextopo.policies.agent.apiserver import Access, Apiserver
    from flextopo.policies.agent.loop import Agent
    from flextopo.policies.agent.machine import read_machine
    from flextopo.policies.agent.observer import Observer
    from flextopo.policies.agent.pod_resources import Kubelet
    from flextopo.policies.agent.publishers import AnnotationPublisher, ObjectPublisher

    make_machine(tmp_path)
    kubelet = FakeKubelet(tmp_path / "kubelet.sock")

    async def calls(kind: type[Any]) -> set[str]:
        server = FakeApiserver()
        for document in (node("n0"), pod("a", "n0")):
            server.put(document)
        observer = Observer(Kubelet(kubelet.socket), lambda: read_machine(tmp_path, lambda _: None))
        async with running(server):
            agent = Agent("n0", observer, [kind(Apiserver(Access(server.url)), "n0")])
            for gpu in range(2):
                kubelet.pods = [listed("a", container(UUIDS[gpu : gpu + 1]))]
                await asyncio.to_thread(agent.round)
            agent.close()
        return set(server.calls)

    assert asyncio.run(calls(ObjectPublisher)) == rights("agent")
    assert asyncio.run(calls(AnnotationPublisher)) == rights("agent-annotations")
    kubelet.close()


def test_the_agent_runs_beside_its_kubelet() -> None:
    (daemon,) = objects("DaemonSet", "agent")
    (namespace,) = objects("Namespace", "agent")
    (account,) = objects("ServiceAccount", "agent")
    template = daemon["spec"]["template"]
    spec = template["spec"]
    (container,) = spec["containers"]
    name = daemon["metadata"]["namespace"]
    assert {namespace["metadata"]["name"], account["metadata"]["namespace"]} == {name}
    assert spec["serviceAccountName"] == account["metadata"]["name"]
    for binding in objects("ClusterRoleBinding", "agent", "agent-annotations"):
        subject = {"kind": "ServiceAccount", **account["metadata"]}
        assert binding["subjects"] == [subject]
    # kubelet's socket is a hostPath, which only this level allows.
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "privileged"
    command, *arguments = container["args"]
    assert command == "agent"
    assert {argument.partition("=")[0] for argument in arguments} <= options_of("agent")
    (alive,) = [a.partition("=")[2] for a in arguments if a.startswith("--alive=")]
    assert alive in container["livenessProbe"]["exec"]["command"][-1]
    # It sees the folder of the socket, which it may not write to, and nothing else of its machine.
    paths = [volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume]
    assert paths == [str(Path(AgentOptions().socket).parent)]
    mounts = {
        mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]
    }
    assert mounts == {paths[0]: True, "/tmp": False}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {entry["name"] for entry in container["env"]} == {
        "NODE_NAME",
        "POD_NAME",
        "POD_NAMESPACE",
    }
    assert template["metadata"]["labels"] == daemon["spec"]["selector"]["matchLabels"]
    (kustomization,) = objects("Kustomization", "agent-annotations")
    (patch,) = yaml.safe_load(kustomization["patches"][0]["patch"])
    assert patch["value"] in [f"--write={choice}" for choice in WRITES]


def json_schema(schema: Document) -> Document:
    """Return a schema of the apiserver's as plain JSON Schema."""
    plain: Document = {}
    for key, value in schema.items():
        if key == "properties":
            plain[key] = {name: json_schema(entry) for name, entry in value.items()}
        elif key == "items":
            plain[key] = json_schema(value)
        elif key == "x-kubernetes-int-or-string":
            plain["type"] = ["integer", "string"]
        elif not key.startswith("x-") and key != "nullable":
            plain[key] = value
    if schema.get("nullable"):
        kinds = plain["type"]
        plain["type"] = [*(kinds if isinstance(kinds, list) else [kinds]), "null"]
    return plain


def schema_nodes(schema: Document) -> Iterator[Document]:
    yield schema
    for entry in [*schema.get("properties", {}).values(), *filter(None, [schema.get("items")])]:
        yield from schema_nodes(entry)


def test_the_custom_resource_is_what_is_watched_and_its_schema_tells_good_from_bad() -> None:
    jsonschema = pytest.importorskip("jsonschema_rs")
    from flextopo.cluster.topology.flextopo import build_graph
    from flextopo.cluster.topology.model import preset
    from flextopo.cluster.topology.resource import to_resource
    from flextopo.policies.serving.kube import WatchedFlexTopo

    (definition,) = objects("CustomResourceDefinition", "crd")
    spec, info = definition["spec"], WatchedFlexTopo._api_info
    (version,) = spec["versions"]
    assert (spec["group"], version["name"], spec["names"]["kind"], spec["names"]["plural"]) == (
        info.resource.group, info.resource.version, info.resource.kind, info.plural,
    )  # fmt: skip
    assert spec["scope"] == "Cluster"
    assert definition["metadata"]["name"] == f"{info.plural}.{info.resource.group}"
    schema = version["schema"]["openAPIV3Schema"]
    for entry in schema_nodes(schema):
        # A schema that is not structural is refused.
        assert ("type" in entry) != ("x-kubernetes-int-or-string" in entry)
        assert "additionalProperties" not in entry
    check = jsonschema.validator_for(json_schema(schema)).is_valid
    good = to_resource(build_graph(preset("a100+islands"), "n0"))
    vertices = good["spec"]["nodes"]
    vertices[-1]["attributes"] |= {"usedBy": None, "memoryTotal": 24564, "temperature": "40"}
    vertices[-2]["attributes"] |= {"status": "shared", "usedBy": "a/b,c/d"}
    assert check(good)
    assert check({**good, "spec": {"nodes": [], "edges": None}})
    for place, value in (
        ("id", "core-01"), ("id", "core-1 "), ("type", "TPU"), ("attributes", {"status": "busy"}),
        ("attributes", {"usedBy": 1.5}),
    ):  # fmt: skip
        assert not check({**good, "spec": {"nodes": [{**vertices[-1], place: value}], "edges": []}})
    for spec in ({"nodes": []}, {"nodes": [], "edges": [{"source": "a", "target": "b"}]}, []):
        assert not check({**good, "spec": spec})


FOLDERS = {
    "base": {"Deployment", "Service", "NetworkPolicy"},
    "controller": {"Deployment", "Service", "NetworkPolicy"},
    "agent": {"DaemonSet", "CustomResourceDefinition", "NetworkPolicy"},
    "agent-annotations": {"DaemonSet", "CustomResourceDefinition", "NetworkPolicy"},
}


@pytest.mark.parametrize("folder", FOLDERS)
def test_kustomize_builds_it(folder: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    built = subprocess.run(
        ["kubectl", "kustomize", str(DEPLOY / folder)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    found = list(yaml.safe_load_all(built.stdout))
    images = re.findall(r"image: (\S+)", built.stdout)
    assert set(images) == {f"flextopo:{flextopo.__version__}"}
    assert {entry["kind"] for entry in found} >= FOLDERS[folder]
    assert ("--write=both" in built.stdout) == (folder == "agent-annotations")
