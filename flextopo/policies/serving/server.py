"""Run the service: warm up, listen with or without TLS, stop when told."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import signal
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.state.selector import VictimSelector
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.connections import KEEP_ALIVE_S, BoundedProtocol, allow_many_files
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.extender import Extender
from flextopo.policies.serving.gang_decider import GangDecider
from flextopo.policies.serving.gangs import Preemptors
from flextopo.policies.serving.objects import Meta, NodeObject, NodeStatus, PodObject
from flextopo.policies.serving.outcomes import Outcomes
from flextopo.policies.serving.records import CLASS_BANDS, check_bands
from flextopo.policies.serving.runner import is_plain
from flextopo.policies.serving.service import Service, make_app, make_health_app
from flextopo.policies.serving.snapshot_file import load_snapshot
from flextopo.policies.serving.telemetry import Telemetry

YOUNG = 10_000
"""New objects after which the garbage collector looks at them: with Python's 700 that is in the middle of
one request in 70, for a quarter of a millisecond or more."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)
WARM_UP: Sequence[tuple[str, str]] = (("warm-up/batch", "node"), ("warm-up/preemptor", ""))


@dataclass(frozen=True)
class Listen:
    """Where the service listens.

    Attributes:
        host: address.
        port: of the verbs.
        health_port: of health and metrics alone, without TLS; 0 = none. A kubelet has no client
            certificate, so it needs this port where clients must show one.
        certificate: PEM file, None = no TLS.
        key: PEM file of its private key.
        client_ca: PEM file of who signs the clients' certificates; then each must show one.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    health_port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise FlextopoError("TLS needs both --tls-cert and --tls-key; legal: both or none")
        if self.client_ca is not None and self.certificate is None:
            raise FlextopoError("--client-ca without --tls-cert; legal: with it")
        for name in ("port", "health_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise FlextopoError(f"{name} {getattr(self, name)}; legal: 0 to 65535")


@dataclass(frozen=True)
class Plan:
    """What is served.

    Attributes:
        selector: decides.
        fallback: the deterministic baseline.
        snapshot: file that stands for the cluster.
        kube: watch a real cluster.
        controller: also evict for pods that kube-scheduler leaves pending, and wake those that fit.
        leave_gangs: there is a controller, this one or another: see `Extender`.
        schedulers: names of the schedulers whose pods the controller looks after.
        shadow: decide and log, and change nothing.
        budget_s: time of the selector for one decision.
        bands: priorities from which on batch pods are of class 1, 2, ...
    """

    selector: VictimSelector
    fallback: VictimSelector
    snapshot: Path | None = None
    kube: bool = False
    controller: bool = False
    leave_gangs: bool = False
    schedulers: Sequence[str] = ("default-scheduler",)
    shadow: bool = False
    budget_s: float = 0.2
    bands: Sequence[int] = CLASS_BANDS


Task = Callable[[], Awaitable[None]]


def start(plan: Plan, listen: Listen) -> None:
    """Build the service, warm it up and run it.

    Raises:
        FlextopoError: the snapshot is illegal, there is no cluster, or it cannot listen.
    """
    check_bands(plan.bands)
    if plan.snapshot is None:
        cache = ClusterCache(bands=plan.bands)
    else:
        cache = load_snapshot(plan.snapshot, bands=plan.bands)
    decider = Decider(cache, plan.selector, plan.fallback, plan.budget_s)
    telemetry = Telemetry(cache, lambda: decider.age_s())
    service = Service(
        plan.selector, plan.fallback, telemetry, budget_s=plan.budget_s, bands=plan.bands
    )
    if plan.kube or plan.snapshot is not None:
        service.extender = Extender(decider, telemetry, plan.shadow)
    tasks: list[Task] = []
    if plan.kube:
        outcomes = Outcomes(decider, telemetry.ended, telemetry.log)
        leave_gangs = plan.controller or plan.leave_gangs
        service.extender = Extender(decider, telemetry, plan.shadow, outcomes, leave_gangs)
        tasks = _follow(plan, decider, service, outcomes)
    warm_up(decider)
    keep_memory()
    allow_many_files()
    telemetry.left_out()
    telemetry.log("serving", selector=plan.selector.name, host=listen.host, port=listen.port)
    if service.extender is not None:
        tasks.append(service.keep_up)
    serve_until_signal(service, listen, tasks)


def _follow(plan: Plan, decider: Decider, service: Service, outcomes: Outcomes) -> list[Task]:
    """Return what keeps the cache in step with the cluster, and the controller if there is one."""
    try:
        from flextopo.policies.serving.controller import Controller
        from flextopo.policies.serving.holds import DeviceHolds
        from flextopo.policies.serving.kube import KubeWatch, connect
        from flextopo.policies.serving.leases import Leadership
    except ImportError as error:
        raise FlextopoError(f"{error.name} is not installed; legal: flextopo[kube]") from None
    client = connect()
    watch = KubeWatch(client, decider.cache, service.telemetry)
    decider.age_s = watch.age_s
    service.ready, service.fresh = watch.ready, watch.is_fresh
    watch.noted, watch.told_time = outcomes.seen, decider.cache.told_time
    tasks: list[Task] = [watch.follow]
    if plan.controller:
        # With a client of its own: the Lease is given up after the watch has closed its.
        leadership = Leadership(connect(), service.telemetry)
        controller = Controller(
            decider,
            watch,
            service.telemetry,
            plan.schedulers,
            leadership.held if not plan.shadow else lambda: True,
            shadow=plan.shadow,
            outcomes=outcomes,
            holds=None if plan.shadow else DeviceHolds(client, decider.cache, service.telemetry),
        )
        watch.changed = leadership.changed = controller.wake
        tasks.append(controller.attend)
        tasks += [] if plan.shadow else [leadership.contend]
    return tasks


def serve_until_signal(service: Service, listen: Listen, tasks: Sequence[Task] = ()) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        service: what answers.
        listen: where.
        tasks: run beside it, such as the watch; when one fails the process ends, to be restarted.

    Raises:
        FlextopoError: the port is taken or a certificate cannot be read.
    """
    config = _config(make_app(service), listen.host, listen.port, _tls(listen))
    first = _First(config)
    servers: list[uvicorn.Server] = [first]
    if listen.health_port:
        servers.append(_Beside(_config(make_health_app(service), listen.host, listen.health_port)))
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve(servers, tasks))
    except SystemExit:
        # uvicorn has logged why; its usual cause is a port that is taken.
        raise FlextopoError(
            f"{listen.host}:{listen.port}: cannot listen; legal: an address and port that are free"
        ) from None
    for number in reversed(first.told):
        # The process ends as anybody expects who sent it.
        signal.raise_signal(number)


