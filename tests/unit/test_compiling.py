"""What the first command of a fresh machine says while kernels compile, and nobody else."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flextopo.cli import compiling
from flextopo.cli.app import main
from flextopo.cli.terminal import lines, progress
from flextopo.cluster.jit import sources


@pytest.fixture
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.delenv("NUMBA_DISABLE_JIT", raising=False)
    monkeypatch.setattr(compiling, "_armed", True)


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("way", [progress, lines])
def test_it_is_said_once_on_standard_error(way: object, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with way("playing"):  # type: ignore[operator]
            pass
    assert capsys.readouterr() == ("", f"{compiling.SAID}\n")


@pytest.mark.usefixtures("_fresh")
def test_in_a_log_it_is_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    compiling.say_if_compiling(as_event=True)
    event = json.loads(capsys.readouterr().err)
    assert (event["event"], event["detail"]) == ("compiling", compiling.SAID)
    assert event["time"] > 0


@pytest.mark.usefixtures("_fresh")
def test_who_needs_no_kernel_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("drawing", kernels=False):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("_fresh")
def test_kept_kernels_are_found_in_each_of_the_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(folder: Path, version: str) -> None:
        (folder / f"flextopo-{version}").mkdir(parents=True)
        (folder / f"flextopo-{version}" / "scheduler.advance-1.py311.nbi").touch()

    assert not compiling.is_compiled()
    keep(tmp_path / "kernels" / "simulation_ab12", "another")
    assert not compiling.is_compiled()
    keep(tmp_path / "kernels" / "simulation_ab12", sources.SOURCES)
    assert compiling.is_compiled()
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    monkeypatch.setattr(sources, "CLUSTER", tmp_path / "cluster")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert not compiling.is_compiled()
    keep(tmp_path / "home" / "numba" / "simulation_ab12", sources.SOURCES)
    assert compiling.is_compiled()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    keep(tmp_path / "cluster" / "simulation" / "__pycache__", sources.SOURCES)
    assert compiling.is_compiled()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sources, "CLUSTER", tmp_path)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert compiling.is_compiled()


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize(
    "words",
    ["compare --selectors nonsense", "evaluate nonsense", "stress --selectors nonsense", "replay -s nonsense",
     "decide SNAPSHOT --selector nonsense", "serve --selector nonsense --snapshot SNAPSHOT"],
)  # fmt: skip
def test_an_unknown_selector_is_refused_before_it(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = tmp_path / "snapshot.json"
    snapshot.write_text("{}")
    with pytest.raises(SystemExit) as ended:
        main([str(snapshot) if word == "SNAPSHOT" else word for word in words.split()])
    said = capsys.readouterr().err
    assert (ended.value.code, compiling.SAID in said) == (2, False)
    assert said.startswith("error: unknown selector 'nonsense'; legal: ")


def test_a_fresh_machine_is_told_at_once_and_imports_nothing_for_it(tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    environment.pop("NUMBA_DISABLE_JIT", None)
    servers = [{"name": "n0", "model": "rtx4090"}]
    pods = [{"name": "p", "gpus": 1, "cores": 1, "priority": 1000}]
    body = {"servers": servers, "pods": pods, "preemptor": "p"}
    (tmp_path / "snapshot.json").write_text(json.dumps(body))
    command = [sys.executable, "-m", "flextopo", "decide", str(tmp_path / "snapshot.json")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"{compiling.SAID}\n"
        process.kill()
    code = "import sys; from flextopo.cli import compiling; print(compiling.is_compiled(), 'numba' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "False False\n"


@pytest.mark.usefixtures("_fresh")
def test_what_is_called_from_python_is_not_armed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_armed", False)
    with pytest.raises(SystemExit):
        main(["list"])
    with progress("playing"):
        pass
    assert compiling.SAID not in capsys.readouterr().err


@pytest.mark.usefixtures("_fresh")
def test_machine_code_of_a_wheel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CLUSTER", tmp_path / "cluster")
    assert not compiling.is_compiled()
    (tmp_path / "cluster" / "jit" / "machine_code").mkdir(parents=True)
    assert compiling.is_compiled()
