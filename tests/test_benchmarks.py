"""The benchmarks' forms agree with one another, and with what is not ours; the programs run."""

import argparse
import importlib.util
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from benchmarks import calibration as bench_calibration
from benchmarks import corruption, depthwise, layer_selection, scaling, timing
from egmae_jax import models
from egmae_jax.core import platform
from egmae_jax.data import phantoms
from egmae_jax.models.init import abstract_variables
from egmae_jax.training.state import count_parameters
from tests import tiny
from tests.conftest import REPOSITORY

needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not here")

# Small arguments of each program; DATA is a folder of phantoms. Those whose figures are looked at
# have tests of their own below.
PROGRAMS = {
    "calibration": "--draws=2",
    "corruption": "--batch=1 --image_size=16 --rounds=1 --forms=library,scatter --step_ms=50",
    "coverage": "--trials=2 --resamples=20",
    "depthwise": "--batch=2 --shapes=4x3 --forms=grouped --dtype=bfloat16 --rounds=1",
    "forms": "--model=convnext_atto --image_size=32 --batch=2 --rounds=1 --forms=depthwise",
    "input_pipeline": "--data=image_folder --dir=DATA --batches=5 --rounds=1 --only=decode",
    "operations": "--batch=1 --shapes=4x8 --rounds=1",
    "preparation": "--data=image_folder --dir=DATA --rounds=1",
    "recipe": "--images=12 --preset=1/1 --model=convnext_atto --image_size=32",
    "train_memory": "--model=convnext_atto --image_size=32 --batches=1,2",
}


@pytest.fixture(scope="module")
def phantom_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks") / "phantoms"
    phantoms.write(folder, images_per_class=12, seed=0, height=80, width=96)
    return folder


def run(module, *arguments):
    """Runs a benchmark as a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        cwd=REPOSITORY,
        env=tiny.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_program_runs_and_prints_a_table(program, phantom_folder):
    arguments = PROGRAMS[program].replace("DATA", str(phantom_folder)).split()
    assert len(run(program, *arguments).splitlines()) > 3


# Depthwise convolution. Pallas is interpreted here: odd sizes need its masks.


@pytest.mark.parametrize("form", ["library", "shifted", "pallas"])
def test_convolutions_and_gradients_are_those_of_xla(form):
    rng = np.random.default_rng(0)
    shape = (2, 9, 13, 40)
    arrays = [rng.standard_normal(s, np.float32) for s in (shape, (7, 7, 1, shape[-1]), shape)]

    def value_and_gradients(conv):
        def run(x, kernel, gradient):
            value, gradients = jax.vjp(conv, x, kernel)
            return value, *gradients(gradient)

        return jax.jit(run)(*arrays)

    ours = value_and_gradients(depthwise.FORMS[form])
    for a, b in zip(ours, value_and_gradients(depthwise.grouped), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * np.abs(b).max())


@pytest.mark.parametrize("height", [56, 7])
def test_the_kernels_can_be_lowered_for_a_gpu_that_is_not_here(height):
    def conv_and_gradients(x, kernel, gradient):
        value, gradients = jax.vjp(depthwise.FORMS["pallas"], x, kernel)
        return value, *gradients(gradient)

    h200 = jax.sharding.AbstractDevice("NVIDIA H200", 132, "gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=h200)
    shapes = (2, height, height, 96), (7, 7, 1, 96)
    x, kernel = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes)
    with platform.tracing_for("gpu"), jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(conv_and_gradients).trace(x, kernel, x)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "__gpu$xla.gpu.triton" in text


# Corruption


@pytest.mark.parametrize("form", corruption.FORMS)
def test_entropies_are_those_of_scipy(form):
    program = jax.jit(corruption.FORMS[form])
    flat = np.zeros((2, 32, 32, 3), np.uint8)
    for array in (*corruption.make_images(2, 32).values(), flat):
        patches = array.reshape(2, 2, 16, 2, 16, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 256)
        expected = [stats.entropy(np.bincount(patch)) for patch in patches]
        expected = np.reshape(expected, (2, 2, 2, 3)).mean(axis=-1)
        np.testing.assert_allclose(program(array), expected, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in corruption.NOISES if "," in name])
def test_noises_are_standard_normal(name):
    generator, normal = corruption.NOISES[name]
    values = np.asarray(normal(jax.random.key(1, impl=generator), (2, 50, 50, 3)))
    assert stats.kstest(values.ravel(), "norm").pvalue > 0.01
    pairs = values.reshape(2, -1)
    assert abs((pairs[0] * pairs[1]).mean()) < 4 / math.sqrt(pairs.shape[1])


# Layer selection


@pytest.mark.slow
def test_each_mode_of_layer_selection_costs_what_it_trains(tmp_path):
    tiny.register()
    path = tmp_path / "costs.json"
    layer_selection.main(
        [f"--model={tiny.RESNET}", "--batch=2", "--image_size=32", "--rounds=1", f"--json={path}"]
    )
    rows = json.loads(path.read_text())
    assert list(rows) == ["all", "low_entropy", "random", "head"]
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "f4")
    shapes = abstract_variables(models.create(tiny.RESNET, 4), image)
    assert rows["all"]["parameters"] == count_parameters(shapes["params"])
    assert rows["head"]["parameters"] == 8 * 4 + 4
    for row in rows.values():
        assert row["optimizer_bytes"] == 4 * (2 * row["parameters"] + 1)  # two moments, a count
    assert rows["head"]["flops"] < rows["low_entropy"]["flops"] <= rows["all"]["flops"]


# Scaling


def test_a_steps_time_is_that_of_what_it_computes_moves_and_sends():
    counted = {
        "parameter_bytes": 100,
        "optimizer_bytes": 200,
        "flops_an_image": 1000.0,
        "kept_bytes_an_image": 50.0,
        "sent_bytes": {"all-reduce": 120},
    }
    system = scaling.System("two hosts of four", 2, 4, 1e6, 1e4, 1e3, 4e3)
    step = scaling.predict(counted, system, 10, 0.5)
    assert step["compute_s"] == pytest.approx(10 * 1000 / (1e6 * 0.5))
    assert step["memory_s"] == pytest.approx((10 * 4 * 50 + 6 * 100 + 2 * 200) / 1e4)
    sending = 2 * 3 / 4 * 120 / 1e3 + 2 * 1 / 2 * 120 / 4e3
    assert step["sending_s"] == pytest.approx(sending)
    assert step["step_s"] == pytest.approx(step["memory_s"] / 3 + sending)
    assert step["images_per_s"] == pytest.approx(80 / step["step_s"])


SCALING = """
import sys
from unittest import mock
from benchmarks import scaling
from tests import tiny

