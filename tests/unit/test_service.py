import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from kube_objects import full_node, make_cache, node, pod, preemptor, read

from flextopo.baselines.registry import ORACLES, SELECTORS, make_selector
from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.state.cluster_state import ClusterState
from flextopo.cluster.state.decision import AlignmentFilter, Candidate
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.state.selector import VictimSelector
from flextopo.policies.runtime import load_policy
from flextopo.policies.serving import reservations
from flextopo.policies.serving.cache import ClusterCache
from flextopo.policies.serving.decider import Decider
from flextopo.policies.serving.extender import Extender
from flextopo.policies.serving.service import Limits, Service, make_app
from flextopo.policies.serving.telemetry import Telemetry
from flextopo.policies.snapshot import decide, decode

# One RTX 4090 server full of one-card pods: GPU g of pod b<g> sits on NUMA node 3 2 1 0 7 6 5 4.
FULL: dict[str, Any] = {
    "now_s": 10_000,
    "servers": [{"name": "n0", "model": "rtx4090"}],
    "pods": [
        {
            "name": f"batch/b{gpu}",
            "gpus": 1,
            "cores": 7,
            "priority": 100,
            "node": "n0",
            "gpus_held": [gpu],
            "start_s": 1_000 * gpu,
            "checkpoint_s": 900,
        }
        for gpu in range(8)
    ]
    + [
        {
            "name": "online/p",
            "gpus": 2,
            "cores": 14,
            "priority": 1000,
            "online": True,
            "requirement": "guaranteed",
        }
    ],
    "preemptor": "online/p",
}
FALLBACK = make_selector("flextopo-best-effort")


def encode(document: object) -> bytes:
    return json.dumps(document).encode()


@pytest.mark.parametrize("name", sorted(set(SELECTORS) - set(ORACLES)))
def test_selectors_decide_about_a_snapshot(name: str) -> None:
    found = decide(decode(encode(FULL)), make_selector(name), FALLBACK)
    assert found["node"] == "n0"
    assert len(found["victims"]) == len(found["gpus"]) == 2
    if name not in ("godel", "kubernetes"):
        assert found["fallback"] is None
        assert found["level"] == "socket"
    # The latest started are b6 and b7, both on socket 1: even the blind ones align here.
    if name in ("godel", "flextopo"):
        assert set(found["victims"]) == {"batch/b6", "batch/b7"}


def test_the_shipped_policy_decides_and_says_why() -> None:
    found = decide(decode(encode(FULL)), load_policy("deepset-imitation"), FALLBACK)
    assert found["selector"] == "deepset-imitation"
    assert found["fallback"] is None
    assert len(found["reasons"]) == 1 + len(found["victims"])


def test_the_oracle_cannot_see_a_snapshots_future_so_the_baseline_answers() -> None:
    found = decide(decode(encode(FULL)), make_selector("oracle-lookahead"), FALLBACK)
    assert found["selector"] == "flextopo-best-effort"
    assert "needs a simulated cluster" in found["fallback"]


@dataclass
class Rogue:
    """A selector that answers what it is told to."""

    answer: Any
    name: str = "rogue"
    filter: AlignmentFilter = AlignmentFilter.OWN

    def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
        if isinstance(self.answer, Exception):
            raise self.answer
        found = cluster.candidate(0, self.answer, preemptor)
        return found or replace(FALLBACK.select(cluster, preemptor), victims=self.answer)  # type: ignore[type-var]


def protect(index: int, **change: object) -> dict[str, Any]:
    document = deepcopy(FULL)
    document["pods"][index].update(change)
    return document


@pytest.mark.parametrize(
    ("document", "answer", "why"),
    [
        (FULL, RuntimeError("model is gone"), "model is gone"),
        (FULL, (0,), "does not fit"),
        (FULL, (0, 7), "does not fit"),  # across sockets: not aligned
        (FULL, (0, 1, 2), "is not needed"),
        (protect(0, priority=1000), (0, 1), "may not be evicted"),
        (protect(0, priority=2000), (0, 1), "may not be evicted"),
        (protect(0, preemptible=False), (0, 1), "may not be evicted"),
        (protect(0, protection_s=86_400), (0, 1), "may not be evicted"),
    ],
)
def test_a_wrong_answer_is_replaced_by_the_baselines(
    document: dict[str, Any], answer: Any, why: str
) -> None:
    rogue: VictimSelector = Rogue(answer)
    found = decide(decode(encode(document)), rogue, FALLBACK)
    assert found["selector"] == "flextopo-best-effort"
    assert why in found["fallback"]
    assert len(found["victims"]) == 2
    assert "batch/b0" not in found["victims"] or document is FULL


