"""Whether a configuration of kube-scheduler can work: the extender, its certificates, its options."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from flextopo.cluster.errors import FlextopoError
from flextopo.policies.serving.findings import OK, PROBLEM, WARNING, Finding
from flextopo.policies.serving.objects import GPU

NAME = "scheduler configuration"
KIND = "KubeSchedulerConfiguration"
VERBS = ("filterVerb", "prioritizeVerb", "preemptVerb")
LEAST_TIMEOUT_S = 1.0
"""A selector has 200 ms, and the baseline may take a second."""
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?)(h|ms|m|us|µs|ns|s)")


@dataclass(frozen=True)
class SchedulerFile:
    """A configuration file and the extender in it that is this service.

    Attributes:
        path: of the file.
        config: what it says.
        extender: the entry of `extenders`, empty where there is none.
    """

    path: Path
    config: dict[str, Any]
    extender: dict[str, Any]

    @property
    def tls(self) -> dict[str, Any]:
        """Return the extender's `tlsConfig`."""
        return _mapping(self.extender.get("tlsConfig"))

    @property
    def host(self) -> str:
        """Return the host that kube-scheduler connects to."""
        return urlsplit(str(self.extender.get("urlPrefix", ""))).hostname or ""

    @property
    def server_name(self) -> str:
        """Return the name that the extender's certificate must have."""
        return str(self.tls.get("serverName") or self.host)


def read_scheduler_file(path: Path) -> SchedulerFile:
    """Read a KubeSchedulerConfiguration.

    Raises:
        FlextopoError: it cannot be read or is none.
    """
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise FlextopoError(f"{path}: {error.strerror}; legal: a {KIND}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())[:200]
        raise FlextopoError(f"{path}: no YAML ({told}); legal: a {KIND}") from None
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise FlextopoError(f"{path}: no {KIND}; legal: what kube-scheduler gets as --config")
    listed = config.get("extenders") or []
    extenders = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    ours = [one for one in extenders if "flextopo" in str(one)] or extenders[:1]
    extender = ours[0] if ours else {}
    _check_types(path, extender)
    return SchedulerFile(path, config, extender)


def _check_types(path: Path, extender: dict[str, Any]) -> None:
    """Refuse what kube-scheduler would not start with, and nothing can be said about."""
    prefix, resources = extender.get("urlPrefix", ""), extender.get("managedResources")
    try:
        urlsplit(str(prefix))
    except ValueError as error:
        raise FlextopoError(
            f"{path}: urlPrefix {str(prefix)[:80]!r}: {error}; legal: such as https://10.0.0.1:8443"
        ) from None
    if not isinstance(resources, list | None):
        raise FlextopoError(
            f"{path}: managedResources {str(resources)[:80]!r}; legal: a list of {{name: {GPU}}}"
        )
    for name, value in _mapping(extender.get("tlsConfig")).items():
        if name != "insecure" and not isinstance(value, str | None):
            raise FlextopoError(f"{path}: tlsConfig.{name} {str(value)[:80]!r}; legal: a text")


def check_scheduler_file(file: SchedulerFile) -> list[Finding]:
    """Return what is wrong with a configuration, or that nothing is."""
    if not file.extender:
        return [
            Finding(
                NAME, PROBLEM, f"{file.path} has no extender",
                "take deploy/scheduler/kube-scheduler.yaml",
            )
        ]  # fmt: skip
    found = [
        finding
        for check in (_check_connection, _check_address, _check_options, _check_files)
        for finding in check(file)
    ]
    return found or [Finding(NAME, OK, f"{file.path} can work")]


def _check_connection(file: SchedulerFile) -> list[Finding]:
    if _mapping(file.config.get("clientConnection")).get("kubeconfig"):
        return []
    return [
        Finding(
            NAME, PROBLEM, "clientConnection.kubeconfig is not set",
            "set it: with --config kube-scheduler ignores --kubeconfig",
        )
    ]  # fmt: skip


def _check_address(file: SchedulerFile) -> list[Finding]:
    prefix, found = str(file.extender.get("urlPrefix", "")), []
    if not prefix.startswith("https://") or not file.extender.get("enableHTTPS"):
        found.append(("urlPrefix or enableHTTPS asks for no TLS", "set https:// and true"))
    host = file.host
    if "CLUSTER_IP" in prefix:
        found.append(
            ("the address CLUSTER_IP is not filled in", "put the Service's clusterIP there")
        )
    elif host.endswith((".svc", ".cluster.local")):
        found.append(
            (
                f"the address is {host}, which a machine's resolver does not know",
                "put the Service's clusterIP there, and this name into tlsConfig.serverName",
            )
        )
    elif _is_address(host) and not file.tls.get("serverName"):
        found.append(
            ("tlsConfig.serverName is not set", "set the name in the extender's certificate")
        )
    return [Finding(NAME, PROBLEM, what, advice) for what, advice in found]


def _check_options(file: SchedulerFile) -> list[Finding]:
    extender, found = file.extender, []
    if missing := [verb for verb in VERBS if not extender.get(verb)]:
        found.append(Finding(NAME, PROBLEM, f"{', '.join(missing)} not set", "set all three"))
    if extender.get("nodeCacheCapable") is not True:
        advice = "set true: otherwise each request carries every pod whole"
        found.append(Finding(NAME, WARNING, "nodeCacheCapable is not true", advice))
    resources = [entry for entry in extender.get("managedResources") or () if _mapping(entry)]
    gpus = next((entry for entry in resources if entry.get("name") == GPU), None)
    if resources and gpus is None:
        advice = f"add {GPU}: pods with GPUs are not asked about"
        found.append(Finding(NAME, PROBLEM, f"managedResources lacks {GPU}", advice))
    if gpus is not None and gpus.get("ignoredByScheduler"):
        advice = "set false: with true kube-scheduler never preempts for them"
        found.append(Finding(NAME, PROBLEM, f"ignoredByScheduler is true for {GPU}", advice))
    timeout_s = _seconds(str(extender.get("httpTimeout", "5s")))
    if timeout_s is None or timeout_s < LEAST_TIMEOUT_S:
        what = f"httpTimeout is {extender.get('httpTimeout')}"
        found.append(Finding(NAME, PROBLEM, what, "set 2s: the baseline may take one"))
    return found


def _check_files(file: SchedulerFile) -> list[Finding]:
    found, elsewhere = [], []
    for key in ("ca", "cert", "key"):
        name = file.tls.get(f"{key}File")
        if not name:
            if not file.tls.get(f"{key}Data"):
                advice = "set it: the extender lets nobody in without a client certificate"
                found.append(Finding(NAME, PROBLEM, f"tlsConfig.{key}File is not set", advice))
        elif not Path(name).parent.is_dir():
            elsewhere.append(str(name))
        elif not Path(name).is_file():
            advice = "put it there (deploy/certificates)"
            found.append(Finding(NAME, PROBLEM, f"{name} is not there", advice))
    if elsewhere:
        what = f"{', '.join(elsewhere)}: not on this machine"
        found.append(Finding(NAME, WARNING, what, "look on kube-scheduler's machine"))
    return found


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _seconds(text: str) -> float | None:
    """Return the seconds of a duration as Go writes it, None if it is none."""
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
