"""Other places to which a run reports, such as Weights & Biases, MLflow or a lab's own database."""

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
    """Whatever can be told how a run goes."""

    def log(self, stage: str, round: int, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the numbers of a line of metrics.jsonl, after every epoch.

        A run that was killed tells the steps since its last checkpoint a second time, with the same
        values.

        Args:
            stage: 'pretrain', or 'finetune/' and the branch.
            round: of the stage.
            step: of the stage; each begins from 0.
            metrics: such as 'loss', 'validation_auc' and 'epoch'.
        """


class Guarded:
    """A tracker whose errors do not stop the run: the first is told."""

    def __init__(self, tracker: Tracker):
        self._tracker = tracker
        self._told = False

    def log(self, stage: str, round: int, step: int, metrics: Mapping[str, float]) -> None:
        """As `Tracker.log`."""
        try:
            self._tracker.log(stage, round, step, metrics)
        except Exception as error:  # the user's own code: no result depends on it
            if not self._told:
                logger.warning(
                    "The tracker %s failed at step %d of %s (%r). The run goes on and goes on "
                    "telling it; further errors of it are not shown.",
                    type(self._tracker).__name__,
                    step,
                    stage,
                    error,
                )
            self._told = True


def load(name: str, config: ConfigDict, workdir: Path) -> Tracker:
    """Makes a tracker by what --tracker=module:function names.

    Args:
        name: of the function, or class, which is called with the two others.
        config: of the run.
        workdir: of the run.

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
