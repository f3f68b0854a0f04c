"""The help of `flextopo`: a map, true examples, options of the configurations, completion."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from pages import ROOT, check_command

from flextopo.baselines.registry import SELECTORS
from flextopo.cli import completion
from flextopo.cli.app import MAP, main
from flextopo.cli.configuration import (
    ALGORITHMS,
    COMPARISON,
    PLAN,
    SCENARIO,
    SWEEP,
    WORKLOAD,
    Configuration,
    read_attributes,
)
from flextopo.cli.reference import fill, walk
from flextopo.cluster.errors import FlextopoError
from flextopo.cluster.scenario import ADMISSIONS
from flextopo.cluster.topology.model import PRESETS
from flextopo.envs.registration import ENVIRONMENTS
from flextopo.policies.shipped import zoo_names

COLOURING = ("GITHUB_ACTIONS", "FORCE_COLOR", "PY_COLORS")
PLAIN = {
    **{name: value for name, value in os.environ.items() if name not in COLOURING},
    "COLUMNS": "80",
}
COMMANDS = {name: command for _, name, command in walk() if hasattr(command, "examples")}


def flextopo(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as in a pipe."""
    command = [sys.executable, "-m", "flextopo", *arguments]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, capture_output=True, text=True, check=False, env=PLAIN, **more
    )
    return done


