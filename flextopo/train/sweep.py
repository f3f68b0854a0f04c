"""Search hyper-parameters: an Optuna study in a file, which an interrupted search goes on from.

Trials are asked for in batches of fixed size and told in their order, and the sampler is seeded by
the batch. So the study depends neither on how many workers there are nor on interruptions, and
only this process opens the file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from flextopo.cluster.errors import FlextopoError, UnknownNameError
from flextopo.cluster.files import make_folder
from flextopo.cluster.workload.seeds import VALIDATION, take
from flextopo.train.compare import check, play_tape
from flextopo.train.config import (
    BUDGETS,
    FIRST_TAPE,
    SPACES,
    ComparisonConfig,
    ImitationConfig,
    PPOConfig,
    SweepConfig,
)
from flextopo.train.scale_out import run_jobs


@dataclass(frozen=True)
class Trial:
    """One training: its number, what was drawn, its folder."""

    config: SweepConfig
    number: int
    drawn: dict[str, Any]
    folder: str


def training_config(config: SweepConfig, drawn: dict[str, Any]) -> Any:
    """Return the algorithm's configuration of a trial.

    Raises:
        FlextopoError: a field does not exist, or a value is not legal.
    """
    values: dict[str, Any] = {}
    kind: type[PPOConfig | ImitationConfig] = PPOConfig
    if config.algorithm == "imitation":
        kind = ImitationConfig
        # The best of several, or what several say, would hide what the hyper-parameters do.
        values |= {"networks": 1, "members": 0}
    values |= {
        **config.fixed,
        BUDGETS[config.algorithm]: config.budget,
        "seed": config.seed,
        **drawn,
    }
    known = [spec.name for spec in fields(kind)]
    for name in values:
        if name not in known:
            raise UnknownNameError("hyper-parameter", name, known)
    return kind(**values)


def run_trial(trial: Trial) -> float:
    """Train, and return the mean weighted loss on the tapes that judge."""
    folder = Path(trial.folder)
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted search left of it
    config = training_config(trial.config, trial.drawn)
    policy = _trainer(trial.config.algorithm)(config, folder)
    judge = _judge(trial.config, str(policy))
    seeds = take(VALIDATION, trial.config.tapes, FIRST_TAPE)
    return float(np.mean([play_tape(judge, str(policy), seed)["weighted_loss"] for seed in seeds]))


def _trainer(algorithm: str) -> Callable[[Any, Path], Path]:
    """Return what trains; whatever it needs is imported here."""
    if algorithm == "ppo":
        from flextopo.train.ppo import train_ppo

        return train_ppo
    from flextopo.train.imitation import train_imitation

    return lambda config, folder: train_imitation(config, folder, 1, lambda _: None)


def _judge(config: SweepConfig, policy: str) -> ComparisonConfig:
    return ComparisonConfig(
        servers=config.judged_on, selectors=(), policies=(policy,), split="validation"
    )


def run_sweep(
    config: SweepConfig,
    out: Path,
    workers: int,
    ray: str | None = None,
    done: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Search, or go on searching, with the study in `out / "study.db"`.

    Args:
        config: what is searched; only `trials` may change when a study goes on.
        out: folder of the study and of the trials' runs; on a cluster one that all machines share.
        workers: see `run_jobs`.
        ray: see `run_jobs`.
        done: is told how many of how many trials are over.

    Returns:
        `{"config", "trials": [{"number", "loss", "drawn"}], "best": one of them}`.

    Raises:
        FlextopoError: Optuna is not installed, or the folder holds another study.
    """
    check(ComparisonConfig(servers=config.judged_on, selectors=("greedy-cost",), policies=()))
    training_config(config, {})
    _trainer(config.algorithm)  # what is not installed shows before the first trial
    study = _open(config, out)
    sampler = _optuna().samplers.TPESampler
    while _finished(study) < config.trials:
        over = _finished(study)
        size = min(config.batch, config.trials - over)
        numbers = _left_running(config, study)
        while len(numbers) < size:
            study.sampler = sampler(seed=config.seed * 100_003 + over + len(numbers))
            trial = study.ask()
            numbers.append((trial.number, _draw(config, trial)))
        jobs = [
            Trial(config, number, drawn, str(out / "trials" / f"{number:04d}"))
            for number, drawn in numbers[:size]
        ]
        losses: dict[int, float] = {}
        for i, loss in run_jobs(run_trial, jobs, workers, ray):
            losses[i] = loss
            if done is not None:
                done(over + len(losses), config.trials)
        for i, job in enumerate(jobs):
            study.tell(job.number, losses[i])
    return _summary(config, study)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise FlextopoError("a sweep needs optuna; legal: pip install 'flextopo[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _open(config: SweepConfig, out: Path) -> Any:
    """Return the study of a folder, new or as it was left."""
    optuna = _optuna()
    from sqlalchemy.pool import NullPool

    make_folder(out)
    said = json.dumps({**asdict(config), "trials": None}, sort_keys=True)
    try:
        # Without a pool every connection is closed when it was used.
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{out / 'study.db'}", engine_kwargs={"poolclass": NullPool}
        )
        study = optuna.create_study(
            storage=storage,
            study_name="flextopo",
            load_if_exists=True,
            direction="minimize",
        )
        before = study.user_attrs.get("config")
        if before is None:
            study.set_user_attr("config", said)
    except Exception as error:
        if not type(error).__module__.startswith(("optuna", "sqlalchemy")):
            raise
        raise FlextopoError(f"{out / 'study.db'}: no study; legal: an empty folder") from None
    if before not in (None, said):
        raise FlextopoError(
            f"{out}: holds a study with other options; legal: another folder, or {before}"
        )
    return study


def _left_running(config: SweepConfig, study: Any) -> list[tuple[int, dict[str, Any]]]:
    """Return the trials that an interrupted search has drawn and not finished."""
    left = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished():
            continue
        if len(trial.params) == len(config.searched):
            left.append((trial.number, dict(trial.params)))
        else:  # interrupted while it was drawn
            study.tell(trial.number, state=_optuna().trial.TrialState.FAIL)
    return left


def _draw(config: SweepConfig, trial: Any) -> dict[str, Any]:
    """Let the sampler choose; whole numbers where the configuration has whole numbers."""
    drawn: dict[str, Any] = {}
    default = training_config(config, {})
    for name in config.searched:
        space = SPACES[config.algorithm][name]
        if isinstance(getattr(default, name), int):
            drawn[name] = trial.suggest_int(name, int(space.low), int(space.high), log=space.log)
        else:
            drawn[name] = trial.suggest_float(name, space.low, space.high, log=space.log)
    return drawn


def _finished(study: Any) -> int:
    return sum(trial.value is not None for trial in study.get_trials(deepcopy=False))


def _summary(config: SweepConfig, study: Any) -> dict[str, Any]:
    trials = [
        {"number": trial.number, "loss": trial.value, "drawn": dict(trial.params)}
        for trial in study.get_trials(deepcopy=False)
        if trial.value is not None
    ]
    best = min(trials, key=lambda trial: (trial["loss"], trial["number"]))
    return {"config": asdict(config), "trials": trials, "best": best}