def test_a_right_answer_stands() -> None:
    found = decide(decode(encode(FULL)), Rogue((0, 1)), FALLBACK)
    assert found["selector"] == "rogue"
    assert set(found["victims"]) == {"batch/b0", "batch/b1"}


def test_a_budget_that_is_used_up_protects_its_pods() -> None:
    document = protect(7, budget="b")
    document["budgets"] = [{"name": "b", "disruptions_allowed": 0}]
    found = decide(decode(encode(document)), make_selector("flextopo"), FALLBACK)
    assert set(found["victims"]) == {"batch/b5", "batch/b6"}


BAD: list[tuple[str, Any, str]] = [
    ("not JSON", b"{", "truncated"),
    ("empty", b"", "truncated"),
    ("deep", b"[" * 100_000, "snapshot"),
    ("a list", b"[]", "Expected"),
    ("missing", {k: v for k, v in FULL.items() if k != "servers"}, "servers"),
    ("unknown field", {**FULL, "x": 1}, "unknown field"),
    ("wrong type", protect(0, gpus="one"), "$.pods[0].gpus"),
    ("negative", protect(0, gpus=-1), "-1 GPUs"),
    ("huge", protect(0, cores=10**9), "pods[0].cores"),
    ("long protection", protect(0, protection_s=10**12), "pods[0].protection_s = 1000000000000"),
    ("start out of range", protect(0, start_s=10**25), "pods[0].start_s"),
    ("class out of range", protect(0, batch_class=10**9), "pods[0].batch_class"),
    ("time out of range", {**FULL, "now_s": 10**25}, "now_s = 1"),
    (
        "budget out of range",
        {**FULL, "budgets": [{"name": "b", "disruptions_allowed": 10**30}]},
        "budgets[0].disruptions_allowed",
    ),
    ("GPU far out of range", protect(0, gpus_held=[10**12]), "legal"),
    ("too many GPUs", protect(8, gpus=9), "no"),
    ("no servers", {**FULL, "servers": []}, "one at least"),
    ("unknown model", {**FULL, "servers": [{"name": "n0", "model": "x"}]}, "'x'"),
    ("no model", {**FULL, "servers": [{"name": "n0"}]}, "either model or hardware"),
    ("unknown node", protect(0, node="n9"), "'n9'"),
    ("GPU held twice", protect(0, gpus_held=[1]), "legal"),
    ("GPU out of range", protect(0, gpus_held=[99]), "legal"),
    ("negative GPU", protect(0, gpus_held=[-1]), "legal"),
    ("pod twice", protect(0, name="batch/b1"), "used twice"),
    ("unknown requirement", protect(8, requirement="maybe"), "best-effort"),
    ("unknown preemptor", {**FULL, "preemptor": "x"}, "'x'"),
    ("running preemptor", {**FULL, "preemptor": "batch/b0"}, "runs already"),
    ("unknown budget", protect(0, budget="b"), "'b'"),
]


