"""Look at a cluster for what usually goes wrong; nothing is changed."""

from __future__ import annotations

import base64
import re
import ssl
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2
from lightkube.core.exceptions import ConfigError

from flextopo.cluster.errors import FlextopoError
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.certificates import client_context, server_context, shake_hands
from flextopo.policies.serving.findings import OK, PROBLEM, WARNING, Finding, some
from flextopo.policies.serving.kube import (
    OPTIONAL,
    WATCHED,
    KubeWatch,
    WatchedFlexTopo,
    http_status,
)
from flextopo.policies.serving.leases import LEASE_S
from flextopo.policies.serving.leases import NAME as LEASE
from flextopo.policies.serving.objects import VOLUME_KINDS
from flextopo.policies.serving.reader import Document, Reader
from flextopo.policies.serving.rights import has_right, rights_needed
from flextopo.policies.serving.scheduler_file import SchedulerFile, check_scheduler_file

CRD = "flextopos.flextopo.baichuan-inc.com"
STALE_S = 600
"""A FlexTopo object that is older than this, with pods bound since, is written by nobody."""
EXPIRES_S = 14 * 86400
"""A certificate that ends so soon is to be renewed."""
ASKS_FOR_ALIGNMENT = (1, 38)
"""From this version on kube-scheduler asks extenders when only topology is in the way."""
_REQUESTS = re.compile(
    r'^flextopo_requests_total\{.*verb="(?:filter|prioritize|preempt)".*\} (\S+)$', re.MULTILINE
)


