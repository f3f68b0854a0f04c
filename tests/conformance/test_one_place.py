"""A state array, a pod's field and a feature are added in two places: where declared and where used.

The package is copied, two lines are added for each, and it must still play the same episodes, on every
path, with the new ones carried along, and with the shipped policy deciding as before.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flextopo

SCRIPT = """
import json, pickle
import gymnasium, numpy as np
import flextopo
from flextopo.cluster.observation.features import CANDIDATE_FEATURES
from flextopo.cluster.state.arrays import Cluster
from flextopo.cluster.state.candidates import candidate_arrays
from types import SimpleNamespace
from flextopo.policies.serving.node_rows import pack_pod
from flextopo.policies.serving.records import PodRecord
from flextopo.cluster.state.schema import POD_DTYPE

NEW = "heat" in Cluster._fields
kwargs = dict(servers="2*a100", k=4, workload={"online_peak_share": 0.95, "batch_load": 1.2}, tapes=2)
vector = gymnasium.make_vec("flextopo/Preempt-A100-v0", 2, "vector_entry_point", **kwargs)
observation, _ = vector.reset(seed=3)
rewards = []
for step in range(12):
    actions = observation["action_mask"].argmax(1)
    observation, reward, *_ = vector.step(actions)
    rewards += reward.tolist()
sim = vector.unwrapped.core.simulator(0)
c = sim.state.arrays
names = list(CANDIDATE_FEATURES)
known = [at for at, name in enumerate(names) if name != "answer"]
assert observation["candidates"].shape[-1] == len(names)
found = {"rewards": rewards, "observation": observation["candidates"][..., known].tobytes().hex()}
day = flextopo.simulate("deepset-imitation", servers="2*a100", workload=kwargs["workload"])
found["policy"] = dict(day)
if NEW:
    assert names.index("answer") == 0
    legal = observation["action_mask"][:, :-1] == 1
    assert set(observation["candidates"][legal][:, 0].tolist()) == {0.5}
    # Each allocation warms a node; what is free never does.
    assert c.heat.shape == (2,)
    assert c.heat.sum() >= (c.live["since_s"] > -(2**60)).sum()
    other = vector.unwrapped.core.simulator(1).state.arrays.heat
    assert not np.shares_memory(c.heat, other)
    assert set(np.unique(c.pods["tenant"]).tolist()) == {1, 2}
    before = c.heat.copy()
    env = gymnasium.make("flextopo/Preempt-A100-v0", **kwargs).unwrapped
    env.reset(seed=3)
    state = env.simulator.state
    warm = state.arrays.heat.copy()
    asked = int(env.simulator.events.clock[0]["asked"])
    k, count = state.find(state.pod(asked), False, 4)
    env.simulator.branch(k, count, 3600)
    assert (state.arrays.heat == warm).all(), "a branch wrote into the original"
    assert (pickle.loads(pickle.dumps(state.arrays)).heat == warm).all()
    record = SimpleNamespace(**dict.fromkeys(PodRecord.__annotations__, 1))
    row = np.frombuffer(pack_pod(record, 1, -1, 1, 1), POD_DTYPE)[0]
    assert row["tenant"] == 7, "the row of a served pod"
print(json.dumps(found))
"""

ARRAY = """    totals: Annotated[Records, Array(TOTALS_DTYPE, ("one",))]
"""
USE = """    c.live[pod]["gpu_mask"] = gpu_mask
    set_free_gpus(c, node, c.nodes[node]["gpu_free"] & ~gpu_mask)
"""
SCRATCH = """    scratch: Annotated[
"""
MARKS = """    marks: Annotated[npt.NDArray[np.int64], Array(np.int64, ("nodes",), Kind.SCRATCH)]
"""
FIELD = """    "batch_class": Field("i1","""
COLUMN = """        "pdb": join(-1, batch["pdb"]),
"""
FEATURE = """CANDIDATE_FEATURES: dict[str, str] = {
"""
WRITE = """    f[F.deficit] = BELOW[deficit]
"""
ADDED = {
    "cluster/state/arrays.py": (
        (
            ARRAY,
            f'{ARRAY}    heat: Annotated[npt.NDArray[np.int64], Array(np.int64, ("nodes",))]\n',
        ),
        (SCRATCH, MARKS + SCRATCH),
        (USE, f"{USE}    c.heat[node] += 1\n    c.marks[node] = 1 << 40\n"),
    ),
    "cluster/state/schema.py": (
        (
            FIELD,
            '    "tenant": Field("i4", "", "who pays", 0, (0, 99), snapshot=Snapshot(7, "unknown")),\n'
            + FIELD,
        ),
    ),
    "cluster/observation/features.py": ((FEATURE, f'{FEATURE}    "answer": "always a half",\n'),),
    "cluster/observation/observe_candidate.py": ((WRITE, f"{WRITE}    f[F.answer] = 0.5\n"),),
    "cluster/workload/generator.py": ((COLUMN, f'{COLUMN}        "tenant": join(1, 2),\n'),),
}


def play(package: Path, jit: bool) -> dict[str, object]:
    environment = {**os.environ, "PYTHONPATH": str(package), "NUMBA_DISABLE_JIT": str(int(not jit))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        cwd=package,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_array_a_field_and_a_feature_are_added_in_two_places(jit: bool, tmp_path: Path) -> None:
    source = Path(flextopo.__file__).parent
    package = tmp_path / "flextopo"
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, changes in ADDED.items():
        text = (package / file).read_text()
        for old, new in changes:
            assert text.count(old) == 1, (file, old)
            text = text.replace(old, new)
        (package / file).write_text(text)
    assert play(tmp_path, jit) == play(source.parent, jit)
