import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flextopo.cli.app import main
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.observation.features import (
    NUM_CANDIDATE,
    NUM_CLUSTER,
    NUM_PREEMPTOR,
    Observation,
    empty_observation,
    feature_names,
)
from flextopo.cluster.observation.observe import observe
from flextopo.cluster.simulation.simulator import Simulator
from flextopo.cluster.topology.model import PRESETS, Fleet
from flextopo.cluster.workload.generator import WorkloadConfig, generate_tape
from flextopo.policies import export as exporting
from flextopo.policies.artifact import load_network, save_policy
from flextopo.policies.network import CandidateScorer, ScorerConfig
from flextopo.policies.runtime import (
    ArtifactError,
    OnnxSelector,
    inputs_of,
    load_policy,
    read_meta,
)
from flextopo.policies.shipped import ZOO, zoo_names

pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

POLICY = zoo_names()[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exporting.export_policy(POLICY, tmp_path_factory.mktemp("exported") / "policy")


def run_torch(network: torch.nn.Module, o: Observation) -> np.ndarray:
    with torch.no_grad():
        scores, _ = network(*(torch.from_numpy(array)[None] for array in o))
    out: np.ndarray = scores[0].numpy()
    return out


def random_observation(rng: np.random.Generator) -> Observation:
    k = int(rng.integers(1, 65))
    o = empty_observation(k)
    count = int(rng.integers(0, k + 1))
    o.preemptor[:] = rng.random(NUM_PREEMPTOR)
    o.cluster[:] = rng.uniform(-1, 1, NUM_CLUSTER)
    o.candidates[:count] = rng.random((count, NUM_CANDIDATE))
    o.mask[:count] = o.mask[k] = 1
    return o


def decisions(rng: np.random.Generator, count: int) -> Iterator[Observation]:
    """Play random choices on simulated days and yield what a policy would see."""
    fleet, made = Fleet((PRESETS["rtx4090"],), (0,) * 16), 0
    for seed in itertools.count():
        sim = Simulator(generate_tape(WorkloadConfig(online_peak_share=0.9), 128, seed), fleet)
        while (pod := sim.next_decision()) is not None:
            found, n = sim.state.find(pod, aligned=True, k=64)
            if n == 0:
                sim.apply(None)
                continue
            if made == count:
                return
            o = empty_observation(64)
            observe(sim.state.arrays, sim.state.costs, pod.index, found, n, o)
            yield o
            made += 1
            sim.apply(sim.state.candidate_at(found, int(rng.integers(n)), pod))


def test_the_artifact_says_what_torch_says_on_10_000_decisions(exported: Path) -> None:
    torch.set_num_threads(1)
    network, policy = load_network(POLICY), load_policy(exported)
    assert isinstance(policy, OnnxSelector)
    worst, made = 0.0, 0
    for o in decisions(np.random.default_rng(0), 10_000):
        legal, o = o.mask != 0, policy.read(o)
        expected = run_torch(network, o)[legal]
        # Scores reach 200, where neighbouring float32 numbers are 1.5e-5 apart.
        scale = max(1.0, float(np.abs(expected).max()))
        worst = max(worst, float(np.abs(policy.score(o)[legal] - expected).max()) / scale)
        made += 1
    assert made == 10_000
    assert worst < 1e-5


@pytest.mark.parametrize("context", [True, False])
def test_batches_and_any_number_of_candidates(context: bool) -> None:
    torch.manual_seed(5)
    network = CandidateScorer(ScorerConfig(hidden=16, context=context))
    session = ort.InferenceSession(
        exporting.to_onnx(network, (NUM_PREEMPTOR, NUM_CLUSTER, NUM_CANDIDATE)),
        providers=["CPUExecutionProvider"],
    )
    rng = np.random.default_rng(1)
    for b, k in ((1, 1), (3, 7), (64, 2), (2, 500)):
        shapes = ((b, NUM_PREEMPTOR), (b, NUM_CLUSTER), (b, k, NUM_CANDIDATE), (b, k + 1))
        arrays = [rng.random(shape).astype(np.float32) for shape in shapes]
        arrays[3] = (arrays[3] > 0.5).astype(np.float32)
        scores, value = session.run(
            None, dict(zip(inputs_of(feature_names()), arrays, strict=True))
        )
        with torch.no_grad():
            expected = network(*map(torch.from_numpy, arrays))
        assert scores == pytest.approx(expected[0].numpy(), abs=1e-5)
        assert value == pytest.approx(expected[1].numpy(), abs=1e-5)


def test_the_torch_program_is_the_same_network(exported: Path) -> None:
    program = torch.export.load(str(exported / "model.pt2")).module()
    network, rng = load_network(POLICY), np.random.default_rng(2)
    for _ in range(20):
        o = load_policy(POLICY).read(random_observation(rng))._asdict()
        o["mask"] = o["mask"].astype(np.float32)
        arrays = Observation(**o)
        assert run_torch(program, arrays) == pytest.approx(run_torch(network, arrays), abs=1e-5)


def test_the_artifact_chooses_as_the_policy_does(exported: Path) -> None:
    policy, artifact = load_policy(POLICY), load_policy(exported)
    fleet = Fleet((PRESETS["rtx4090"],), (0,) * 16)
    sim = Simulator(generate_tape(WorkloadConfig(online_peak_share=0.9), 128, 3), fleet)
    preempted = 0
    while (pod := sim.next_decision()) is not None:
        expected, found = policy.select(sim.state, pod), artifact.select(sim.state, pod)
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert (found.node, found.victims) == (expected.node, expected.victims)
            preempted += 1
        sim.apply(expected)
    assert preempted > 20


def test_metadata_tells_how_to_feed_the_model(exported: Path) -> None:
    meta = json.loads((exported / "meta.json").read_text())
    names = load_policy(POLICY).names
    assert {part: list(found) for part, found in meta["features"].items()} == names
    assert [entry["name"] for entry in meta["inputs"]] == list(inputs_of(names))
    assert meta["inputs"][2]["order"] == names["candidates"]
    assert "flextopo/Preempt-RTX4090-v0" in meta["environments"]
    assert {"flextopo", "torch", "onnx"} <= set(meta["versions"])
    shipped = read_meta(ZOO / POLICY)["validation"]
    assert meta["validation"] == shipped
    for name, digest in meta["files"].items():
        assert hashlib.sha256((exported / name).read_bytes()).hexdigest() == digest
    card = (exported / "README.md").read_text()
    assert meta["sha256"] in card
    for name, label in (("weighted_loss", POLICY), ("greedy-cost", "greedy-cost")):
        assert f"| {label} | {100 * shipped[name]:.2f} |" in card
    # The model says nothing about the machine that exported it.
    assert (
        str(Path(exporting.__file__).parent).encode() not in (exported / "model.onnx").read_bytes()
    )


def rewrite(folder: Path, **change: Any) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **change}))