def shown_by_help(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*name.split()[1:], "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_map_has_every_command_on_one_line_of_its_panel() -> None:
    done = flextopo("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    panels = {name: set(commands) for name, commands in MAP.items()}
    panels["Look around"] |= {"topology", "trace"}
    panels["Compare"] |= {"bench"}
    found: dict[str, set[str]] = {}
    for panel, inside in re.findall(r"╭─ (.+?) ─+╮\n(.+?)╰", done.stdout, re.DOTALL):
        found[panel] = set()
        for line in inside.splitlines() if panel != "Options" else []:
            row = re.fullmatch(r"│ (\S+) +(\S.+\.) *│", line)
            assert row is not None, f"no command in one line: {line}"
            found[panel].add(row[1])
    assert list(found) == ["Options", *panels]
    assert found == {"Options": set(), **panels}


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_commands_that_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    examples = COMMANDS[name].examples
    assert examples
    said = shown_by_help(name, capsys)
    for example in examples:
        assert f"\n   {example}\n" in said
        words = shlex.split(example)
        assert words[: len(name.split())] == name.split()
        check_command(words)
        fields = {**ALGORITHMS["ppo"].fields, **ALGORITHMS["imitation"].fields, **WORKLOAD.fields}
        settings = [after for word, after in pairwise(words) if word == "--set"]
        assert {setting.partition("=")[0] for setting in settings} <= set(fields)


def test_an_example_with_a_wrong_option_or_without_an_argument_is_noticed() -> None:
    for wrong in ("flextopo compare --seed 3", "flextopo evaluate", "flextopo topology show"):
        with pytest.raises(Exception, match=r"No such option|Missing parameter"):
            check_command(wrong.split())


@pytest.mark.parametrize(
    "configuration", [COMPARISON, WORKLOAD, SCENARIO, PLAN, SWEEP, *ALGORITHMS.values()],
    ids=lambda configuration: configuration.name,
)  # fmt: skip
def test_every_field_of_a_configuration_has_a_meaning(configuration: Configuration) -> None:
    kind = configuration.kind
    declared = dataclasses.fields(kind)
    assert list(configuration.fields) == [spec.name for spec in declared]
    for spec in declared:
        field = configuration.fields[spec.name]
        assert field.meaning, spec.name
        assert field.type == spec.type
        if field.default is not None:
            assert field.default == getattr(kind(), spec.name)
    known = [name for name, field in configuration.fields.items() if field.default is not None]
    assert known


def test_attributes_are_read_with_their_further_lines() -> None:
    docstring = """Say.

    Attributes:
        one: first
            and second; see `x`: y.
        two: last.

    Raises:
        three: not this.
    """
    assert read_attributes(docstring) == {"one": "first and second; see `x`: y.", "two": "last."}


@pytest.mark.parametrize(
    ("command", "option", "default", "words"),
    [
        ("compare", "--seeds", COMPARISON.defaults["seeds"], "each one tape"),
        ("compare", "--hours", 24.0, "hours in the account"),
        ("train", "--timesteps", "100000", "decisions in all"),
        ("sweep", "--trials", SWEEP.defaults["trials"], "how many in all"),
        ("reproduce", "--preemptions", 5000, "counted in each run"),
    ],
)
def test_options_have_default_and_meaning_of_their_field(
    command: str, option: str, default: Any, words: str
) -> None:
    params = {param.opts[-1]: param for param in COMMANDS[f"flextopo {command}"].params}
    param = params[option]
    assert words in param.help.lower()
    assert default in (param.default, param.show_default)


def test_every_command_but_those_that_go_on_has_json() -> None:
    without = [
        name
        for name, command in COMMANDS.items()
        if "--json" not in [option for param in command.params for option in param.opts]
    ]
    assert without == ["flextopo serve", "flextopo agent"]


def test_settings_are_json_or_plain_text_of_the_fields_type() -> None:
    ppo, imitation = ALGORITHMS["ppo"], ALGORITHMS["imitation"]
    given = ["servers=2*a100", "hidden=32", "learning_rate=1e-4", "allow_wait=true", 'start=""']
    assert ppo.parse(given) == {
        "servers": "2*a100",
        "hidden": 32,
        "learning_rate": 1e-4,
        "allow_wait": True,
        "start": "",
    }
    assert imitation.parse(["servers=2*a100"]) == {"servers": ("2*a100",)}
    assert imitation.parse(['servers=["a","b"]']) == {"servers": ("a", "b")}
    assert WORKLOAD.parse(["services=null", "services_per_128_gpus=3"]) == {
        "services": None,
        "services_per_128_gpus": 3.0,
    }
    made = ppo.make({"seed": 3, "timesteps": None}, ["seed=4", "hidden=8"])
    assert (made.seed, made.hidden, made.timesteps) == (4, 8, ppo.defaults["timesteps"])
    for setting, words in [
        ("hidden=wide", "hidden = wide; legal: int"),
        ("hidden=1.5", "hidden = 1.5; legal: int"),
        ("allow_wait=perhaps", "allow_wait = perhaps; legal: bool"),
        ("hidden", "FIELD=VALUE"),
        ("breadth=3", r"hidden \(int\)"),
    ]:
        with pytest.raises(FlextopoError, match=words):
            ppo.parse([setting])
    with pytest.raises(FlextopoError, match=r"--rounds with PPOConfig; legal: servers \(str\)"):
        ppo.make({"rounds": 3}, [])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_field_of_an_algorithm_can_be_set(algorithm: str) -> None:
    configuration = ALGORITHMS[algorithm]
    default = configuration.kind()
    values = dataclasses.asdict(default)
    given = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    assert configuration.make({}, given) == default
    assert set(get_type_hints(configuration.kind)) == set(values)


LOADED = """
import atexit, sys
atexit.register(lambda: print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr))
sys.argv = ["flextopo", *sys.argv[1:]]
from flextopo.cli.app import main
main()
"""
TORCH = {"torch", "stable_baselines3", "sb3_contrib", "matplotlib"}
COMPILING = {"numba", "llvmlite", "scipy"}


def loaded(*arguments: str, **variables: str) -> tuple[str, set[str]]:
    """Return what a command prints, and the packages that it loads."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments],
        capture_output=True, text=True, check=True, env={**PLAIN, **variables},
    )  # fmt: skip
    return done.stdout, set(done.stderr.split())


def test_help_and_lists_load_nothing_heavy() -> None:
    for arguments in (["--help"], ["train", "--help"], ["list", "ppo"], ["topology", "presets"]):
        said, packages = loaded(*arguments)
        assert said
        assert "typer" in packages
        assert not (TORCH | COMPILING) & packages, arguments
    assert not TORCH & loaded("list")[1]


def test_completion_loads_nothing_heavy() -> None:
    for words in ("compare --selectors godel,", "train --set ", "evaluate ", "replay --admission "):
        said, packages = loaded(
            _FLEXTOPO_COMPLETE="complete_bash",
            COMP_WORDS=f"flextopo {words}",
            COMP_CWORD=str(len(words.split(" "))),
        )
        assert len(said.splitlines()) >= 1, words
        assert not (TORCH | COMPILING) & packages, words


def test_completions_are_the_names_that_commands_take() -> None:
    def names(found: completion.Completions) -> list[str]:
        return [name for name, _ in found]

    assert completion.selectors("") == [
        *((name, about) for name, (_, about) in SELECTORS.items()),
        *((name, "ships with the package") for name in zoo_names()),
    ]
    assert names(completion.selector_list("godel,g")) == ["godel,greedy-cost", "godel,gfs"]
    assert names(completion.policy_list("")) == ["all", "none", *zoo_names()]
    assert completion.servers("") == [(of, name) for name, (of, _) in ENVIRONMENTS.items()]
    assert names(completion.servers("8*rtx4090,8*")) == [f"8*rtx4090,8*{name}" for name in PRESETS]
    assert names(completion.sources("")) == [*PRESETS, "detect"]
    assert names(completion.algorithms("i")) == ["imitation"]
    assert names(completion.admissions("")) == list(ADMISSIONS)
    assert names(completion.workload_fields("burst_f")) == ["burst_factor="]
    assert set(names(completion.training_fields(""))) == {
        f"{name}=" for configuration in ALGORITHMS.values() for name in configuration.fields
    }


ASKING = """
source <(flextopo --show-completion)
ask() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    _flextopo_completion flextopo "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    echo "${COMPREPLY[*]}"
}
complete -p flextopo
ask flextopo rep
ask flextopo compare --selectors gr
ask flextopo topology show a
ask flextopo train --algorithm im
"""


def test_bash_completes(tmp_path: Path) -> None:
    bash, scripts = shutil.which("bash"), Path(sys.executable).parent
    if bash is None or not (scripts / "flextopo").exists():
        pytest.skip("needs bash and an installed flextopo")
    variables = {**PLAIN, "PATH": f"{scripts}{os.pathsep}{PLAIN['PATH']}", "HOME": str(tmp_path)}

    def ask(script: str) -> list[str]:
        done = subprocess.run(
            [bash, "--norc", "-c", script],
            capture_output=True, text=True, check=True, env=variables,
        )  # fmt: skip
        assert done.stderr == ""
        return done.stdout.splitlines()

    # `true`, since bash would otherwise become the command, which then finds no shell around it.
    ask("flextopo --install-completion; true")
    installed = ASKING.replace("source <(flextopo --show-completion)", "source ~/.bashrc")
    for script in (ASKING, installed):
        head, *found = ask(f"{script}\ntrue")
        assert head == "complete -o default -F _flextopo_completion flextopo"
        assert found == ["replay report reproduce", "greedy-cost", "a100", "imitation"]


def test_the_page_of_the_documentation_is_up_to_date() -> None:
    page = ROOT / "docs" / "command-line.md"
    if not page.exists():
        pytest.skip("installed without the repository's root")
    text = page.read_text()
    assert fill(text) == text, "run python -m flextopo.cli.reference docs/command-line.md"
    assert fill(text.replace("### flextopo serve", "")) == text
    table = (ROOT / "README.md").read_text()
    for name in COMMANDS:
        assert f"`{' '.join(name.split()[:2])}`" in table
