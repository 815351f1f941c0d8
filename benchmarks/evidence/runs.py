"""Single runs that README and the docstrings of configs quote: docs/evidence/run_<name>.json."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.evidence.record import FOLDER
from egmae_jax import experiment
from egmae_jax.core.files import read_json, write_json
from egmae_jax.core.numbers import format_mean_std, number
from egmae_jax.run import config_files

METRICS = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "auc": "AUC",
}


class Run(NamedTuple):
    """A recipe on a data set, and the fields that the command sets."""

    recipe: str  # name of a file in configs
    words: str | None = None  # after the colon
    folder: str = ""  # of the data set, below the folder of --data; empty: images are generated
    fields: tuple[tuple[str, Any], ...] = ()


RUNS = {
    "demo": Run("demo"),
    "busi_cpu": Run("busi", "cpu", "busi", (("imagenet.weights", "none"),)),
}


def run(name: str, data: Path, out: Path) -> None:
    """Runs or resumes a run, and writes its file.

    Args:
        name: one of RUNS.
        data: folder of the data sets.
        out: folder of the workdir, and of the images that are generated.
    """
    source = RUNS[name]
    config = config_files.load(source.recipe, source.words)
    config.update_from_flattened_dict(dict(source.fields))
    config.data.dir = str(data / source.folder if source.folder else out / "images")
    experiment.run(config, out / "run")
    write(name, out / "run")


def write(name: str, workdir: Path) -> None:
    """Writes the file of a complete run."""
    results = read_json(workdir / "results.json")
    rounds = results["rounds"]
    scores = {
        classifier: [{k: round(row["test"][classifier][k], 5) for k in METRICS} for row in rounds]
        for classifier in rounds[0]["test"]
    }
    write_json(
        path_of(name),
        {
            "command": _command(RUNS[name], name),
            "protocol": results["dataset"]["protocol"],
            "test": results["dataset"]["counts"]["test"],
            "made_with": {key: results["made_with"][key] for key in ("commit", "versions")},
            "seeds": [row["seed"] for row in rounds],
            "classifiers": scores,
        },
    )


def path_of(name: str) -> Path:
    """Returns the file of a run."""
    return FOLDER / f"run_{name}.json"


def rows(name: str) -> list[list[str]]:
    """Returns the rows of a run's table: a heading, and a row for each branch and the ensemble.

    Scores of several rounds are means ± standard deviations.
    """
    table = [["branch", *METRICS.values()]]
    for classifier, rounds in read_json(path_of(name))["classifiers"].items():
        cells = []
        for key in METRICS:
            values = [row[key] for row in rounds]
            several = len(values) > 1
            std = np.std(values, ddof=1) if several else 0.0
            cells.append(format_mean_std(np.mean(values), std) if several else number(values[0]))
        table.append([classifier, *cells])
    return table


def _command(source: Run, name: str) -> str:
    words = f":{source.words}" if source.words else ""
    fields = dict(source.fields) | ({"data.dir": f"data/{source.folder}"} if source.folder else {})
    flags = [f"--config.{key}={value}" for key, value in fields.items()]
    parts = [f"python main.py --config=configs/{source.recipe}.py{words}", *flags]
    return " ".join([*parts, f"--workdir=runs/{name}"])
