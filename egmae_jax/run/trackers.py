"""Trackers of a run, such as Weights & Biases, MLflow or a lab's own database."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ml_collections import ConfigDict

from egmae_jax.run.config import ConfigError


@runtime_checkable
class Tracker(Protocol):
    """Takes the metrics of every epoch."""

    def log(self, stage: str, round: int, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the metrics of one epoch.

        A run that was killed logs the steps since its last checkpoint a second time, with the same
        values.

        Args:
            stage: 'pretrain', or 'finetune/' and the branch.
            round: round of the stage.
            step: steps done in the stage.
            metrics: numbers such as 'loss', 'validation_auc' and 'epoch'.
        """


def load(name: str, config: ConfigDict, workdir: Path) -> Tracker:
    """Creates the tracker that --tracker=module:function names.

    Args:
        name: module and function, or class, which is called with the config and the workdir.
        config: config of the run.
        workdir: folder of the run.

    Raises:
        ConfigError: there is no such function, it fails, or what it makes is no tracker.
    """
    module_name, _, function = name.partition(":")
    try:
        make: Any = getattr(importlib.import_module(module_name), function)
        tracker = make(config.to_dict(), workdir)
    except Exception as error:  # the user's own code may raise anything
        reason = str(error) if isinstance(error, ImportError | AttributeError) else repr(error)
        raise ConfigError(
            f"--tracker={name}: {reason}. It must be module:function, such as my_trackers:Wandb; "
            "Python looks for modules beside main.py, or, by egmae, in the current folder, and in "
            "PYTHONPATH."
        ) from error
    if not isinstance(tracker, Tracker):
        raise ConfigError(
            f"--tracker={name} made a {type(tracker).__name__}, which has no log(stage, round, "
            "step, metrics)."
        )
    return tracker