class _First(uvicorn.Server):
    """A server that ends when it is told to, and leaves it to others to end the process.

    uvicorn's own sends the signal again as soon as it has ended, and nobody would give up a Lease.
    """

    @property
    def told(self) -> list[int]:
        """Return the signals that came."""
        return list(self._captured_signals)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals for this server, in the main thread: others get none."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Beside(uvicorn.Server):
    """A second server in the process, which leaves signals to the first."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


async def _serve(servers: Sequence[uvicorn.Server], tasks: Sequence[Task]) -> None:
    beside = [asyncio.ensure_future(task()) for task in tasks]
    listening = [asyncio.ensure_future(server.serve()) for server in servers]
    try:
        done, _ = await asyncio.wait([*beside, *listening], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for server in servers:
            server.should_exit = True
        for task in beside:
            task.cancel()
        for task in [*beside, *listening]:
            with suppress(asyncio.CancelledError):
                await task


def _config(
    app: ASGIApp, host: str, port: int, tls: dict[str, str | int | None] | None = None
) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        http=BoundedProtocol,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
        **(tls or {}),  # type: ignore[arg-type]
    )


def _tls(listen: Listen) -> dict[str, str | int | None] | None:
    if listen.certificate is None or listen.key is None:
        return None
    for path in (listen.certificate, listen.key, listen.client_ca):
        if path is not None and not path.is_file():
            raise FlextopoError(f"{path}: no such file; legal: a PEM file")
    try:
        ssl.create_default_context().load_cert_chain(listen.certificate, listen.key)
        if listen.client_ca is not None:
            ssl.create_default_context(cafile=str(listen.client_ca))
    except (ssl.SSLError, OSError) as error:
        raise FlextopoError(f"{listen.certificate}: {error}; legal: PEM files") from None
    required = ssl.CERT_NONE if listen.client_ca is None else ssl.CERT_REQUIRED
    return {
        "ssl_certfile": str(listen.certificate),
        "ssl_keyfile": str(listen.key),
        "ssl_ca_certs": str(listen.client_ca) if listen.client_ca else None,
        "ssl_cert_reqs": int(required),
    }


def keep_memory() -> None:
    """Have glibc keep memory that is freed: bodies of 500 kB would be mapped anew each time."""
    mmap_threshold, trim_threshold = -3, -1
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 8 << 20)
        libc.mallopt(trim_threshold, 32 << 20)


def warm_up(decider: Decider) -> None:
    """Let selector and baseline decide once about a cluster of one node, and freeze the memory.

    The first decision compiles kernels or loads them from disk, which takes up to seconds; and the
    garbage collector need not walk what stays until the end.
    """
    cache = ClusterCache()
    cache.put(_node("node"))
    for key, node in WARM_UP:
        cache.put(_pod(key, node))
    preemptor = cache.pods["warm-up/preemptor"]
    for selector in (decider.selector, decider.fallback):
        patient = Decider(cache, selector, decider.fallback, budget_s=120.0)
        state = cache.nodes.states.get("node")
        assert state is not None
        for worst_case in (False, True):
            view = cache.view(preemptor, {"node": state}, worst_case=worst_case)
            with suppress(Exception):
                # Its own failures show, and are counted, when there is something to decide.
                selector.select(view, view.preemptor)
            view.fits(0, [1], aligned=True)
            is_plain(view.arrays, 0)
        patient.decide(preemptor, ["node"])
        patient.room.alignment(state, preemptor)
    # What is answered has a place planned for it.
    cache.reservations.answer(preemptor, "node", ["warm-up/batch"])
    cache.refresh()
    _warm_up_gangs(Decider(cache, decider.selector, decider.fallback, budget_s=120.0))
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG)


def _warm_up_gangs(patient: Decider) -> None:
    """Let it decide about two pods that start together: beside all others, and on a node with a victim."""
    cache, gangs = patient.cache, GangDecider(patient)
    cache.put(_pod("warm-up/member", ""))
    cache.put(_node("free"))
    members = cache.pods["warm-up/preemptor"], cache.pods["warm-up/member"]
    gang = Preemptors(members, "warm-up/gang", size=2, need=2)
    gangs.decide(gang, ["node", "free"])
    cache.put(_node("other"))
    gangs.fits(gang)


def _node(name: str) -> NodeObject:
    allocatable: dict[str, str | int | float] = {"nvidia.com/gpu": 2, "cpu": 8, "pods": 10}
    return NodeObject(Meta(name=name), NodeStatus(allocatable))


def _pod(key: str, node: str) -> PodObject:
    import msgspec

    namespace, _, name = key.partition("/")
    requests = {"nvidia.com/gpu": 2, "cpu": 2}
    return msgspec.convert(
        {
            "metadata": {"name": name, "namespace": namespace, "uid": key},
            "spec": {
                "nodeName": node or None,
                "priority": 0 if node else 1,
                "containers": [{"resources": {"requests": requests}}],
            },
            "status": {"phase": "Running" if node else "Pending"},
        },
        PodObject,
    )
