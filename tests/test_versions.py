"""What `make test-versions` runs on other versions of the libraries: all of it, once.

main.py trains, and the commands read what it has left.
"""

import csv
import importlib.metadata
import json
import re

import numpy as np
import pytest

from egmae_jax.data import phantoms
from egmae_jax.evaluation.predictions import load_predictions
from tests import REPOSITORY, tiny

FIELDS = (
    "data.name=image_folder",
    *("data.image_size=32", "data.store_size=40", "finetune.resize=34", "decoder.dim=16"),
    *("pretrain.epochs=2", "pretrain.warmup_epochs=1", "finetune.epochs=2"),
    *("evaluation.bootstrap_resamples=20", "branches=('mae',)"),
)


def test_every_requirement_has_a_least_version_that_is_installed():
    text = (REPOSITORY / "requirements.txt").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for line in lines:
        name, least = re.match(r"([\w-]+)>=([\d.]+)", line).groups()
        version = importlib.metadata.version(name)
        numbers = [[int(n) for n in re.findall(r"\d+", x)[:4]] for x in (version, least)]
        assert numbers[0] >= numbers[1], (name, version, least)


def command(*arguments):
    done = tiny.python(*arguments)
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    return output


@pytest.mark.slow
@pytest.mark.versions
def test_a_run_and_all_that_reads_it(tmp_path):
    workdir, data = tmp_path / "run", tmp_path / "phantoms"
    phantoms.write(data, images_per_class=60, seed=0)
    recipe = [
        *("main.py", "--config=configs/demo.py", f"--workdir={workdir}"),
        *(f"--config.{field}" for field in FIELDS),
        *(f"--config.data.dir={data}", f"--config.data.cache_dir={tmp_path / 'cache'}"),
    ]
    command(*recipe)
    results = json.loads((workdir / "results.json").read_text())
    assert (workdir / "report.html").stat().st_size > 10_000
    assert list((workdir / "tensorboard").rglob("events*"))
    before = (workdir / "results.json").read_bytes()
    assert "complete" in command(*recipe)  # and nothing is computed anew
    assert json.loads(before)["rounds"] == results["rounds"]

    test = load_predictions(workdir / "predictions" / "round_0_mae_test.npz")
    images = [data / name for name in test.ids]
    table = tmp_path / "table.csv"
    command("-m", "egmae_jax.predict", f"--workdir={workdir}", "--uncalibrated",
            f"--out={table}", "--images", *images)  # fmt: skip
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [f"mae:{label}" for label in results["dataset"]["classes"]]
    written = {row["file"]: [float(row[column]) for column in columns] for row in rows}
    probabilities = np.array([written[str(image)] for image in images])
    np.testing.assert_allclose(probabilities, test.probabilities, atol=2e-5)

    command("-m", "egmae_jax.export", f"--workdir={workdir}", f"--out={tmp_path / 'export'}")
    assert list((tmp_path / "export").rglob("*.safetensors"))
    command("-m", "egmae_jax.report", f"--workdir={workdir}", f"--table={tmp_path / 'table.tex'}")
    assert "\\toprule" in (tmp_path / "table.tex").read_text()
