"""Trackers of metrics, such as Weights & Biases, MLflow or a lab's own database."""

import hashlib
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ml_collections import ConfigDict

from egmae_jax.core.errors import ConfigError

_PROJECT = "egmae"  # project or experiment that runs are filed under


@runtime_checkable
class Tracker(Protocol):
    """Receives the metrics of every epoch."""

    def log(self, stage: str, round: int, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics of one epoch.

        A resumed run logs the epochs since its last checkpoint again, with the same values.

        Args:
            stage: 'pretrain', or 'finetune/' and the branch.
            round: index of the round.
            step: number of steps done in the stage.
            metrics: numbers by name, such as 'loss', 'validation_auc' and 'epoch'.
        """


class Wandb:
    """Logs to Weights & Biases as a run of the project 'egmae', which a resumed run continues."""

    def __init__(self, config: Mapping[str, Any], workdir: Path):
        import wandb

        self._run = wandb.init(
            project=_PROJECT,
            name=workdir.name,
            id=_identity(workdir),
            resume="allow",
            config=dict(config),
        )
        self._run.define_metric("*", step_metric="step")  # each stage has steps of its own

    def log(self, stage: str, round: int, step: int, metrics: Mapping[str, float]) -> None:
        """Logs an epoch; see `Tracker.log`."""
        self._run.log(_named(stage, round, metrics) | {"step": step})


class MLflow:
    """Logs to MLflow as a run of the experiment 'egmae', which a resumed run continues."""

    def __init__(self, config: Mapping[str, Any], workdir: Path):
        import mlflow

        self._mlflow = mlflow
        mlflow.set_experiment(_PROJECT)
        tag, identity = "egmae_workdir", _identity(workdir)
        known = mlflow.search_runs(
            filter_string=f"tags.{tag} = '{identity}'", max_results=1, output_format="list"
        )
        if known:
            mlflow.start_run(run_id=known[0].info.run_id)
        else:
            mlflow.start_run(run_name=workdir.name, tags={tag: identity})
        mlflow.log_dict(dict(config), "config.json")

    def log(self, stage: str, round: int, step: int, metrics: Mapping[str, float]) -> None:
        """Logs an epoch; see `Tracker.log`."""
        self._mlflow.log_metrics(_named(stage, round, metrics), step=step)


class Aim:
    """Logs to Aim as a run of the experiment 'egmae'; a resumed run becomes another run."""

    def __init__(self, config: Mapping[str, Any], workdir: Path):
        import aim

        self._run = aim.Run(experiment=_PROJECT)
        self._run.name = workdir.name
        self._run["config"] = dict(config)

    def log(self, stage: str, round: int, step: int, metrics: Mapping[str, float]) -> None:
        """Logs an epoch; see `Tracker.log`."""
        for name, value in metrics.items():
            self._run.track(value, name=name, step=step, context={"stage": stage, "round": round})


NAMES: dict[str, Callable[[Mapping[str, Any], Path], Tracker]] = {
    "wandb": Wandb,
    "mlflow": MLflow,
    "aim": Aim,
}  # by the names of the packages


def _identity(workdir: Path) -> str:
    """Returns a name of the workdir that no other workdir of the machine has."""
    digest = hashlib.sha256(str(workdir.absolute()).encode("utf-8", "surrogateescape")).hexdigest()
    return f"egmae-{digest[:12]}"


def _named(stage: str, round: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics with stage and round before their names."""
    return {f"{stage}/round_{round}/{name}": value for name, value in metrics.items()}


def load(name: str, config: ConfigDict, workdir: Path) -> Tracker:
    """Creates the tracker of --tracker.

    Args:
        name: 'wandb', 'mlflow', 'aim', or 'module:function'; the function or class is called with
            the config, as a dict, and the workdir.
        config: config of the run.
        workdir: folder of the run.

    Raises:
        ConfigError: the package or the function is missing, it fails, or its result is not a
            tracker.
    """
    if ":" not in name:
        return _load_named(name, config, workdir)
    module_name, _, function = name.partition(":")
    try:
        make: Any = getattr(importlib.import_module(module_name), function)
        tracker = make(config.to_dict(), workdir)
    except Exception as error:  # the user's own code may raise anything
        reason = str(error) if isinstance(error, ImportError | AttributeError) else repr(error)
        raise ConfigError(
            f"--tracker={name}: {reason}. It must be module:function, such as my_trackers:Wandb; "
            "Python looks for modules beside main.py (in the current folder for the command egmae) "
            "and in PYTHONPATH."
        ) from error
    if not isinstance(tracker, Tracker):
        raise ConfigError(
            f"--tracker={name} made a {type(tracker).__name__}, which has no log(stage, "
            "round, step, metrics)."
        )
    return tracker


def _load_named(name: str, config: ConfigDict, workdir: Path) -> Tracker:
    """Creates a tracker of `NAMES`; raises ConfigError as `load` does."""
    if name not in NAMES:
        raise ConfigError(
            f"--tracker={name}: there is no tracker of this name. It must be {', '.join(NAMES)}, "
            "or module:function for one of your own."
        )
    try:
        return NAMES[name](config.to_dict(), workdir)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--tracker={name}: {error}. Install the package: pip install {name}"
        ) from error
    except Exception as error:  # the package's own errors, such as a missing login
        raise ConfigError(f"--tracker={name}: {name} could not start: {error!r}") from error
