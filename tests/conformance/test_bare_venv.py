"""The exported artifact in an environment that has numpy and onnxruntime, and no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

import flextopo

ROOT = Path(flextopo.__file__).parents[1]
# What `flextopo.cluster` needs of the core packages; gymnasium, torch and SB3 are left out.
PACKAGES = ["numpy", "numba", "networkx", "pyyaml", "onnxruntime"]
SCRIPT = """
import importlib.util, sys
for name in ("torch", "gymnasium", "stable_baselines3", "sb3_contrib", "onnx"):
    assert importlib.util.find_spec(name) is None, name
from flextopo.policies.runtime import load_policy
from flextopo.cluster.state.pods import Pod
from flextopo.cluster.topology.model import PRESETS
from flextopo.cluster.state.cluster_state import ClusterState

pods = [Pod(i, f"batch/{i}", 1, 7, 100) for i in range(8)]
pods.append(Pod(8, "online/p", 2, 14, 1000, online=True))
state = ClusterState.from_pods([PRESETS["rtx4090"]], [0], pods, now_s=1000)
for i in range(8):
    state.start(i, 0, [i])
chosen = load_policy(sys.argv[1]).select(state, state.pod(8))
print(type(load_policy(sys.argv[1])).__name__, chosen and len(chosen.victims))
"""


@pytest.mark.slow
def test_the_artifact_runs_without_torch_and_gymnasium(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from flextopo.policies.export import export_policy

    artifact = export_policy("deepset-imitation", tmp_path / "policy")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), *PACKAGES], check=True)
    subprocess.run([*pip, "--no-deps", str(ROOT)], check=True)
    done = subprocess.run(
        [str(venv / "bin" / "python"), "-c", SCRIPT, str(artifact)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout.split() == ["OnnxSelector", "2"], done.stderr
