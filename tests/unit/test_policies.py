import hashlib
import io
import json
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tapes import BUSY

from flextopo.cluster.errors import UnknownNameError
from flextopo.cluster.observation.features import (
    NUM_CANDIDATE,
    NUM_PREEMPTOR,
    Observation,
    empty_observation,
)
from flextopo.cluster.scenario import Scenario
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.state.decision import AlignmentFilter
from flextopo.cluster.topology.model import PRESETS, Fleet
from flextopo.cluster.topology.servers import parse_servers
from flextopo.cluster.workload.generator import WorkloadConfig, generate_tape
from flextopo.policies.artifact import load_network, save_policy
from flextopo.policies.export import export_policy
from flextopo.policies.network import MASKED, CandidateScorer, ScorerConfig
from flextopo.policies.runtime import ArtifactError, load_policy, score
from flextopo.policies.selectors import find_selector
from flextopo.policies.shipped import ZOO, zoo_names


def random_observation(
    rng: np.random.Generator, k: int, count: int, width: int = NUM_CANDIDATE
) -> Observation:
    o = empty_observation(k, width)
    o.preemptor[:] = rng.random(NUM_PREEMPTOR)
    o.cluster[:] = rng.uniform(-1, 1, len(o.cluster))
    o.candidates[:count] = rng.random((count, width))
    o.mask[:count] = o.mask[k] = 1
    return o


def run_torch(network: CandidateScorer, o: Observation) -> np.ndarray:
    with torch.no_grad():
        scores, _ = network(*(torch.from_numpy(array)[None] for array in o))
    out: np.ndarray = scores[0].numpy()
    return out


@pytest.fixture(params=[True, False], ids=["context", "no-context"])
def network(request: pytest.FixtureRequest) -> CandidateScorer:
    torch.manual_seed(1)
    return CandidateScorer(ScorerConfig(hidden=16, context=request.param))


def test_numpy_says_what_torch_says(network: CandidateScorer, tmp_path: Path) -> None:
    policy = load_policy(save_policy(network, tmp_path / "p", "p", k=8))
    rng = np.random.default_rng(0)
    for count in [0, 1, 2, 5, 8] * 20:
        o = random_observation(rng, 8, count)
        legal = o.mask != 0
        assert score(policy.weights, o)[legal] == pytest.approx(
            run_torch(network, o)[legal], abs=1e-5
        )


def test_order_of_candidates_does_not_matter(network: CandidateScorer) -> None:
    rng = np.random.default_rng(2)
    o = random_observation(rng, 8, 6)
    order = rng.permutation(6)
    shuffled = o._replace(candidates=o.candidates.copy())
    shuffled.candidates[:6] = o.candidates[order]
    before, after = run_torch(network, o), run_torch(network, shuffled)
    assert after[:6] == pytest.approx(before[order], abs=1e-6)
    assert after[-1] == pytest.approx(before[-1], abs=1e-6)


def test_empty_places_change_no_score(network: CandidateScorer) -> None:
    rng = np.random.default_rng(3)
    small = random_observation(rng, 5, 5)
    large = empty_observation(20)
    large.preemptor[:], large.cluster[:] = small.preemptor, small.cluster
    large.candidates[:5], large.mask[:5], large.mask[20] = small.candidates, 1, 1
    large.candidates[5:] = 0.5  # rubbish in places that the mask closes
    a, b = run_torch(network, small), run_torch(network, large)
    assert b[:5] == pytest.approx(a[:5], abs=1e-6)
    assert b[20] == pytest.approx(a[5], abs=1e-6)
    assert (b[5:20] == MASKED).all()


