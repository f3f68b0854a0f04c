"""Import directions, checked by importing each layer alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import flextopo

ROOT = Path(flextopo.__file__).parents[1]

# A layer alone is imported without gymnasium.
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
    assert not (heavy | {"gymnasium", "numpy"}) & names


@pytest.mark.parametrize(
    "imports",
    [
        "import flextopo, gymnasium",
        "import gymnasium, flextopo",
        "import flextopo; from gymnasium.envs.registration import registry; import gymnasium",
        "import flextopo.envs.preemption, gymnasium",
        "from flextopo.envs import registration; import gymnasium",
    ],
)
def test_environments_are_registered_once_in_any_order(imports: str) -> None:
    script = (
        f"import warnings; warnings.simplefilter('error')\n{imports}\nimport sys, importlib\n"
        "print(sum(name.startswith('flextopo/') for name in gymnasium.envs.registry))\n"
        "assert not [f for f in sys.meta_path if getattr(f, 'name', '') == 'gymnasium']\n"
        "assert importlib.util.find_spec('gymnasium').loader is not None\n"
        "env = gymnasium.make('flextopo/Preempt-RTX4090-v0', servers='2*rtx4090')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "6\n"), done.stderr


def test_a_gymnasium_that_is_missing_or_broken_says_so(tmp_path: Path) -> None:
    script = (
        "import sys, flextopo\nfor error in sys.argv[1].split():\n"
        "    try:\n        import gymnasium\n"
        "    except Exception as found:\n        assert type(found).__name__ == error\n"
        "    else:\n        raise SystemExit('it could be imported')\n"
    )
    for content, errors in ((None, "ModuleNotFoundError"), ("1 / 0", "ZeroDivisionError " * 2)):
        if content is not None:
            (tmp_path / "gymnasium.py").write_text(content)
        done = subprocess.run(
            [sys.executable, "-S", "-c", script, errors],
            env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_the_agent_loads_no_graph_no_kernel_and_no_command_line() -> None:
    pytest.importorskip("grpc")
    names = loaded(["flextopo.policies.agent.__main__"], hidden=())
    foreign = {"gymnasium", "networkx", "numba", "scipy", "torch", "typer", "lightkube", "httpx2"}
    assert not foreign & names
    assert not {"flextopo.cli", "flextopo.train", "flextopo.baselines"} & names


@pytest.mark.parametrize("name", ["envs", "policies", "baselines", "train"])
def test_root_links_open_the_packages_folders(name: str) -> None:
    link = ROOT / name
    if not link.exists():
        pytest.skip("installed without the repository's root")
    assert link.resolve() == (ROOT / "flextopo" / name).resolve()
    assert link.is_symlink()
    assert not link.readlink().is_absolute()
