"""Play everything that the tables of README and docs are made of, stage by stage, and go on after a stop.

`tables.py` prints the stages with estimated minutes and plays those that are not done; `tables.py
GROUP...` plays the stages of a group whether or not they are. A stage is done when its file is what
the same command made with the same sources: `results/tables/` keeps a note of each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from flextopo.train.results import save_results

ROOT = Path(__file__).parents[1]
NOTES = ROOT / "results" / "tables"

STRONGEST = "greedy-cost,gfs,requeue-aware"
EVERYBODY = (
    "random,kubernetes,godel,flextopo-best-effort,flextopo-guaranteed,flextopo,greedy-cost,exact,gfs,"
    "requeue-aware,lookahead,oracle-lookahead"
)
RULES = (
    "kubernetes,godel,flextopo-best-effort,flextopo-guaranteed,greedy-cost,requeue-aware,gfs,exact"
)
GANG_RULES = (
    "random,kubernetes,godel,flextopo-best-effort,flextopo-guaranteed,flextopo,kubernetes-workload,"
    "kueue,volcano,greedy-cost,gfs,requeue-aware,requeue-aware-gangs"
)
AHEAD = "greedy-cost,requeue-aware,lookahead,oracle-lookahead"
RECORDED = f"kubernetes,flextopo-guaranteed,{STRONGEST},lookahead,oracle-lookahead"
LIMITS = "deepset-imitation@3600,deepset-imitation@300,deepset-imitation@0"
BOTH = "deepset-imitation,deepset-imitation@0"
FIRST = "--policies deepset-imitation"
"""Tables that are older than the second policy show the first alone."""

BOUND = "greedy-cost,requeue-aware,oracle-lookahead,requeue-aware+plan@64,deepset-planning+plan@64"
"""What can be known: 64 imagined futures, with the rule and with the policy going on in them."""

LEARNT = "deepset-imitation,deepset-planning,deepset-planning@0"
SEEDS = ",".join(
    f"{policy},{policy}@0"
    for policy in ("deepset-planning", "benchmarks/seeds/planning-1", "benchmarks/seeds/planning-2")
)
"""The same training with three seeds; see `recipes.py`."""

SERVED = ",".join(name for name in SEEDS.split(",") if name.endswith("@0"))
"""Those as they are served."""

SHOWN = ("weighted_loss", "guaranteed_hit_rate", "late_by_choice")
"""What is kept of them: the loss, and what no policy may do."""

SERVERS = {"": "16*rtx4090", "-a100": "16*a100", "-mixed": "8*rtx4090,8*a100"}


class Stage(NamedTuple):
    """One file of results: its group, its path below docs/results, the command, about how long.

    `copies` are pairs of a picture under results/ and where it goes under docs/results/; `kept`, the metrics
    that the file keeps, all if there are none: a thousand tapes with all of them are 3 MB.
    """

    group: str
    file: str
    command: tuple[str, ...]
    minutes: float
    copies: tuple[tuple[str, str], ...] = ()
    kept: tuple[str, ...] = ()


def compare(group: str, name: str, minutes: float, words: str, picture: bool = False) -> Stage:
    """Return the stage of a comparison; `words` are its options."""
    command = ("compare", *shlex.split(words), "--out", f"results/{name}", "--json")
    copies = ((f"{name}/compare.png", f"{name}.png"),) if picture else ()
    return Stage(group, f"{name}.json", (*command, f"docs/results/{name}.json"), minutes, copies)


def stages(traces: str) -> list[Stage]:
    """Return all stages, in the order in which they are played."""
    recorded = (
        f"--services {traces}/online/servegen_services34_10min.csv.gz"
        f" --batch {traces}/batch/batch_jobs_unified.csv.gz"
    )
    plans = ",".join(f"requeue-aware+plan@{futures}" for futures in (16, 64, 256, 1024))
    planned = f"{AHEAD},requeue-aware+plan@64,requeue-aware+plan@256,requeue-aware+plan@256@0"
    found = [
        Stage(
            "fit",
            "fits/requeue.json",
            ("fit-requeue", "--json", "docs/results/fits/requeue.json"),
            1,
        ),
        Stage(
            "fit",
            "fits/requeue-gangs.json",
            (
                *("fit-requeue", "--servers", "64*a100@leaf8", "--seeds", "200"),
                *("--set", "gang_share=0.25", "--set", "grid=[0, 0.1, 0.25, 0.5, 1]"),
                *("--json", "docs/results/fits/requeue-gangs.json"),
            ),
            5,
        ),
        Stage(
            "reproduce",
            "reproduce.json",
            (
                "reproduce",
                "--json",
                "docs/results/reproduce.json",
                "--markdown",
                "docs/reproduction.md",
            ),
            1,
            (("reproduce/reproduce.png", "reproduce.png"),),
        ),
    ]
    for tail, servers in SERVERS.items():
        slow, name = (",rollout", "rtx4090") if not tail else ("", tail[1:])
        words = f"--servers {servers} --selectors {EVERYBODY}{slow} {FIRST} --seeds 50"
        found.append(compare("results", name, 4 if slow else 1, words, picture=not tail))
    day = "replay docs/results/rtx4090.json -s greedy-cost -s deepset-imitation --seed 2000019"
    command = shlex.split(f"{day} --output docs/results/day.gif")
    found.append(Stage("results", "day.gif", tuple(command), 0.5))
    for span, hours, minutes in (("month", 672, 1), ("quarter", 2184, 2)):
        for tail, servers in SERVERS.items():
            words = f"--servers {servers} --selectors {STRONGEST} {FIRST} --seeds 50"
            words += f" --hours {hours}"
            found.append(compare("results", span + tail, minutes, words))
    for peak in (50, 70, 95):
        words = f"--servers 16*rtx4090 --selectors {STRONGEST},oracle-lookahead {FIRST} --seeds 50"
        found.append(compare("results", f"peak{peak}", 1, f"{words} --peak 0.{peak}"))
    words = f"--servers 16*rtx4090 --selectors {STRONGEST} --seeds 50 --hours 2184"
    found.append(compare("results", "limit", 1, f"{words} --policies {LIMITS}"))
    for count, seeds in ((128, 20), (1000, 10)):
        words = f"--servers {count}*rtx4090 --selectors {STRONGEST} {FIRST} --seeds {seeds}"
        found.append(compare("results", f"s{count}", 3, words))
    for tail, servers in SERVERS.items():
        words = f"--servers {servers} --selectors {AHEAD},{plans} --policies deepset-imitation"
        found.append(compare("planning", f"planning{tail}", 10, f"{words} --seeds 50"))
        words = f"--servers {servers} --selectors {BOUND} --policies deepset-planning --seeds 50"
        found.append(compare("planning", f"bound{tail}", 4, words))
    for tail, servers in SERVERS.items():
        words = f"--servers {servers} {recorded} --selectors {RECORDED} --policies {BOTH}"
        found.append(compare("recorded", f"recorded{tail}", 20, f"{words} --seeds 100"))
    words = f"--servers 16*rtx4090 {recorded} --selectors {planned} --policies {BOTH} --seeds 20"
    found.append(compare("recorded", "planning-recorded", 10, words))
    words = (
        f"--servers 16*rtx4090 {recorded} --policies none --seeds 100 --oracle-seeds 100"
        " --selectors greedy-cost,requeue-aware,oracle-lookahead,requeue-aware+plan@64"
        " --set daily_amplitude=0 --set half_daily_amplitude=0"
    )
    found.append(compare("recorded", "planning-recorded-flat", 10, words))
    for tail, servers in SERVERS.items():
        few = f"--selectors {STRONGEST} --policies deepset-planning,deepset-planning@0"
        words = f"--servers {servers} {few} --seeds 50 --hours 2184"
        found.append(compare("learnt", f"learnt-quarter{tail}", 0.5, words))
        every = f"--selectors {STRONGEST},lookahead,oracle-lookahead --policies {LEARNT}"
        words = f"--servers {servers} {every} --seeds 200 --oracle-seeds 200"
        found.append(compare("learnt", f"learnt{tail}", 0.5, words))
        words = f"--servers {servers} {recorded} {every} --seeds 100 --oracle-seeds 100"
        found.append(compare("learnt", f"learnt-recorded{tail}", 0.5, words))
    found += training_seeds(recorded)
    gangs = "--set gang_share=0.25"
    words = f"--servers 64*a100@leaf8 {gangs} --selectors {STRONGEST},requeue-aware-gangs"
    found.append(compare("learnt", "learnt-gangs", 1, f"{words} --policies {LEARNT} --seeds 20"))
    words = f"--servers 64*a100@leaf8 {gangs} --selectors {GANG_RULES},lookahead,oracle-lookahead"
    words += f" {FIRST}"
    found.append(compare("gangs", "gangs64", 15, f"{words} --seeds 20 --oracle-seeds 10"))
    words = f"--servers 1000*a100@leaf8 {gangs} --selectors {GANG_RULES} {FIRST} --seeds 3"
    found.append(compare("gangs", "gangs1000", 20, words))
    stress = (
        "stress",
        "--seeds",
        "20",
        "--selectors",
        RULES,
        "--policies",
        "deepset-imitation,deepset-planning@0",
        "--out",
        "results/stress",
        "--json",
        "docs/results/stress.json",
    )
    return [*found, Stage("stress", "stress.json", stress, 10)]


def training_seeds(recorded: str) -> list[Stage]:
    """Return the stages of policies that differ in their training seed; `recorded` names the traces."""
    seeds = f"--selectors greedy-cost,requeue-aware --policies {SEEDS}"
    served = f"--selectors greedy-cost,requeue-aware --policies {SERVED}"
    found = []
    for tail, servers in SERVERS.items():
        words = f"--servers {servers}"
        days = f"{words} {seeds} --seeds 1000".replace("requeue-aware", "requeue-aware,lookahead")
        found.append(compare("seeds", f"seeds{tail}", 2, days))
        quarters = f"{words} {served} --seeds 400 --hours 2184"
        found.append(compare("seeds", f"seeds-quarter{tail}", 3, quarters))
        stretches = f"{words} {seeds} {recorded} --seeds 100"
        found.append(compare("seeds", f"seeds-recorded{tail}", 0.5, stretches))
    for count, tapes in ((128, 100), (1000, 30)):
        words = f"--servers {count}*rtx4090 {seeds} --seeds {tapes}"
        found.append(compare("seeds", f"seeds-{count}", 3, words))
    words = f"--servers 64*a100@leaf8 --set gang_share=0.25 {seeds} --seeds 200"
    words = words.replace("requeue-aware", "requeue-aware,requeue-aware-gangs")
    found.append(compare("seeds", "seeds-gangs", 2, words))
    return [stage._replace(kept=SHOWN) for stage in found]


def sources() -> str:
    """Return the hash of all that decides about a number: the package and what ships with it."""
    found = hashlib.sha256()
    for path in sorted((ROOT / "flextopo").rglob("*")):
        if path.suffix in (".py", ".npz", ".json") and path.is_file():
            found.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def note(stage: Stage, state: str) -> dict[str, str]:
    """Return what is to be remembered of a stage that is done."""
    made = hashlib.sha256((ROOT / "docs" / "results" / stage.file).read_bytes()).hexdigest()
    return {"command": shlex.join(stage.command), "sources": state, "file": made}


def is_done(stage: Stage, state: str) -> bool:
    """Say whether a stage's file is what its command made with these sources."""
    kept = NOTES / f"{Path(stage.file).stem}.json"
    if not kept.exists() or not (ROOT / "docs" / "results" / stage.file).exists():
        return False
    before: dict[str, str] = json.loads(kept.read_text())
    return note(stage, state).items() <= before.items()


