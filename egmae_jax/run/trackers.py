"""Trackers of a run, such as Weights & Biases, MLflow or a lab's own database."""

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ml_collections import ConfigDict

from egmae_jax.run.config import ConfigError

logger = logging.getLogger(__name__)


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


class Guarded:
    """A tracker whose errors do not stop the run; the first is logged."""

    def __init__(self, tracker: Tracker):
        self._tracker = tracker
        self._has_failed = False

    def log(self, stage: str, round: int, step: int, metrics: Mapping[str, float]) -> None:
        """As `Tracker.log`."""
        try:
            self._tracker.log(stage, round, step, metrics)
        except Exception as error:  # the user's own code: no result depends on it
            if not self._has_failed:
                logger.warning(
                    "The tracker %s failed at step %d of %s (%r). The run goes on and goes on "
                    "telling it; further errors of it are not shown.",
                    type(self._tracker).__name__,
                    step,
                    stage,
                    error,
                )
            self._has_failed = True


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
    if not module_name or not function:
        raise ConfigError(f"--tracker={name} must be module:function, such as my_trackers:wandb.")
    try:
        make: Any = getattr(importlib.import_module(module_name), function)
    except ImportError as error:
        raise ConfigError(
            f"--tracker={name}: {error}. Python looks for modules beside main.py, "
            "or, by egmae, in the current folder, and in PYTHONPATH."
        ) from None
    except AttributeError:
        raise ConfigError(f"--tracker={name}: {module_name} has no {function!r}.") from None
    try:
        tracker = make(config.to_dict(), workdir)
    except Exception as error:  # the user's own code may raise anything
        raise ConfigError(f"--tracker={name} failed at its start: {error!r}.") from error
    if not isinstance(tracker, Tracker):
        raise ConfigError(
            f"--tracker={name} made a {type(tracker).__name__}, which has no log(stage, round, "
            "step, metrics)."
        )
    return tracker
