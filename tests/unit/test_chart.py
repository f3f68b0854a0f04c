"""The chart: what kustomize makes, rendered from the few forms of templates that it keeps to."""

import re
from typing import Any

import yaml
from manifests import DEPLOY, Document, documents

import flextopo


def render(text: str, values: Document) -> str:
    """Render the few forms of Helm's templates that the chart keeps to."""

    def found(path: str) -> str:
        value: Any = {"Values": values, "Release": {"Namespace": "flextopo-system"}}
        for part in path.split("."):
            value = value[part]
        return str(value)

    def kept(match: re.Match[str]) -> str:
        path, wanted, body = match.groups()
        return body if found(path) == (wanted or "True") else ""

    condition = r' *\{\{- if (?:eq )?\.([\w.]+)(?: "([^"]*)")? \}\}\n(.*?) *\{\{- end \}\}\n'
    text = re.sub(condition, kept, text, flags=re.DOTALL)
    text = re.sub(r"\{\{ \.([\w.]+) \}\}", lambda match: found(match[1]), text)
    return re.sub(r"\{\{`(.*?)`\}\}", r"\1", text)


def chart(**changes: Any) -> dict[tuple[str, str], Document]:
    folder = DEPLOY / "chart" / "flextopo"
    values = yaml.safe_load((folder / "values.yaml").read_text()) | changes
    text = "".join(
        "---\n" + render(path.read_text(), values)
        for path in sorted((folder / "templates").glob("*.yaml"))
    )
    return by_name([entry for entry in yaml.safe_load_all(text) if entry])


def by_name(found: list[Document]) -> dict[tuple[str, str], Document]:
    names = [(entry["kind"], entry["metadata"]["name"]) for entry in found]
    assert len(set(names)) == len(names)
    return dict(zip(names, found, strict=True))


def manifests(*folders: str) -> dict[tuple[str, str], Document]:
    """Return the objects of some folders as kustomize would, less the release's namespace and the CRD."""
    every = documents(*folders)
    found = [
        entry
        for entry in every
        if entry["kind"] != "Kustomization"
        and (entry["kind"], entry["metadata"]["name"]) != ("Namespace", "flextopo-system")
    ]
    patches = [patch for entry in every for patch in entry.get("patches", ())]
    for patch in patches:
        target = {"kind": patch["target"]["kind"], "name": patch["target"]["name"]}
        (entry,) = (
            one for one in found if {"kind": one["kind"], "name": one["metadata"]["name"]} == target
        )
        (change,) = yaml.safe_load(patch["patch"])
        assert (change["op"], change["path"]) == (
            "add",
            "/spec/template/spec/containers/0/args/-",
        )
        entry["spec"]["template"]["spec"]["containers"][0]["args"].append(change["value"])
    for entry in found:
        entry["metadata"].setdefault("labels", {})["app.kubernetes.io/name"] = "flextopo"
        if entry["kind"] in ("Deployment", "DaemonSet"):
            for container in entry["spec"]["template"]["spec"]["containers"]:
                container["image"] = f"{container['image']}:{flextopo.__version__}"
    return by_name(found)


def test_the_chart_is_what_kustomize_makes() -> None:
    assert chart() == manifests("base", "controller")
    alone = chart(controller={"enabled": False, "replicas": 2})
    assert alone == manifests("base")
    with_agent = chart(agent={"enabled": True})
    assert with_agent == manifests("base", "controller", "agent")
    assert with_agent.keys() - chart().keys() == manifests("agent").keys()


def test_the_chart_has_certificates_and_alerts_where_they_are_asked_for() -> None:
    with_all = chart(certificates={"mode": "cert-manager"}, monitoring={"enabled": True})
    more = by_name(documents("certificates", "monitoring"))
    for name, entry in with_all.items():
        labels = entry["metadata"].get("labels", {})
        if name in more and name[0] not in ("Service", "ServiceMonitor", "PrometheusRule"):
            assert labels.pop("app.kubernetes.io/name") == "flextopo"
            del entry["metadata"]["labels"]
    assert {name: with_all.get(name) for name in more} == more
    assert with_all.keys() - more.keys() == chart().keys()


def test_values_of_the_chart_reach_the_objects() -> None:
    image = {"repository": "registry.example/flextopo", "tag": "x"}
    found = chart(image=image, selector="flextopo", classBands="5000,20000", replicas=3)
    (agent,) = [
        entry["spec"]["template"]["spec"]["containers"][0]
        for (kind, _), entry in chart(image=image, agent={"enabled": True}).items()
        if kind == "DaemonSet"
    ]
    assert agent["image"] == "registry.example/flextopo:x"
    for name in ("flextopo", "flextopo-controller"):
        spec = found["Deployment", name]["spec"]
        (container,) = spec["template"]["spec"]["containers"]
        assert container["image"] == "registry.example/flextopo:x"
        assert {"--selector=flextopo", "--class-bands=5000,20000"} <= set(container["args"])
    assert found["Deployment", "flextopo"]["spec"]["replicas"] == 3


def test_the_chart_is_of_this_version_and_brings_the_crd() -> None:
    folder = DEPLOY / "chart" / "flextopo"
    about = yaml.safe_load((folder / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == flextopo.__version__
    crd = (folder / "crds" / "flextopos.yaml").read_text()
    assert crd == (DEPLOY / "crd" / "flextopos.yaml").read_text()