def why_not(stage: Stage) -> str | None:
    """Return why a stage cannot be played here, or None if it can."""
    words = stage.command
    if "--services" in words and not Path(words[words.index("--services") + 1]).exists():
        return "no traces; TRACES=FOLDER has them"
    return None


def keep_some(path: Path, metrics: tuple[str, ...]) -> None:
    """Drop all other metrics from a file of results."""
    found = json.loads(path.read_text())
    for name, rows in found["selectors"].items():
        found["selectors"][name] = {metric: rows[metric] for metric in metrics}
    save_results(found, path)


def play(stage: Stage, state: str) -> None:
    """Play a stage, copy its pictures, and remember that it is done."""
    begin = time.perf_counter()
    program = Path(sys.executable).parent / "flextopo"
    subprocess.run([str(program), *stage.command], cwd=ROOT, check=True)
    if stage.kept:
        keep_some(ROOT / "docs" / "results" / stage.file, stage.kept)
    for picture, copy in stage.copies:
        if (ROOT / "results" / picture).exists():
            shutil.copy(ROOT / "results" / picture, ROOT / "docs" / "results" / copy)
    minutes = (time.perf_counter() - begin) / 60
    NOTES.mkdir(parents=True, exist_ok=True)
    kept = {**note(stage, state), "minutes": f"{minutes:.1f}"}
    (NOTES / f"{Path(stage.file).stem}.json").write_text(json.dumps(kept, indent=1) + "\n")
    print(f"{stage.file}: {minutes:.1f} minutes", flush=True)