tiny.register()
scaling.main([f"--model={tiny.MODEL}", "--image_size=32", "--batch=2", f"--json={sys.argv[1]}"])
with mock.patch("jax.default_backend", return_value="gpu"):
    step = scaling.make_step("finetune", scaling.make_config("convnext_tiny", 224, "bfloat16"))
    print("FLOPS", scaling.step_flops(step, 1))
"""


@pytest.mark.slow
def test_scaling_counts_what_a_step_computes_and_sends(tmp_path):
    """In a process of its own, which has eight devices."""
    path = tmp_path / "scaling.json"
    command = [sys.executable, "-c", SCALING, str(path)]
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, env=tiny.environment()
    ).stdout
    # ConvNeXt-Tiny: 4.5 GMAC forwards (Liu et al. 2022), twice as many backwards.
    flops = float(re.search(r"FLOPS (\S+)", output)[1])
    assert flops == pytest.approx(3 * 2 * 4.5e9, rel=0.05)
    result = json.loads(path.read_text())
    for work in scaling.WORKS:
        counted = result[work]["counted"]
        assert counted["parameter_bytes"] == 4 * counted["parameters"]
        assert counted["optimizer_bytes"] == 4 * (2 * counted["parameters"] + 1)
        assert counted["sent_bytes"].keys() == {"all-reduce"}
        assert counted["sent_bytes"]["all-reduce"] == pytest.approx(
            counted["parameter_bytes"], rel=0.02
        )
        assert result[work]["systems"].keys() == {system.name for system in scaling.SYSTEMS}


# Timing


@pytest.mark.parametrize("repeats", [1, 10])
def test_a_repeated_program_gives_what_the_function_gives(repeats):
    def function(key, x):
        return jax.random.normal(key, (1000,)) + x

    arguments = jax.random.key(0), jnp.arange(1000.0)
    for result in timing.repeated(function, repeats)(*arguments):
        np.testing.assert_allclose(result, function(*arguments), rtol=1e-6)


def test_a_repeated_program_applies_the_function_every_time():
    program = timing.repeated(jnp.sort, 10)
    text = program.lower(jnp.ones(1000)).compile().as_text()
    assert text.count(" sort(") == 5
    assert '"n":"2"' in text


# The GPU's harness


@pytest.fixture
def gpu():
    pytest.importorskip("torch")
    from benchmarks import gpu

    return gpu


def test_what_fails_or_takes_too_long_does_not_stop_the_others(gpu, monkeypatch, tmp_path, capsys):
    figures = {"batch": 4, "train_ours_s": 0.5, "train_ratio": 2.0}
    write = f"open({str(tmp_path / 'steps_4.json')!r}, 'w').write({json.dumps(figures)!r})"
    items = [
        gpu.Item("broken", ["-c", "raise SystemExit('no such thing')"], 20),
        gpu.Item("endless", ["-c", "import time; time.sleep(60)"], 0.2),
        gpu.Item("steps_4", ["-c", write], 20),
        gpu.Item("recipe", ["-c", "pass"], 20),
    ]
    monkeypatch.setattr(gpu, "make_items", lambda arguments: items)
    for minutes, statuses in (
        (0.1, ["left out"] * 4),
        (1, ["failed", "stopped after", "done", "done"]),
    ):
        gpu.main(["--out", str(tmp_path), f"--minutes={minutes}", "--batches=2,4,8"])
        summary = json.loads((tmp_path / "summary.json").read_text())
        for entry, status in zip(summary.values(), statuses, strict=True):
            assert entry["status"].startswith(status)
    assert "no such thing" in (tmp_path / "broken.txt").read_text()
    assert re.search(r"train\W+4\W+8\W+4\W+2\.00", capsys.readouterr().out)  # batch, images/s


def test_every_command_of_the_gpu_harness_is_one_its_program_takes(gpu, tmp_path):
    """Each program parses its own arguments; only their names are looked up here."""
    arguments = argparse.Namespace(
        out=tmp_path,
        model="convnext_atto",
        image_size=32,
        batches="2,4",
        dtype="bfloat16",
        images=9,
        preset="1/1",
    )
    items = gpu.make_items(arguments)
    assert [item.name for item in items][:3] == ["steps_2", "steps_4", "recipe"]
    for item in items:
        source = Path(importlib.util.find_spec(item.command[1]).origin).read_text()
        for flag in item.command[2:]:
            assert f'"{flag.split("=")[0]}"' in source, (item.name, flag)


# Beside PyTorch


@pytest.mark.slow
@needs_torch
def test_steps_are_measured_beside_the_reference(tmp_path):
    path = tmp_path / "steps.json"
    small = ("--model=convnext_atto", "--batch=2", "--image_size=32", "--rounds=1")
    run("train_step", *small, "--profile", "--work=train,inference", f"--json={path}")
    result = json.loads(path.read_text())
    wanted = ("train_ratio", "inference_ratio", "compile_s", "cached_compile_s", "init_s")
    assert all(result[name] > 0 for name in wanted)
    assert any("dot" in name for name in result["train_ours_top_kernels_ms"])


@pytest.mark.slow
@needs_torch
def test_the_reference_runs_the_whole_recipe(phantom_folder):
    small = ("--model=convnext_atto", "--image_size=64", "--batch=8", "--workers=1")
    epochs = ("--pretrain_epochs=2", "--finetune_epochs=2")
    output = run("pytorch_reference.main", f"--data={phantom_folder}", *small, *epochs)
    assert len(re.findall(r"epoch \d: loss \d\.\d+", output)) == 6
    assert re.search(r"ensemble: accuracy [01]\.\d+, AUC [01]\.\d+", output)


def test_what_few_images_cost_is_measured_from_the_true_temperature():
    many = bench_calibration.measure(2, 2.0, count=2000, draws=2)
    # So many images find the true temperature; unscaled probabilities are worse than it.
    assert abs(many.fitted) < 0.003
    assert abs(many.likeliest) < 0.003
    assert 0.01 < many.unscaled_1_5 < many.unscaled_3
    few = bench_calibration.measure(2, 2.0, count=5, draws=20)
    assert many.fitted < few.fitted < few.likeliest