@dataclass
class Doctor:
    """Examines a cluster, check by check.

    Attributes:
        reader: of the cluster.
        namespace: of the service.
        scheduler: kube-scheduler's configuration, None where it is not given.
        findings: what was found so far.
    """

    reader: Reader
    namespace: str = "flextopo-system"
    scheduler: SchedulerFile | None = None
    findings: list[Finding] = field(default_factory=list)
    _now: datetime = field(default_factory=lambda: datetime.now(UTC))
    _version: tuple[int, int] = (0, 0)

    async def examine(self) -> list[Finding]:
        """Return what was found, in the order in which things depend on each other.

        Raises:
            FlextopoError: the cluster does not answer.
        """
        checks: dict[str, Callable[[], Awaitable[None]]] = {
            "apiserver": self._check_apiserver,
            "custom resource": self._check_crd,
            "placements": self._check_placements,
            "extender": self._check_extender,
            "certificates": self._check_certificates,
            "scheduler configuration": self._check_scheduler_file,
            "kube-scheduler": self._check_scheduler,
            "requests": self._check_requests,
            "controller": self._check_controller,
            "rights": self._check_rights,
        }
        for name, check in checks.items():
            try:
                await check()
            except httpx2.HTTPStatusError as error:
                why = f"{name} could not be looked at: status {http_status(error)}"
                self._say(name, WARNING, why, "ask with more rights")
            except (httpx2.HTTPError, OSError) as error:
                raise FlextopoError(f"no cluster: {error}; legal: one that answers") from None
        return self.findings

    def _say(self, check: str, state: str, found: str, advice: str = "") -> None:
        self.findings.append(Finding(check, state, found, advice))

    async def _check_apiserver(self) -> None:
        try:
            response = await self.reader.ask("/version")
        except (ConfigError, KeyError, ValueError) as error:
            # A program that a kubeconfig has run to log in may fail, or print no token.
            why = " ".join(f"{type(error).__name__}: {error}".split())
            raise FlextopoError(
                f"no cluster: its user cannot log in ({why}); legal: one who can"
            ) from None
        with suppress(KeyError, TypeError, ValueError):
            self._now = parsedate_to_datetime(response.headers["date"])
        about = response.json()
        numbers = re.match(r"v(\d+)\.(\d+)", about.get("gitVersion", ""))
        if numbers:
            self._version = (int(numbers[1]), int(numbers[2]))
        self._say("apiserver", OK, f"Kubernetes {about.get('gitVersion')}")

    async def _check_crd(self) -> None:
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{CRD}"
        if await self.reader.get(path) is None:
            advice = "kubectl apply -k deploy/crd"
            self._say("custom resource", PROBLEM, f"no custom resource {CRD}", advice)
        else:
            self._say("custom resource", OK, f"custom resource {CRD}")

    async def _check_placements(self) -> None:
        cache = ClusterCache(lambda: int(self._now.timestamp()))
        watch = KubeWatch(self.reader.client, cache)
        # (Volumes say nothing of placements, and not everybody may look at them.)
        for kind in [kind for kind, kept in WATCHED.items() if kept not in VOLUME_KINDS]:
            try:
                await watch._list(kind)
            except httpx2.HTTPStatusError as error:
                if kind not in OPTIONAL or http_status(error) != 404:
                    raise
        cache.refresh()
        self._say_of_nodes(cache)
        self._say_of_pods(cache)
        await self._check_ages(cache)

    def _say_of_nodes(self, cache: ClusterCache) -> None:
        states = cache.nodes.states
        flat = sorted(name for name, state in states.items() if not state.hardware.known)
        if not states:
            advice = "see that the device plugin runs"
            self._say("placements", PROBLEM, "no node offers GPUs", advice)
        elif flat:
            what = f"nobody tells how {len(flat)} of {len(states)} nodes with GPUs are built"
            advice = "see that what writes FlexTopo objects runs there"
            self._say("placements", PROBLEM, f"{what}: {some(flat)}", advice)
        else:
            self._say("placements", OK, f"{len(states)} nodes with GPUs, and how they are built")
        if cache.problems:
            told = [f"{place} ({why})" for place, why in sorted(cache.problems.items())]
            what = f"{len(told)} objects cannot be used: {some(told)}"
            self._say("placements", PROBLEM, what, "mend them; their nodes may be left out")

    def _say_of_pods(self, cache: ClusterCache) -> None:
        states = cache.nodes.states.values()
        unknown = sorted(pod.key for state in states for pod in state.guessed)
        if unknown:
            what = f"nobody tells which GPUs or cores {len(unknown)} pods hold: {some(unknown)}"
            advice = "see that the agent, or what writes flextopo/gpus, runs on their nodes"
            self._say("placements", PROBLEM, what, advice)
        else:
            held = sum(len(state.counted.records) for state in states)
            self._say("placements", OK, f"the placement of {held} pods, and of none is it unknown")

    async def _check_ages(self, cache: ClusterCache) -> None:
        bound: dict[str, int] = {}
        for pod in cache.pods.values():
            if pod.node and pod.gpus and not pod.finished:
                at = pod.bound_s or pod.start_s or 0
                bound[pod.node] = max(at, bound.get(pod.node, 0))
        info = WatchedFlexTopo._api_info.resource
        stale = []
        async for item in self.reader.items(f"/apis/{info.group}/{info.version}/flextopos"):
            written = _written(item["metadata"])
            since = bound.get(item["metadata"]["name"], 0)
            if written and written < min(since, self._now.timestamp() - STALE_S):
                stale.append(item["metadata"]["name"])
        if stale:
            what = f"{len(stale)} FlexTopo objects are older than pods there: {some(sorted(stale))}"
            advice = "see that what writes them still runs"
            self._say("placements", PROBLEM, what, advice)

    async def _check_extender(self) -> None:
        ours = f"/namespaces/{self.namespace}"
        service = await self.reader.get(f"/api/v1{ours}/services/flextopo")
        if service is None:
            what = f"no Service flextopo in namespace {self.namespace}"
            self._say("extender", PROBLEM, what, "kubectl apply -k deploy/base, or --namespace")
            return
        label = "kubernetes.io/service-name=flextopo"
        path = f"/apis/discovery.k8s.io/v1{ours}/endpointslices"
        ready = 0
        async for item in self.reader.items(path, labelSelector=label):
            for endpoint in item.get("endpoints") or []:
                ready += (endpoint.get("conditions") or {}).get("ready") is not False
        if ready:
            self._say("extender", OK, f"{ready} extenders are ready")
        else:
            advice = f"kubectl -n {self.namespace} get pods, and the log of one"
            self._say("extender", PROBLEM, "no extender is ready", advice)
        host = self.scheduler.host if self.scheduler else ""
        addresses = service["spec"].get("clusterIPs") or [service["spec"].get("clusterIP")]
        if re.fullmatch(r"[0-9.]+|[0-9a-f:]*:[0-9a-f:]*", host) and host not in addresses:
            what = f"kube-scheduler asks {host}, the Service is at {', '.join(map(str, addresses))}"
            self._say("extender", PROBLEM, what, "put that into urlPrefix")

    async def _check_certificates(self) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/secrets/flextopo-tls"
        secret = await self.reader.get(path)
        advice = "make it anew: deploy/certificates"
        if secret is None:
            self._say("certificates", PROBLEM, "no secret flextopo-tls", advice)
            return
        names = ("tls.crt", "tls.key", "ca.crt")
        data = secret.get("data") or {}
        if missing := [name for name in names if not data.get(name)]:
            what = f"secret flextopo-tls lacks {', '.join(missing)}"
            self._say("certificates", PROBLEM, what, advice)
            return
        # The standard library reads a key from a file only; the folder is for nobody else, and goes.
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in names]
            for file in files:
                file.write_bytes(base64.b64decode(data[file.name]))
            self._say_of_certificates(*files)

    def _say_of_certificates(self, certificate: Path, key: Path, ca: Path) -> None:
        name = f"flextopo.{self.namespace}.svc"
        name = self.scheduler.server_name if self.scheduler and self.scheduler.host else name
        try:
            server = server_context(certificate, key, ca)
            server.verify_mode = ssl.CERT_NONE
            found = shake_hands(server, client_context(ca), name)
        except OSError as error:
            what = f"the certificate in secret flextopo-tls is refused: {_reason(error)}"
            self._say("certificates", PROBLEM, what, "make it anew: deploy/certificates")
            return
        left_s = ssl.cert_time_to_seconds(found["notAfter"]) - self._now.timestamp()
        state, days = OK if left_s > EXPIRES_S else WARNING, int(left_s // 86400)
        advice = "" if state == OK else "renew it, and restart the extenders"
        what = f"secret flextopo-tls, for {name}, for {days} days more"
        self._say("certificates", state, what, advice)
        server.verify_mode = ssl.CERT_REQUIRED
        self._say_of_client(server, name)

    def _say_of_client(self, server: ssl.SSLContext, name: str) -> None:
        """Try the files of kube-scheduler's configuration, where they are on this machine."""
        tls = self.scheduler.tls if self.scheduler else {}
        given = [tls.get(f"{key}File") for key in ("ca", "cert", "key")]
        if not all(name and Path(name).is_file() for name in given):
            return
        ca, certificate, key = (Path(str(name)) for name in given)
        try:
            shake_hands(server, client_context(ca, certificate, key), name)
        except OSError as error:
            what = f"kube-scheduler's files and the extender's do not fit: {_reason(error)}"
            advice = "take ca, certificate and key of one authority (deploy/certificates)"
            self._say("certificates", PROBLEM, what, advice)
        else:
            self._say("certificates", OK, "the extender takes kube-scheduler's client certificate")

    async def _check_scheduler_file(self) -> None:
        if self.scheduler is not None:
            self.findings += check_scheduler_file(self.scheduler)

    async def _check_scheduler(self) -> None:
        label, seen = "component=kube-scheduler", 0
        async for pod in self.reader.items(
            "/api/v1/namespaces/kube-system/pods", labelSelector=label
        ):
            seen += 1
            self._say_of_scheduler(pod)
        if not seen:
            what = "no kube-scheduler is to be seen in kube-system"
            self._say("kube-scheduler", WARNING, what, "see yourself that it has --config")

    def _say_of_scheduler(self, pod: Document) -> None:
        name = pod["metadata"]["name"]
        container = pod["spec"]["containers"][0]
        arguments = [*(container.get("command") or []), *(container.get("args") or [])]
        if not any(argument.startswith("--config") for argument in arguments):
            what = f"{name} runs without --config, so it knows no extender"
            self._say("kube-scheduler", PROBLEM, what, "deploy/scheduler/kube-scheduler.yaml")
            return
        states = (pod.get("status") or {}).get("containerStatuses") or [{}]
        began = ((states[0].get("state") or {}).get("running") or {}).get("startedAt")
        if self.scheduler is None or not began:
            self._say("kube-scheduler", OK, f"{name} runs with a configuration")
            return
        changed = datetime.fromtimestamp(self.scheduler.path.stat().st_mtime, UTC)
        if datetime.fromisoformat(began) < changed:
            what = f"{name} has run since {began}, {self.scheduler.path} is of {changed:%FT%TZ}"
            self._say("kube-scheduler", PROBLEM, what, "restart it, and it reads the file")
        else:
            self._say("kube-scheduler", OK, f"{name} was started after {self.scheduler.path}")

    async def _check_requests(self) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        label, asked, seen = "app.kubernetes.io/component=extender", 0.0, 0
        async for pod in self.reader.items(path, labelSelector=label):
            if (pod.get("status") or {}).get("phase") != "Running":
                continue
            said = await self.reader.ask(f"{path}/{pod['metadata']['name']}:8081/proxy/metrics")
            seen += 1
            asked += sum(float(count) for count in _REQUESTS.findall(said.text))
        if asked:
            self._say("requests", OK, f"kube-scheduler has asked {asked:.0f} times")
        elif seen:
            advice = "create a pod with GPUs; then look into kube-scheduler's log for its address"
            self._say("requests", WARNING, "no extender was ever asked", advice)

    async def _check_controller(self) -> None:
        ours = f"/namespaces/{self.namespace}"
        deployment = await self.reader.get(f"/apis/apps/v1{ours}/deployments/flextopo-controller")
        if deployment is None:
            if (0, 0) < self._version < ASKS_FOR_ALIGNMENT:
                what = (
                    "no controller, and kube-scheduler of this version does not ask for alignment"
                )
                self._say("controller", WARNING, what, "kubectl apply -k deploy/controller")
            return
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        if "--shadow" in (container.get("args") or []):
            self._say("controller", WARNING, "the controller runs with --shadow", "it only logs")
            return
        path = f"/apis/coordination.k8s.io/v1{ours}/leases/{LEASE}"
        spec = ((await self.reader.get(path)) or {}).get("spec") or {}
        advice = f"kubectl -n {self.namespace} logs deployment/flextopo-controller, event lease"
        holder, renewed = spec.get("holderIdentity"), spec.get("renewTime")
        if not holder or not renewed:
            self._say("controller", PROBLEM, f"nobody holds the Lease {LEASE}", advice)
            return
        age_s = (self._now - datetime.fromisoformat(renewed)).total_seconds()
        if age_s > LEASE_S:
            what = f"{holder} has not renewed the Lease {LEASE} for {age_s:.0f} s"
            self._say("controller", PROBLEM, what, advice)
        else:
            self._say("controller", OK, f"{holder} holds the Lease {LEASE}")

    async def _check_rights(self) -> None:
        path = f"/apis/apps/v1/namespaces/{self.namespace}/deployments/flextopo-controller"
        needed = rights_needed(controller=await self.reader.get(path) is not None)
        missing = [
            right for right in needed if not await has_right(self.reader, self.namespace, right)
        ]
        for optional, state in ((False, PROBLEM), (True, WARNING)):
            names = [str(right) for right in missing if right.optional == optional]
            if names:
                what = f"{len(names)} rights are missing: {some(names)}"
                self._say(
                    "rights", state, what, "kubectl apply -k deploy/base or deploy/controller"
                )
        if not missing:
            self._say("rights", OK, f"all {len(needed)} rights are given")


def _written(meta: Document) -> float:
    """Return the Unix time at which an object was last written, 0 where it is not stated."""
    times = [entry.get("time") for entry in meta.get("managedFields") or []]
    stated = [time for time in [*times, meta.get("creationTimestamp")] if time]
    return max((datetime.fromisoformat(time).timestamp() for time in stated), default=0.0)


def _reason(error: OSError) -> str:
    said = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
    return str(said).replace("_", " ").lower()