def main(words: list[str] | None = None) -> int:
    """Print the plan and play it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("groups", nargs="*", help="play these again; default: what is not done")
    parser.add_argument("--traces", default="../shared/data", help="folder of recorded demand")
    parser.add_argument("--plan", action="store_true", help="print what would be played")
    options = parser.parse_args(words)
    every = stages(options.traces)
    known = sorted({stage.group for stage in every})
    if set(options.groups) - set(known):
        parser.error(f"groups {' '.join(options.groups)}; legal: {', '.join(known)}")
    state, left, rows = sources(), [], []
    for stage in every:
        if options.groups and stage.group not in options.groups:
            continue
        done = not options.groups and is_done(stage, state)
        say = "done" if done else why_not(stage) or f"about {stage.minutes:g} minutes"
        rows.append(f"{stage.group:10}{stage.file:30}{say}")
        if not done and why_not(stage) is None:
            left.append(stage)
    total = sum(stage.minutes for stage in left)
    print("\n".join(rows), f"{len(left)} to play, about {total:g} minutes on two cores", sep="\n")
    for stage in [] if options.plan else left:
        print(f"{stage.file}: {shlex.join(stage.command)}", flush=True)
        play(stage, state)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; what was played is kept, `make tables` goes on")
    except subprocess.CalledProcessError as failed:
        sys.exit(f"stopped: exit status {failed.returncode} of the last command")
