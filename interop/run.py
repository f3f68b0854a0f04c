"""Try flextopo with libraries that it does not depend on: each in an environment of its own.

`make interop` installs them under `build/interop`, with the versions of the table below and
otherwise those of `constraints.txt`, runs the scripts of this folder and says how each went.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
ROOM = ROOT / "build" / "interop"


class Library(NamedTuple):
    """A library: the script that tries it, and what to install for it.

    Attributes:
        name: of the folder under `build/interop`.
        script: in this folder.
        pins: exact versions; they replace those of `constraints.txt`.
    """

    name: str
    script: str
    pins: tuple[str, ...]


LIBRARIES = (
    Library("gymnasium", "gymnasium_video.py", ("moviepy==2.2.1", "pillow==11.3.0")),
    Library(
        "minari",
        "minari_dataset.py",
        ("minari[create,hdf5]==0.5.4", "jax==0.10.2", "pillow==13.0.0"),
    ),
    Library(
        "torchrl", "torchrl_env.py", ("torch==2.13.0", "torchrl==0.14.1", "tensordict==0.14.3")
    ),
    # RLlib pins a Gymnasium older than the one that everything else here is tested with.
    Library("rllib", "rllib_ppo.py", ("torch==2.13.0", "ray[rllib]==2.60.0", "gymnasium==1.2.2")),
)


def constraints_of(library: Library) -> str:
    """Return `constraints.txt` without what the library pins itself."""
    pinned = {re.split(r"[\[=]", pin)[0].lower() for pin in library.pins}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return "".join(f"{li}\n" for li in lines if li.partition("==")[0].lower() not in pinned)


def install(library: Library) -> Path:
    """Return the interpreter of a library's environment, made where it is missing or outdated.

    Raises:
        subprocess.CalledProcessError: it does not install.
    """
    folder = ROOM / library.name
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join([*library.pins, constraints_of(library)])
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    print(f"installing {library.name}: {' '.join(library.pins)}", flush=True)
    venv.create(folder, clear=True, with_pip=True)
    constraints = folder / "constraints.txt"
    constraints.write_text(constraints_of(library), encoding="utf-8")
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "--constraint", str(constraints), "--editable", str(ROOT), *library.pins], check=True
    )
    stamp.write_text(wanted, encoding="utf-8")
    return python


def attempt(library: Library) -> tuple[bool, str]:
    """Install and run; return whether it went well, and the last line that was said."""
    try:
        python = install(library)
    except subprocess.CalledProcessError as error:
        return False, f"does not install: {error}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [str(python), "-W", "ignore", str(HERE / library.script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOM,
        env=environment,
    )
    (ROOM / f"{library.name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    said = done.stdout if done.returncode == 0 else done.stderr
    return done.returncode == 0, (said.strip().splitlines() or ["said nothing"])[-1]


def main() -> None:
    """Try all, or those named; exit status 1 if any fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="libraries; none = all")
    names = parser.parse_args().names
    unknown = set(names) - {library.name for library in LIBRARIES}
    if unknown:
        parser.error(f"{min(unknown)}; legal: {', '.join(one.name for one in LIBRARIES)}")
    ROOM.mkdir(parents=True, exist_ok=True)
    failed = 0
    for library in LIBRARIES:
        if names and library.name not in names:
            continue
        start = time.monotonic()
        well, said = attempt(library)
        failed += not well
        seconds = time.monotonic() - start
        print(
            f"{'ok' if well else 'FAILED':7}{library.name:10} {seconds:4.0f} s  {said}", flush=True
        )
    if failed:
        print(f"logs: {ROOM}/*.log", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
