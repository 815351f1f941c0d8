"""Trackers of metrics, such as Weights & Biases, MLflow or a lab's own database."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ml_collections import ConfigDict

from egmae_jax.run.config import ConfigError


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


def load(name: str, config: ConfigDict, workdir: Path) -> Tracker:
    """Creates the tracker of --tracker=module:function.

    Args:
        name: 'module:function'; the function or class is called with the config, as a dict, and the
            workdir.
        config: config of the run.
        workdir: folder of the run.

    Raises:
        ConfigError: the function is missing, it fails, or its result is not a tracker.
    """
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