@pytest.mark.parametrize(("document", "words"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_snapshots_are_one_sentence(document: Any, words: str) -> None:
    body = document if isinstance(document, bytes) else encode(document)
    if words == "no":
        assert decide(decode(body), make_selector("flextopo"), FALLBACK)["node"] is None
        return
    with pytest.raises(FlextopoError) as error:
        decide(decode(body), make_selector("flextopo"), FALLBACK)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def make_service(
    cache: ClusterCache | None = None, lines: list[bytes] | None = None, **more: Any
) -> Service:
    selector = more.pop("selector", make_selector("flextopo"))
    telemetry = Telemetry(cache, write=(lines if lines is not None else []).append)
    extender = None
    if cache is not None:
        extender = Extender(Decider(cache, selector, FALLBACK, budget_s=60), telemetry)
    return Service(selector, FALLBACK, telemetry, extender, **{"budget_s": 60.0, **more})


def send(service: Service, *requests: tuple[str, str, Any], **more: Any) -> list[httpx.Response]:
    """Send requests one after another."""

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [
                await client.request(method, path, content=body, **more)
                for method, path, body in requests
            ]

    return asyncio.run(run())


def post(path: str, body: bytes, method: str = "POST") -> httpx.Response:
    return send(make_service(), (method, path, body))[0]


def test_the_service_answers() -> None:
    assert post("/healthz", b"", "GET").json() == {"status": "ok", "selector": "flextopo"}
    answer = post("/v1/decide", encode(FULL))
    assert answer.status_code == 200
    assert set(answer.json()["victims"]) == {"batch/b6", "batch/b7"}
    assert post("/v1/decide", b"{").status_code == 400
    assert post("/v1/decide", b" " * (17 * 2**20)).status_code == 413
    assert post("/v1/decide", b"", "GET").status_code == 405
    assert post("/nothing", b"").status_code == 404
    assert post("/preempt", b"{}").status_code == 400
    assert "--snapshot" in post("/preempt", b"{}").json()["error"]


PREEMPT = {
    "Pod": preemptor(2),
    "NodeNameToMetaVictims": {
        "n0": {"Pods": [{"UID": "uid-n0-b0"}, {"UID": "uid-n0-b7"}], "NumPDBViolations": 0}
    },
}


def metrics(service: Service) -> dict[str, float]:
    text = send(service, ("GET", "/metrics", b""))[0].text
    rows = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in rows}


def test_verbs_are_counted_timed_and_logged() -> None:
    lines: list[bytes] = []
    service = make_service(make_cache([*full_node(), node("n1")]), lines)
    names = encode({"Pod": preemptor(2), "NodeNames": ["n0"]})
    answers = send(
        service,
        ("POST", "/preempt", encode(PREEMPT)),
        ("POST", "/preempt", b"{"),
        ("POST", "/filter", names),
        ("POST", "/prioritize", names),
    )
    assert [answer.status_code for answer in answers] == [200, 400, 200, 200]
    found = metrics(service)
    assert found['flextopo_requests_total{status="200",verb="preempt"}'] == 1
    assert found['flextopo_requests_total{status="400",verb="preempt"}'] == 1
    assert found['flextopo_decisions_total{outcome="preempt",verb="preempt"}'] == 1
    assert found['flextopo_request_seconds_count{verb="filter"}'] == 1
    assert found['flextopo_fallbacks_total{cause="timeout"}'] == 0
    assert found["flextopo_nodes"] == 2
    assert found["flextopo_nodes_without_flextopo"] == 1
    assert found["flextopo_unknown_placements"] == 0
    assert found["flextopo_watch_age_seconds"] == 0
    (event,) = map(json.loads, lines)
    assert event["event"] == "decision"
    assert event["pod"] == "batch/online"
    assert event["node"] == "n0"
    assert len(event["reasons"]) == 1 + len(event["victims"])


def test_fallbacks_are_counted_by_cause() -> None:
    service = make_service(make_cache(full_node()), selector=Rogue(RuntimeError("gone")))
    assert send(service, ("POST", "/preempt", encode(PREEMPT)))[0].status_code == 200
    assert metrics(service)['flextopo_fallbacks_total{cause="model_error"}'] == 1


def test_what_has_changed_or_is_over_is_worked_out_while_nobody_asks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reservations, "ANSWER_S", 0.6)
    cache = make_cache(full_node())
    service, states = make_service(cache), cache.nodes.states
    there = []  # of the pod with the promise and of a victim, as they are worked out

    def look() -> None:
        names = {record.name for record in states["n0"].counted.records}
        there.append(("online" in names, "n0-b7" in names))

    async def run() -> None:
        transport = httpx.ASGITransport(app=make_app(service))
        keeps_up = asyncio.create_task(service.keep_up())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.post("/preempt", content=encode(PREEMPT))
        await asyncio.sleep(0.1)
        look()
        cache.remove(read(pod("n0-b7", "n0")))
        look()
        await asyncio.sleep(0.2)
        look()
        await asyncio.sleep(0.6)
        look()
        keeps_up.cancel()

    asyncio.run(run())
    assert there == [(True, True), (True, True), (True, False), (False, False)]


def test_a_failure_while_nobody_asks_ends_nothing_and_is_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[bytes] = []
    ready, calls = [False], [0]

    def fail(ahead_s: float = 0.0) -> None:
        calls[0] += 1
        if calls[0] != 4:
            raise RuntimeError("gone")

    service = make_service(make_cache(full_node()), lines, ready=lambda: ready[0])
    assert service.extender is not None
    monkeypatch.setattr(service.extender.decider.cache, "refresh", fail)

    async def run() -> None:
        keeps_up = asyncio.create_task(service.keep_up())
        await asyncio.sleep(0.2)
        assert calls == [0]  # before the cluster is known there is nothing to work out
        ready[0] = True
        await asyncio.sleep(0.5)
        assert not keeps_up.done()
        keeps_up.cancel()

    asyncio.run(run())
    assert calls[0] > 4
    told = [(line["event"], line["error"]) for line in map(json.loads, lines)]
    assert (
        told == [("failure", "RuntimeError: gone")] * 2
    )  # once before it went well, and once after


