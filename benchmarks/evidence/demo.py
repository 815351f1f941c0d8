"""The run of configs/demo.py, which README quotes: docs/evidence/demo.json."""

from pathlib import Path
from typing import Any

from benchmarks.evidence.record import FOLDER
from egmae_jax import experiment
from egmae_jax.core.files import read_json, write_json
from egmae_jax.core.numbers import number
from egmae_jax.evaluation.metrics import PAPER_METRICS, TITLES
from egmae_jax.run import config_files

FILE = FOLDER / "demo.json"


def write(out: Path) -> None:
    """Runs or resumes the demo in a folder, where its images are generated, and writes its file."""
    config = config_files.load("demo", None)
    config.data.dir = str(out / "images")
    experiment.run(config, out / "run")
    results = read_json(out / "run" / "results.json")
    (scores,) = (row["test"] for row in results["rounds"])
    write_json(
        FILE,
        {
            "command": "python main.py --config=configs/demo.py --workdir=runs/demo",
            "protocol": results["dataset"]["protocol"],
            "test": results["dataset"]["counts"]["test"],
            "made_with": {key: results["made_with"][key] for key in ("commit", "versions")},
            "classifiers": {
                name: {key: round(metrics[key], 5) for key in PAPER_METRICS}
                for name, metrics in scores.items()
            },
        },
    )


def rows(recorded: dict[str, Any]) -> list[list[str]]:
    """Returns the rows of the table: a heading, and a row for each branch and the ensemble."""
    table = [["branch", *(TITLES[key] for key in PAPER_METRICS)]]
    for name, metrics in recorded["classifiers"].items():
        table.append([name, *(number(metrics[key]) for key in PAPER_METRICS)])
    return table
