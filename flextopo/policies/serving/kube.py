"""Follow a real cluster: list, watch, and list again when the watch cannot go on.

lightkube's client decodes straight into the structs of `objects`. Its higher-level `watch` has no
bookmarks and does not tell when a request begins or ends, so requests are made here: one that the
apiserver accepts, or ends as it was asked to, is a sign of life, which tells a quiet cluster from a
dead connection.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import httpx2
import msgspec
from lightkube.config.client_adapter import ConnectionParams
from lightkube.config.kubeconfig import DEFAULT_KUBECONFIG, KubeConfig, SingleConfig
from lightkube.core import resource as res
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.core.generic_client import ALL_NS, GenericAsyncClient, WatchDriver
from lightkube.generic_resource import create_api_info
from lightkube.models.core_v1 import ObjectReference
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.core_v1 import (
    Node,
    PersistentVolume,
    PersistentVolumeClaim,
    Pod,
    PodEviction,
    PodStatus,
)
from lightkube.resources.events_v1 import Event
from lightkube.resources.policy_v1 import PodDisruptionBudget
from lightkube.resources.scheduling_v1 import PriorityClass
from lightkube.resources.storage_v1 import StorageClass

from flextopo.cluster.errors import FlextopoError
from flextopo.policies.serving.objects import (
    BudgetObject,
    ClaimObject,
    FlexTopoObject,
    GangObject,
    KubeObject,
    NodeObject,
    PodGroupObject,
    PodObject,
    PriorityClassObject,
    SliceObject,
    StorageClassObject,
    VolcanoGroupObject,
    VolumeClaimObject,
    VolumeObject,
    ZonesObject,
)
from flextopo.policies.serving.records import ATTENDED, PodRecord, attended
from flextopo.policies.serving.telemetry import Telemetry

WATCH_S = 15
"""Seconds of one watch request; its end shows that the stream lives, whether anything happened or not."""
SILENCE_S = 2 * WATCH_S
"""A stream that says nothing for so long is taken for dead."""
TOO_OLD_S = 3 * SILENCE_S
"""Knowledge so old makes the service not ready; well before, the baseline decides."""
PAGE = 500
"""Objects a page of a list."""
RETRY_S = (0.2, 5.0)
"""Shortest and longest wait after an error; it doubles in between."""
WOKEN = "flextopo/woken"
"""Annotation that is written to have kube-scheduler look at a pod again."""
LOGINS = ("client.authentication.k8s.io/v1beta1", "client.authentication.k8s.io/v1alpha1")
"""Versions of what a program that logs in says."""
ABSENT_S = 30.0
"""Wait before a kind that the cluster does not have is asked for again."""


class WatchedPod(res.NamespacedResourceG, PodObject):
    """Pods of all namespaces."""

    _api_info = Pod._api_info


class WatchedNode(res.GlobalResource, NodeObject):
    """Nodes."""

    _api_info = Node._api_info


class WatchedFlexTopo(res.GlobalResource, FlexTopoObject):
    """FlexTopo objects."""

    _api_info = create_api_info("flextopo.baichuan-inc.com", "v1alpha1", "FlexTopo", "flextopos")


class WatchedBudget(res.NamespacedResourceG, BudgetObject):
    """PodDisruptionBudgets of all namespaces."""

    _api_info = PodDisruptionBudget._api_info


class WatchedPriorityClass(res.GlobalResource, PriorityClassObject):
    """PriorityClasses."""

    _api_info = PriorityClass._api_info


class WatchedPodGroup(res.NamespacedResourceG, PodGroupObject):
    """PodGroups of all namespaces."""

    _api_info = create_api_info("scheduling.x-k8s.io", "v1alpha1", "PodGroup", "podgroups")


class WatchedGang(res.NamespacedResourceG, GangObject):
    """PodGroups of Kubernetes itself."""

    _api_info = create_api_info("scheduling.k8s.io", "v1beta1", "PodGroup", "podgroups")


class WatchedVolcanoGroup(res.NamespacedResourceG, VolcanoGroupObject):
    """PodGroups of Volcano."""

    _api_info = create_api_info("scheduling.volcano.sh", "v1beta1", "PodGroup", "podgroups")


class WatchedSlice(res.GlobalResource, SliceObject):
    """ResourceSlices."""

    _api_info = create_api_info("resource.k8s.io", "v1", "ResourceSlice", "resourceslices")


class WatchedClaim(res.NamespacedResourceG, ClaimObject):
    """ResourceClaims of all namespaces."""

    _api_info = create_api_info("resource.k8s.io", "v1", "ResourceClaim", "resourceclaims")


class WatchedZones(res.GlobalResource, ZonesObject):
    """NodeResourceTopologies."""

    _api_info = create_api_info(
        "topology.node.k8s.io", "v1alpha2", "NodeResourceTopology", "noderesourcetopologies"
    )


class WatchedVolumeClaim(res.NamespacedResourceG, VolumeClaimObject):
    """PersistentVolumeClaims of all namespaces."""

    _api_info = PersistentVolumeClaim._api_info


class WatchedVolume(res.GlobalResource, VolumeObject):
    """PersistentVolumes."""

    _api_info = PersistentVolume._api_info


class WatchedStorageClass(res.GlobalResource, StorageClassObject):
    """StorageClasses."""

    _api_info = StorageClass._api_info


class PatchedPod(res.NamespacedSubResource, PodObject):
    """The status of a pod."""

    _api_info = PodStatus._api_info


WATCHED: dict[type[Any], type[KubeObject]] = {
    WatchedPriorityClass: PriorityClassObject,
    WatchedNode: NodeObject,
    WatchedFlexTopo: FlexTopoObject,
    WatchedBudget: BudgetObject,
    WatchedZones: ZonesObject,
    WatchedSlice: SliceObject,
    WatchedClaim: ClaimObject,
    WatchedPodGroup: PodGroupObject,
    WatchedGang: GangObject,
    WatchedVolcanoGroup: VolcanoGroupObject,
    WatchedVolumeClaim: VolumeClaimObject,
    WatchedVolume: VolumeObject,
    WatchedStorageClass: StorageClassObject,
    WatchedPod: PodObject,
}
"""What is listed and watched, and the kind it is kept as."""

OPTIONAL = tuple(
    kind
    for kind in WATCHED
    if kind not in (WatchedPod, WatchedNode, WatchedBudget, WatchedPriorityClass)
)
"""Kinds that a cluster may lack."""


def connect(config: KubeConfig | None = None) -> GenericAsyncClient:
    """Return a client of the cluster around, or of the kubeconfig file's.

    Raises:
        FlextopoError: neither tells of a cluster.
    """
    try:
        params = ConnectionParams(timeout=httpx2.Timeout(10.0))
        client = GenericAsyncClient(params, config, field_manager="flextopo")
    except (ConfigError, OSError, ValueError) as error:
        why = str(error)
    except KeyError as error:
        why = f"{error} is missing"
    except Exception as error:  # noqa: BLE001  anything may stand in the file
        told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        why = f"{os.environ.get('KUBECONFIG', DEFAULT_KUBECONFIG)} is no kubeconfig ({told})"
    else:
        _check_login(client.config)
        return client
    raise FlextopoError(
        f"no cluster: {why}; legal: inside a pod, or with KUBECONFIG set to one kubeconfig"
    )


def _check_login(config: SingleConfig | None) -> None:
    """Refuse a program to log in that lightkube would refuse at the first request."""
    program = config.user.exec if config and config.user else None
    if program is not None and program.apiVersion not in LOGINS:
        raise FlextopoError(
            f"no cluster: its user's exec has apiVersion {program.apiVersion!r}; "
            f"legal: {' or '.join(LOGINS)}"
        )


class Store(Protocol):
    """What a watch keeps in step with a cluster: a `ClusterCache`, or what writes a recording."""

    def put(self, obj: KubeObject) -> None:
        """Add or change an object."""

    def remove(self, obj: KubeObject) -> None:
        """Remove an object."""

    def replace(self, kind: type[KubeObject], objects: Iterable[KubeObject]) -> None:
        """Take a fresh list of all objects of a kind."""

    def lack(self, kind: type[KubeObject]) -> None:
        """Remember that nobody tells of a kind."""

    def refresh(self) -> None:
        """Work out what has changed."""


@dataclass
class KubeWatch:
    """Keeps a cache in step with a cluster.

    Attributes:
        client: of the cluster.
        cache: kept in step.
        telemetry: told of errors.
        changed: called after every change.
        noted: called before that.
        told_time: is told the Unix time in seconds that an answer of the apiserver states.
        trouble: the last error, empty for none.
    """

    client: GenericAsyncClient
    cache: Store
    telemetry: Telemetry | None = None
    changed: Callable[[], None] = lambda: None
    noted: Callable[[], None] = lambda: None
    told_time: Callable[[int], None] = lambda now_s: None
    trouble: str = ""
    _version: dict[type[Any], str | None] = field(default_factory=dict)
    _alive_at: dict[type[Any], float] = field(default_factory=dict)
    _asked_at: dict[type[Any], float] = field(default_factory=dict)
    _lacking: set[type[Any]] = field(default_factory=set)
    _since: float = field(default_factory=time.monotonic)

    def ready(self) -> bool:
        """Say whether every kind has been listed once."""
        return len(self._alive_at) == len(WATCHED)

    def age_s(self) -> float:
        """Return for how long the quietest of the watches has given no sign of life, in seconds."""
        oldest = min(self._alive_at.values()) if self.ready() else self._since
        return time.monotonic() - oldest

    def is_fresh(self) -> bool:
        """Say whether the cluster is known, and not as it was long ago."""
        return self.ready() and self.age_s() <= TOO_OLD_S

    async def follow(self) -> None:
        """Follow all kinds until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for kind in WATCHED:
                    group.create_task(self._follow(kind))
        finally:
            await self.client.close()  # type: ignore[no-untyped-call]

    async def _follow(self, kind: type[Any]) -> None:
        wait_s, expired = RETRY_S[0], False
        while True:
            try:
                if self._version.get(kind) is None:
                    await self._list(kind)
                async for _ in self._watch(kind):
                    wait_s, expired = RETRY_S[0], False
                if self._ended_early(kind):
                    await asyncio.sleep(RETRY_S[0])
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001  nothing may end the watch
                status = http_status(error)
                # Rights for what the cluster may lack may be lacking as well.
                unread = kind not in self._alive_at or kind in self._lacking
                absent = status == 404 or (status == 403 and unread)
                if absent and kind in OPTIONAL:
                    self._lacking.add(kind)
                    self.cache.lack(WATCHED[kind])
                    self._alive(kind)
                    await self._sleep_as_absent(kind)
                    continue
                self._tell(kind, error)
                # What cannot be resumed, or not be read, is listed again.
                if status == 410 or isinstance(error, msgspec.MsgspecError):
                    self._version[kind] = None
                if status == 410 and not expired:
                    # An apiserver that was started anew is back: however long it was away, it answers.
                    wait_s, expired = RETRY_S[0], True
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_S[1])

    async def _sleep_as_absent(self, kind: type[Any]) -> None:
        """Wait; that a kind is absent stays true meanwhile."""
        until = time.monotonic() + ABSENT_S
        while time.monotonic() < until:
            await asyncio.sleep(1.0)
            self._alive(kind)

    async def _list(self, kind: type[Any]) -> None:
        namespace = ALL_NS if issubclass(kind, res.NamespacedResourceG) else None
        request = self.client.prepare_request(
            "list", kind, namespace=namespace, params={"limit": str(PAGE)}
        )
        objects: list[KubeObject] = []
        pages = [page async for page in self.client.list_chunks(request)]
        for _, page in pages:
            objects += page
        self._version[kind] = pages[-1][0]
        self.cache.replace(WATCHED[kind], objects)
        self._lacking.discard(kind)
        self._alive(kind)
        if self.ready():
            self.cache.refresh()
            # What was listed mostly stays: the collector would walk it in the middle of a request.
            gc.freeze()
        self._changed()

    async def _watch(self, kind: type[Any]) -> AsyncIterator[str]:
        """Apply events as they come; yield what each was."""
        namespace = ALL_NS if issubclass(kind, res.NamespacedResourceG) else None
        params = {
            "timeoutSeconds": str(WATCH_S),
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version[kind],
        }
        request = self.client.prepare_request(
            "list", kind, namespace=namespace, watch=True, params=params
        )
        async for event, obj in self._events(kind, request):
            if event in ("ADDED", "MODIFIED"):
                self.cache.put(obj)
            elif event == "DELETED":
                self.cache.remove(obj)
            self._version[kind] = obj.metadata.resourceVersion
            self._alive(kind)
            if event != "BOOKMARK":
                self._changed()
            yield event

    async def _events(self, kind: type[Any], request: Any) -> AsyncIterator[tuple[str, Any]]:
        """Yield the events of one watch request."""
        driver = WatchDriver(request, self.client._client.build_request)
        self._asked_at[kind] = time.monotonic()
        async with asyncio.timeout(SILENCE_S) as limit:
            timeout = httpx2.Timeout(10.0, read=None)
            ask = driver.get_request(timeout=timeout)  # type: ignore[no-untyped-call]
            response = await self.client.send(ask, stream=True)  # type: ignore[no-untyped-call]
            try:
                response.raise_for_status()
                self._read_time(response.headers.get("date", ""))
                self._alive(kind)
                async for line in response.aiter_lines():
                    limit.reschedule(asyncio.get_running_loop().time() + SILENCE_S)
                    yield driver.process_one_line(line)  # type: ignore[no-untyped-call]
            finally:
                await response.aclose()
        self._alive(kind)

    def _read_time(self, date: str) -> None:
        """Take note of the apiserver's time, which each answer states and may be minutes from ours."""
        with suppress(ValueError, OverflowError):
            self.told_time(int(parsedate_to_datetime(date).timestamp()))

    def _ended_early(self, kind: type[Any]) -> bool:
        """Say whether a watch ended at once: it must not be asked for again without a pause."""
        return time.monotonic() - self._asked_at[kind] < RETRY_S[0]

    def _changed(self) -> None:
        if self.telemetry is not None:
            self.telemetry.left_out()
        self.noted()
        self.changed()

    def _alive(self, kind: type[Any]) -> None:
        self._alive_at[kind] = time.monotonic()

    def _tell(self, kind: type[Any], error: Exception) -> None:
        self.trouble = f"{type(error).__name__}: {error}"
        if self.telemetry is not None:
            self.telemetry.log("watch_error", kind=WATCHED[kind].__name__, error=self.trouble)

    async def nominate(self, pod: PodRecord, node: str, now_s: int) -> None:
        """Write a pod's `status.nominatedNodeName`, if nobody has changed the pod meanwhile.

        An extender elsewhere, which kube-scheduler asks at the same moment, learns that it is attended to, and
        where: a nomination that kube-scheduler did not make it takes back.

        Args:
            pod: as it was when the node was chosen.
            node: name of the node.
            now_s: Unix time.

        Raises:
            httpx2.HTTPError: the apiserver refused, with status 409 if somebody has.
        """
        patch = {
            "metadata": {
                "uid": pod.uid,
                "resourceVersion": str(pod.version),
                "annotations": {ATTENDED: attended(node, now_s)},
            },
            "status": {"nominatedNodeName": node},
        }
        changed = await self._patch_status(pod.namespace, pod.name, patch)
        # Until the watch shows it, the next decision must know that this place is taken.
        self.cache.put(changed)

    async def let_go(self, pod: PodRecord) -> None:
        """Take back what `nominate` has noted on a pod whose victims stay.

        Raises:
            httpx2.HTTPError: the apiserver refused.
        """
        meta = {"uid": pod.uid, "annotations": {ATTENDED: None}}
        self.cache.put(await self._patch_status(pod.namespace, pod.name, {"metadata": meta}))

    async def touch(self, pod: PodRecord) -> None:
        """Write an annotation of a pending pod, which has kube-scheduler look at it again.

        By way of its status, which the controller may write, and the rest of the pod it may not.

        Raises:
            httpx2.HTTPError: the apiserver refused.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        meta = {"uid": pod.uid, "annotations": {WOKEN: now}}
        await self._patch_status(pod.namespace, pod.name, {"metadata": meta})

    async def tell(self, about: PodRecord, reason: str, note: str) -> None:
        """Write an Event about a pod.

        Raises:
            httpx2.HTTPError: the apiserver refused.
        """
        event = Event(
            eventTime=datetime.now(UTC),
            metadata=ObjectMeta(
                name=f"{about.name[:200]}.{time.time_ns():x}", namespace=about.namespace
            ),
            action="Preempting",
            note=note[:1000],
            reason=reason,
            regarding=ObjectReference(
                apiVersion="v1",
                kind="Pod",
                name=about.name,
                namespace=about.namespace,
                uid=about.uid,
            ),
            reportingController="flextopo",
            reportingInstance=socket.gethostname(),
            type="Normal",
        )
        await self.client.request("post", Event, obj=event, namespace=about.namespace)

    async def _patch_status(self, namespace: str, name: str, patch: dict[str, Any]) -> PodObject:
        found: PodObject = await self.client.request(
            "patch",
            PatchedPod,
            obj=patch,
            name=name,
            namespace=namespace,
            headers={"Content-Type": "application/merge-patch+json"},
        )
        return found

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        """Evict a pod through the Eviction API, which honours disruption budgets.

        Raises:
            httpx2.HTTPError: the apiserver refused, with status 429 where a budget forbids it.
        """
        meta = {"name": name, "namespace": namespace}
        options = {"preconditions": {"uid": uid}}
        eviction = PodEviction.from_dict({"metadata": meta, "deleteOptions": options})
        await self.client.request("post", PodEviction, obj=eviction, name=name, namespace=namespace)


def http_status(error: Exception) -> int:
    """Return the HTTP status behind an error, 0 where there is none."""
    if isinstance(error, ApiError):
        return error.status.code or 0
    return error.response.status_code if isinstance(error, httpx2.HTTPStatusError) else 0