def test_where_nothing_can_be_decided_nobody_is_evicted() -> None:
    lines: list[bytes] = []
    service = make_service(make_cache(full_node("elsewhere")), lines)
    answer = send(service, ("POST", "/preempt", encode(PREEMPT)))[0]
    # After an error kube-scheduler would evict whomever it had in mind.
    assert (answer.status_code, answer.json()) == (200, {"NodeNameToMetaVictims": {}})
    assert json.loads(lines[0])["event"] == "undecidable"


def test_verbs_wait_for_the_cluster() -> None:
    ready = [False]
    service = make_service(make_cache(full_node()), ready=lambda: ready[0])
    asked = (("GET", "/readyz", b""), ("POST", "/preempt", encode(PREEMPT)))
    assert [answer.status_code for answer in send(service, *asked)] == [503, 503]
    ready[0] = True
    assert [answer.status_code for answer in send(service, *asked)] == [200, 200]


def test_a_fault_of_ours_is_a_500_and_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[bytes] = []
    service = make_service(make_cache(full_node()), lines)
    monkeypatch.setattr(Decider, "decide", lambda *_: 1 / 0)
    answer = send(service, ("POST", "/preempt", encode(PREEMPT)))[0]
    assert answer.status_code == 500
    assert "ZeroDivisionError" not in answer.text
    assert "ZeroDivisionError" in json.loads(lines[0])["error"]


def test_bodies_that_are_too_large_too_slow_or_too_many_are_refused() -> None:
    limits = Limits(body_bytes=1000, body_s=0.2, requests=2)
    service = make_service(make_cache(full_node()), limits=limits)

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    async def large() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    async def run() -> list[int]:
        transport = httpx.ASGITransport(app=make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            hanging = [
                asyncio.create_task(client.post("/preempt", content=slow())) for _ in range(2)
            ]
            await asyncio.sleep(0.05)
            codes = [(await client.post("/preempt", content=b"{}")).status_code]
            codes += [(await task).status_code for task in hanging]
            codes.append((await client.post("/preempt", content=large())).status_code)
            codes.append((await client.post("/preempt", content=b"{}")).status_code)
            return codes

    assert asyncio.run(run()) == [503, 408, 408, 413, 400]


def test_the_openapi_document_names_every_route() -> None:
    document = send(make_service(), ("GET", "/openapi.json", b""))[0].json()
    paths = {"/v1/decide", "/preempt", "/filter", "/prioritize", "/healthz", "/readyz"}
    assert set(document["paths"]) == paths
    text = json.dumps(document)
    for reference in re.findall(r'"#/components/schemas/([^"]+)"', text):
        assert reference in document["components"]["schemas"]
    answer = post("/v1/decide", encode(FULL)).json()
    schema = document["components"]["schemas"]["Decision"]
    assert set(answer) == set(schema["properties"]) == set(schema["required"])


def test_a_selector_that_hangs_on_a_snapshot_is_replaced() -> None:
    class Hanging:
        name, filter = "hanging", AlignmentFilter.OWN

        def select(self, cluster: ClusterState, preemptor: Pod) -> Candidate | None:
            time.sleep(1.0)
            return None

    decide(decode(encode(FULL)), FALLBACK, FALLBACK)  # kernels are compiled now
    service = make_service(selector=Hanging(), budget_s=0.1)
    answer = send(service, ("POST", "/v1/decide", encode(FULL)))[0].json()
    assert (answer["selector"], answer["cause"]) == ("flextopo-best-effort", "timeout")
    assert metrics(service)['flextopo_fallbacks_total{cause="timeout"}'] == 1


def test_the_command_line_decides_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "snapshot.json"
    path.write_bytes(encode(FULL))
    with pytest.raises(SystemExit) as stop:
        main(["decide", str(path)])
    assert not stop.value.code
    assert json.loads(capsys.readouterr().out)["node"] == "n0"
    with pytest.raises(SystemExit) as stop:
        main(["decide", str(tmp_path / "missing.json")])
    assert stop.value.code == 2


def test_serving_needs_neither_torch_nor_gymnasium_nor_matplotlib() -> None:
    code = (
        "import sys; sys.modules['gymnasium'] = sys.modules['torch'] = None\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda n, p=None: None if n == 'gymnasium' else real(n, p)\n"
        "import flextopo.policies.serving.server, flextopo.policies.selectors, flextopo.policies.runtime\n"
        "print(flextopo.policies.runtime.load_policy('deepset-imitation').name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "deepset-imitation", done.stderr
