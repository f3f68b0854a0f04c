"""Measure other scheduling environments in the same run as ours; print ours/theirs.

Each peer is installed from the package registry into an environment of its own under
`build/peers`, with the versions of the table below, and measured there by its `peers_*.py`. All
processes live at once and take turns, round after round, so that a slow minute hits all of them;
the table shows medians. Actions are random and legal for everyone. "steps/s" times the step calls
alone, resets included; "with draw" adds the drawing of the actions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import threading
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOM = HERE.parent / "build" / "peers"
START_S = 900.0
"""Longest time that a peer may take to compile, or for a round."""


class Peer(NamedTuple):
    """A peer, and the versions it is measured with.

    Attributes:
        name: of the folder under `build/peers`.
        script: beside this file; measures it.
        pins: what to install; empty = measured in the interpreter that runs this file.
        build_pins: what to build with, where today's build tools refuse its packages.
    """

    name: str
    script: str
    pins: tuple[str, ...] = ()
    build_pins: tuple[str, ...] = ()


PEERS = (
    Peer("flextopo", "peers_ours.py"),
    Peer("gymnasium", "peers_cartpole.py"),
    Peer("jssenv", "peers_jssenv.py", ("JSSEnv==1.1.0", "gymnasium==1.4.0", "numpy==2.4.6")),
    Peer(
        "job-shop-lib",
        "peers_job_shop_lib.py",
        ("job-shop-lib==1.7.2", "gymnasium==1.4.0", "numpy==2.4.6", "networkx==3.6.1"),
    ),
    Peer(
        "or-gym",
        "peers_or_gym.py",
        ("or-gym==0.5.0", "gym==0.19.0", "numpy==1.26.4"),
        ("setuptools==65.5.0", "wheel==0.37.1"),
    ),
    Peer(
        "jumanji",
        "peers_jumanji.py",
        ("jumanji==1.1.2", "jax==0.10.2", "jaxlib==0.10.2", "chex==0.1.92", "numpy==2.4.6"),
    ),
)


class PeerError(Exception):
    """Say in one line why a peer is not in the table."""


class Row(NamedTuple):
    """One measured case; rates in steps of single environments a second."""

    environment: str
    variant: str
    num_envs: int
    meaning: str
    alone: float | None
    drawn: float
    spread: float


def install(peer: Peer) -> Path:
    """Return the interpreter of a peer's environment, made where it is missing or outdated.

    Raises:
        PeerError: it does not install.
    """
    if not peer.pins:
        return Path(sys.executable)
    folder = ROOM / peer.name
    stamp, wanted = folder / "pins.txt", "\n".join((*peer.build_pins, *peer.pins))
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {peer.name}: {' '.join(peer.pins)}", flush=True)
    venv.create(folder, clear=True, with_pip=True)
    if peer.build_pins:
        _pip(python, peer.build_pins)
    _pip(python, (*(("--no-build-isolation",) if peer.build_pins else ()), *peer.pins))
    stamp.write_text(wanted, encoding="utf-8")
    return python


def _pip(python: Path, arguments: Sequence[str]) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"does not install: {reason(done.stderr)}")


def reason(output: str) -> str:
    """Return the line that says most about a failure: the last that names an error."""
    lines = [line for raw in output.splitlines() if (line := re.sub(r"^\W+", "", raw).rstrip())]
    empty = ("note:", "error: subprocess-exited-with-error")
    errors = [line for line in lines if "rror" in line and not line.startswith(empty)]
    return (errors or lines or ["no output"])[-1][:200]


class Child:
    """A peer's script, waiting for rounds.

    Raises:
        PeerError: the script fails; also from `ask`.
    """

    def __init__(self, peer: Peer, environment: dict[str, str]) -> None:
        python = install(peer)
        self.peer = peer
        self.log = ROOM / f"{peer.name}.log"
        self.process = subprocess.Popen(
            [str(python), str(HERE / peer.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w", encoding="utf-8"),
            text=True,
            env=environment,
        )
        self.start = self._answer()

    def ask(self, seconds: float) -> list[dict[str, float | None]]:
        """Measure every case for that long."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
        answer: list[dict[str, float | None]] = self._answer()
        return answer

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        alarm = threading.Timer(START_S, self.process.kill)
        alarm.start()
        line = self.process.stdout.readline()
        alarm.cancel()
        if not line:
            self.process.wait()
            raise PeerError(f"does not run: {reason(self.log.read_text(encoding='utf-8'))}")
        return json.loads(line)

    def close(self) -> None:
        """End the script: its input ends."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def few_threads(cores: int) -> dict[str, str]:
    """Bind this process and its children to `cores` cores; return the children's environment."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    names = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA")
    threads = {f"{name}_NUM_THREADS": str(cores) for name in names}
    multi = "true" if cores > 1 else "false"
    flags = f"--xla_cpu_multi_thread_eigen={multi}"
    return {**os.environ, **threads, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def rows_of(child: Child, rounds: list[list[dict[str, float | None]]]) -> Iterator[Row]:
    """Yield the medians of a peer's cases; the spread is (most - least) / median."""
    for i, (environment, variant, num_envs, meaning) in enumerate(child.start["cases"]):
        alone = [rates for answer in rounds if (rates := answer[i]["alone"]) is not None]
        drawn = [rates for answer in rounds if (rates := answer[i]["drawn"]) is not None]
        of = alone or drawn
        yield Row(
            environment,
            variant,
            num_envs,
            meaning,
            statistics.median(alone) if alone else None,
            statistics.median(drawn),
            (max(of) - min(of)) / statistics.median(of),
        )


def ours_over(rows: Sequence[Row], row: Row) -> str:
    """Return ours/theirs, like against like: scalar, or the vector of as many environments."""
    for ours in rows:
        if ours.environment == "flextopo" and ours.num_envs == row.num_envs:
            if row.alone is None or ours.alone is None:
                return f"{ours.drawn / row.drawn:.2f}"
            return f"{ours.alone / row.alone:.2f}"
    return "not available"


def show(rows: Sequence[Row]) -> None:
    """Print the table, and what one step means in each environment."""
    print(
        f"\n{'environment':22}{'stepped':>14}{'envs':>6}{'steps/s':>13}{'with draw':>13}"
        f"{'spread':>8}{'ours/theirs':>15}"
    )
    for row in rows:
        alone = "-" if row.alone is None else f"{row.alone:,.0f}"
        ratio = "" if row.environment == "flextopo" else ours_over(rows, row)
        print(
            f"{row.environment:22}{row.variant:>14}{row.num_envs:6}{alone:>13}{row.drawn:13,.0f}"
            f"{row.spread:8.0%}{ratio:>15}"
        )
    print("\nWhat one step is:")
    for environment, meaning in {row.environment: row.meaning for row in rows}.items():
        print(f"  {environment}: {meaning}.")
    print("A rollout draws its actions itself: it is compared with draw, all else without.")


def start(names: Sequence[str], cores: int) -> tuple[list[Child], list[str]]:
    """Start the peers of these names (none = all) beside flextopo; return what did not, too."""
    children: list[Child] = []
    missing: list[str] = []
    ROOM.mkdir(parents=True, exist_ok=True)
    environment = few_threads(cores)
    for peer in PEERS:
        if names and peer.name not in ("flextopo", *names):
            continue
        try:
            child = Child(peer, environment)
        except PeerError as error:
            missing.append(f"{peer.name}: {error}")
            continue
        children.append(child)
        missing.extend(f"{case}: not available ({why})" for case, why in child.start["missing"])
    return children, missing


def play(children: Sequence[Child], rounds: int, seconds: float) -> tuple[list[Row], list[str]]:
    """Measure round after round, one child at a time; return the rows, and who broke down."""
    answers: dict[str, list[list[dict[str, float | None]]]] = {c.peer.name: [] for c in children}
    missing: dict[str, str] = {}
    for _ in range(rounds):
        for child in children:
            if child.peer.name in missing:
                continue
            try:
                answers[child.peer.name].append(child.ask(seconds))
            except PeerError as error:
                missing[child.peer.name] = f"{child.peer.name}: {error}"
    whole = [child for child in children if child.peer.name not in missing]
    rows = [row for child in whole for row in rows_of(child, answers[child.peer.name])]
    return rows, list(missing.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="repeats; the median is shown")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each case in each round")
    parser.add_argument("--cores", type=int, default=1, help="cores and threads for everyone")
    parser.add_argument("--only", nargs="*", default=[], help="peers to measure beside flextopo")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    options = parser.parse_args()
    children, missing = start(options.only, options.cores)
    rows, broken = play(children, options.rounds, options.seconds)
    missing += broken
    notes = [note for child in children for note in child.start["notes"]]
    for child in children:
        child.close()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"everyone on {options.cores} core(s) with as many threads; {options.rounds} rounds of "
        f"{options.seconds} s a case, medians"
    )
    show(rows)
    for line in [*notes, *(f"Not measured: {name}" for name in missing)]:
        print(line)
    if options.json:
        content = {"missing": missing, "notes": notes, "rows": [row._asdict() for row in rows]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