def other_model(folder: Path) -> None:
    """Put a sound model with other inputs in the artifact, its hash included."""
    import onnx
    from onnx import TensorProto, helper

    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1])
    out = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 1])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["scores"])], "g", [shape], [out]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    blob = model.SerializeToString()
    (folder / "model.onnx").write_bytes(blob)
    rewrite(folder, sha256=hashlib.sha256(blob).hexdigest())


def damage(folder: Path, change: str) -> None:
    path = folder / "model.onnx"
    if change == "bit":
        blob = bytearray(path.read_bytes())
        blob[len(blob) // 2] ^= 1
        path.write_bytes(bytes(blob))
    elif change == "no model":
        path.unlink()
    elif change == "rubbish":
        path.write_bytes(b"rubbish")
        rewrite(folder, sha256=hashlib.sha256(b"rubbish").hexdigest())
    elif change == "inputs":
        other_model(folder)
    elif change == "feature":
        rewrite(folder, features={"preemptor": [], "cluster": ["shoe_size"], "candidates": []})
    elif change == "path":
        rewrite(folder, model="../../model.onnx")
    elif change == "k":
        rewrite(folder, k=10**9)
    elif change == "type":
        rewrite(folder, k="many")
    else:
        (folder / "meta.json").write_text("[1]")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("bit", "SHA-256"),
        ("no model", "No such file"),
        ("rubbish", "no ONNX model"),
        ("inputs", "inputs"),
        ("feature", "unknown feature of cluster 'shoe_size'"),
        ("path", "legal: weights.npz, model.onnx"),
        ("k", "legal: 1 to"),
        ("type", "of type int"),
        ("list", "no JSON object"),
    ],
)
def test_damaged_artifacts_are_refused(
    change: str, match: str, exported: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(exported, folder)
    load_policy(folder)
    damage(folder, change)
    with pytest.raises(ArtifactError, match=match) as error:
        load_policy(folder)
    assert "\n" not in str(error.value)


def test_a_failed_export_leaves_no_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> str:
        raise KeyboardInterrupt

    torch.manual_seed(0)
    source = save_policy(CandidateScorer(ScorerConfig(hidden=8)), tmp_path / "p", "p", k=8)
    monkeypatch.setattr(exporting, "model_card", fail)
    with pytest.raises(KeyboardInterrupt):
        exporting.export_policy(source, tmp_path / "out")
    assert not (tmp_path / "out" / "meta.json").exists()
    with pytest.raises(ArtifactError):
        load_policy(tmp_path / "out")


def test_an_export_does_not_overwrite_its_policy(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(Path(ZOO) / POLICY, tmp_path / "p")
    with pytest.raises(FlextopoError, match="another folder"):
        exporting.export_policy(tmp_path / "p", tmp_path / "p")
    with pytest.raises(ArtifactError, match="exported model"):
        exporting.export_policy(exported, tmp_path / "q")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    return int(stop.value.code or 0)


def test_the_command_line_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = Path(__file__).parents[2] / "docs" / "results" / "rtx4090.json"
    assert run("export", POLICY, "-o", str(tmp_path / "o"), "--results", str(results)) == 0
    assert "next: flextopo serve --selector" in capsys.readouterr().out
    assert "| oracle-lookahead |" in (tmp_path / "o" / "README.md").read_text()
    load_policy(tmp_path / "o")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nobody", "-o", "{}/o"), "unknown policy 'nobody'"),
        ((POLICY, "-o", "{}/file/o"), "cannot be made"),
        ((POLICY, "-o", "{}/o", "--results", "{}/none.json"), "No such file"),
        ((POLICY, "-o", "{}/o", "--results", "{}/file"), "no results file"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("{}")
    assert run("export", *(text.format(tmp_path) for text in arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()
