"""Import directions, checked by importing each layer alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import flextopo

ROOT = Path(flextopo.__file__).parents[1]

# `import flextopo` registers the environments, so a layer alone is imported without gymnasium.
SCRIPT = """
import importlib, json, sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(name)
        return None
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {hidden!r} else real(name)
sys.meta_path.insert(0, Hidden())
for name in {modules!r}:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def loaded(modules: list[str], hidden: tuple[str, ...] = ("gymnasium",)) -> set[str]:
    """Return the modules loaded by importing some in a fresh interpreter."""
    script = SCRIPT.format(modules=modules, hidden=hidden)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def modules_of(layer: str) -> list[str]:
    folder = ROOT / "flextopo"
    deep = layer == "cluster"  # serving is a layer of its own within policies
    found = sorted((folder / layer).rglob("*.py") if deep else (folder / layer).glob("*.py"))
    paths = [path.relative_to(folder).with_suffix("") for path in found if path.stem != "__init__"]
    return [".".join(("flextopo", *path.parts)) for path in paths]


LAYERS = {
    "cluster": ({"envs", "baselines", "policies", "train", "cli"}, {"torch", "pandas"}),
    "baselines": ({"envs", "policies", "train", "cli"}, {"torch", "networkx"}),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_imports_only_what_is_below(layer: str) -> None:
    above, foreign = LAYERS[layer]
    names = loaded(modules_of(layer))
    assert not {f"flextopo.{other}" for other in above} & names
    outside = {"gymnasium", "stable_baselines3", "sb3_contrib", "matplotlib", "tensorboard"}
    assert not (outside | foreign) & names


def test_environments_import_no_selector_and_no_training() -> None:
    names = loaded(modules_of("envs"), hidden=())
    assert not {f"flextopo.{other}" for other in ("baselines", "policies", "train", "cli")} & names
    assert not {"torch", "stable_baselines3"} & names


def test_a_served_policy_needs_no_torch_and_no_gymnasium() -> None:
    names = loaded(["flextopo.policies.runtime"], hidden=("gymnasium", "torch"))
    assert not {"stable_baselines3", "matplotlib", "flextopo.train", "flextopo.envs"} & names


def test_the_service_needs_no_torch_and_no_gymnasium() -> None:
    modules = [name.replace("/", ".") for name in modules_of("policies/serving")]
    names = loaded([*modules, "flextopo.policies.selectors"], hidden=("gymnasium", "torch"))
    assert not {"stable_baselines3", "matplotlib", "flextopo.train", "flextopo.envs"} & names
    # Only `--kube` needs a Kubernetes client.
    clients = ("kube", "controller", "leases", "holds", "record_kube", "doctor", "reader", "rights")
    rest = [name for name in modules if name.rpartition(".")[2] not in clients]
    assert not {"lightkube", "httpx2"} & loaded(rest)


def test_configurations_and_names_load_nothing_heavy() -> None:
    light = [
        "flextopo.train.config",
        "flextopo.train.reproduce_config",
        "flextopo.cluster.scenario",
    ]
    names = loaded([*light, "flextopo.baselines.registry"])
    heavy = {"torch", "stable_baselines3", "sb3_contrib", "optuna", "matplotlib", "networkx"}
    assert not (heavy | {"gymnasium", "numba", "scipy", "flextopo.cluster.state.arrays"}) & names
    assert "flextopo.train.imitation" not in names


def test_importing_the_package_is_light() -> None:
    names = loaded(["flextopo"], hidden=())
    heavy = {"torch", "stable_baselines3", "sb3_contrib", "matplotlib", "scipy", "numba"}
    assert not heavy & names
    assert "gymnasium" in names


@pytest.mark.parametrize("name", ["envs", "policies", "baselines", "train"])
def test_root_links_open_the_packages_folders(name: str) -> None:
    link = ROOT / name
    if not link.exists():
        pytest.skip("installed without the repository's root")
    assert link.resolve() == (ROOT / "flextopo" / name).resolve()
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