def test_gradient_is_finite_where_actions_are_masked(network: CandidateScorer) -> None:
    o = random_observation(np.random.default_rng(4), 8, 1)
    scores, value = network(*(torch.from_numpy(array)[None] for array in o))
    (torch.log_softmax(scores, -1)[0, 0] + value.sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", zoo_names())
def test_shipped_policies_load_and_are_small(name: str) -> None:
    policy = load_policy(name)
    assert policy.name == name
    assert sum(path.stat().st_size for path in (ZOO / name).iterdir()) < 1_000_000
    network = load_network(name)
    o = random_observation(np.random.default_rng(5), policy.k, policy.k, policy.width)
    seen = policy.read(o)
    assert policy.score(seen) == pytest.approx(run_torch(network, seen), abs=1e-4)


def test_an_artifact_of_the_first_version_still_loads(tmp_path: Path) -> None:
    shutil.copytree(ZOO / "deepset-imitation", tmp_path / "old")
    path = tmp_path / "old" / "meta.json"
    meta = json.loads(path.read_text())
    del meta["features"]
    path.write_text(json.dumps({**meta, "layout": "5c0417d93390c99d"}))
    old, new = load_policy(tmp_path / "old"), load_policy("deepset-imitation")
    assert (old.names, old.width) == (new.names, new.width)
    path.write_text(json.dumps({**meta, "layout": "0" * 16}))
    with pytest.raises(ArtifactError, match="no 'features'; legal: "):
        load_policy(tmp_path / "old")


def test_a_policy_reads_its_features_by_name_whatever_their_order(tmp_path: Path) -> None:
    policy = load_policy("deepset-imitation")
    names = {part: list(found) for part, found in policy.names.items()}
    order = np.random.default_rng(0).permutation(len(names["candidates"]))
    weights = dict(policy.weights)
    weights["candidate.weight"] = weights["candidate.weight"][:, order]
    shuffled = {**names, "candidates": [names["candidates"][i] for i in order]}
    other = replace(policy, weights=weights, features=shuffled)
    o = random_observation(np.random.default_rng(1), policy.k, policy.k)
    expected = policy.score(policy.read(o))
    np.testing.assert_allclose(other.score(other.read(o)), expected, rtol=1e-5, atol=1e-5)


def test_a_policy_of_few_features_is_exported_and_trained_further(tmp_path: Path) -> None:
    """What it does not read weighs nothing, wherever the other features stand."""
    policy = load_policy("deepset-imitation")
    names = {part: list(found)[::-1][1:] for part, found in policy.names.items()}
    weights: dict[str, Any] = dict(policy.weights)
    shared = weights["shared.weight"]
    preemptor, cluster = shared[:, :NUM_PREEMPTOR], shared[:, NUM_PREEMPTOR:]
    weights["shared.weight"] = np.hstack([preemptor[:, ::-1][:, 1:], cluster[:, ::-1][:, 1:]])
    weights["candidate.weight"] = weights["candidate.weight"][:, ::-1][:, 1:]
    buffer = io.BytesIO()
    np.savez(buffer, **weights)
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "weights.npz").write_bytes(buffer.getvalue())
    meta = json.loads((ZOO / "deepset-imitation" / "meta.json").read_text())
    meta |= {"features": names, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    (tmp_path / "few" / "meta.json").write_text(json.dumps(meta))
    few = load_policy(tmp_path / "few")
    o = random_observation(np.random.default_rng(1), policy.k, policy.k)
    expected = few.score(few.read(o))
    whole = load_network(tmp_path / "few", NUM_CANDIDATE)
    np.testing.assert_allclose(run_torch(whole, o), expected, atol=1e-4)
    own = load_network(tmp_path / "few")
    np.testing.assert_allclose(run_torch(own, few.read(o)), expected, atol=1e-4)
    exported = export_policy(tmp_path / "few", tmp_path / "onnx")
    assert (
        list(json.loads((exported / "meta.json").read_text())["features"]["cluster"])
        == names["cluster"]
    )


def damage(folder: Path, change: str) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    if change == "weights":
        blob = bytearray((folder / "weights.npz").read_bytes())
        blob[200] ^= 1
        (folder / "weights.npz").write_bytes(bytes(blob))
    elif change == "twice":
        meta["features"]["candidates"][0] = "cost"
        (folder / "meta.json").write_text(json.dumps(meta))
    elif change == "short":
        del meta["features"]["cluster"][-1]
        (folder / "meta.json").write_text(json.dumps(meta))
    elif change in ("feature", "fewer"):
        names = ["shoe_size"] if change == "feature" else ["cost"]
        meta["features"]["candidates"] = names
        (folder / "meta.json").write_text(json.dumps(meta))
    elif change == "key":
        del meta["sha256"]
        (folder / "meta.json").write_text(json.dumps(meta))
    elif change == "json":
        (folder / "meta.json").write_text("{")
    elif change == "no meta":
        (folder / "meta.json").unlink()
    else:
        (folder / "weights.npz").unlink()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("weights", "SHA-256"),
        ("feature", "unknown feature of candidates 'shoe_size'; legal: budgeted, "),
        ("twice", "feature 'cost' of candidates twice; legal: once"),
        ("short", "reads 22 features of preemptor and cluster; legal: the 21 that meta.json names"),
        ("fewer", "reads 32 features of a candidate; legal: the 1 that meta.json names"),
        ("key", "no 'sha256'"),
        ("json", "not JSON"),
        ("no meta", "No such file"),
        ("no weights", "No such file"),
    ],
)
def test_damaged_artifacts_are_refused(change: str, match: str, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(ZOO / zoo_names()[0], folder)
    load_policy(folder)
    damage(folder, change)
    with pytest.raises(ArtifactError, match=match):
        load_policy(folder)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("trap", [True, False])
def test_nothing_is_unpickled(trap: bool, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(ZOO / zoo_names()[0], folder)
    buffer = io.BytesIO(b"rubbish")
    if trap:
        np.savez(buffer, a=np.array([Trap(tmp_path / "sprung")], dtype=object))
    meta = json.loads((folder / "meta.json").read_text())
    meta["sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "weights.npz").write_bytes(buffer.getvalue())
    with pytest.raises(ArtifactError, match=r"plain numbers|legal: float32"):
        load_policy(folder)
    assert not (tmp_path / "sprung").exists()


def test_unknown_policies_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown policy 'nobody'"):
        load_policy("nobody")


def test_a_policy_that_may_not_wait_does_not(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = CandidateScorer(ScorerConfig(hidden=8))
    with torch.no_grad():
        network.state_dict()["wait.2.bias"].fill_(1e6)
    chosen = []
    for allow in (True, False):
        folder = save_policy(network, tmp_path / str(allow), "p", k=8, allow_wait=allow)
        policy = load_policy(folder)
        fleet = Fleet((PRESETS["rtx4090"],), (0,) * 4)
        tape = generate_tape(WorkloadConfig(online_peak_share=0.9), 32, 0)
        sim = Simulator(tape, fleet, scenario=Scenario(deadline="soft"))
        pod = sim.next_decision()
        assert pod is not None
        chosen.append(policy.select(sim.state, pod))
    assert chosen[0] is None
    assert chosen[1] is not None


def test_a_limit_on_waiting_holds() -> None:
    """With a limit of 0 it never waits; with 300 s no pod is left waiting for longer by choice."""
    free, never = find_selector("deepset-imitation"), find_selector("deepset-imitation@0")
    limited = find_selector("deepset-imitation@300")
    assert limited.name == "deepset-imitation@300"
    fleet = parse_servers("4*rtx4090")
    waits = {0: 0, 300: 0, None: 0}
    longest = 0
    for limit, selector in ((0, never), (300, limited), (None, free)):
        sim = Simulator(generate_tape(BUSY, 32, 1), fleet, scenario=Scenario(deadline="soft"))
        while (pod := sim.next_decision()) is not None:
            chosen = selector.select(sim.state, pod)
            possible = bool(sim.state.candidates(pod, AlignmentFilter.OWN.binds(pod), 1))
            waited = sim.state.now_s - int(sim.state.arrays.live[pod.index]["queued_s"])
            if chosen is None and possible:
                waits[limit] += 1
                if limit == 300:
                    longest = max(longest, waited)
            sim.apply(chosen)
    assert waits[0] == 0
    assert waits[None] > 0
    assert longest < 300


@pytest.mark.parametrize("name", ["deepset-imitation@", "deepset-imitation@soon", "godel@", "x@3"])
def test_a_limit_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="SECONDS"):
        find_selector(name)


def replace_weights(folder: Path, blob: bytes) -> None:
    """Put other weights into an artifact, with their hash."""
    meta = json.loads((folder / "meta.json").read_text())
    meta["sha256"] = hashlib.sha256(blob).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "weights.npz").write_bytes(blob)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda w: w.pop("wait.2.bias"), r"no wait\.2\.bias; legal: candidate\.weight, "),
        (lambda w: w.update({"own.weight": w["own.weight"][:, :-1]}), r"own\.weight of shape \(64, 63\); legal"),
        (lambda w: w.update({"own.bias": w["own.bias"][None]}), r"own\.bias of shape \(1, 64\); legal: \(64,\)"),
        (lambda w: w.update({"own.bias": w["own.bias"].astype(complex)}), "own.bias is of complex128; legal"),
        (lambda w: w.update({"own.bias": np.array(["a"] * 64)}), "own.bias is of <U1; legal: float32"),
    ],
)  # fmt: skip
def test_weights_that_no_network_has_are_refused(change: Any, match: str, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(ZOO / zoo_names()[0], folder)
    with np.load(folder / "weights.npz") as arrays:
        weights = dict(arrays)
    change(weights)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **weights)
    replace_weights(folder, buffer.getvalue())
    with pytest.raises(ArtifactError, match=match):
        load_policy(folder)


def test_an_array_that_claims_terabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(ZOO / zoo_names()[0], folder)
    member, buffer = io.BytesIO(), io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6)}
    np.lib.format.write_array_header_1_0(member, header)
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("own.weight.npy", member.getvalue())
    replace_weights(folder, buffer.getvalue())
    with pytest.raises(ArtifactError, match="said to have 4000000000000 bytes"):
        load_policy(folder)
