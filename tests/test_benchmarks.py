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

needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not here")
needs_skimage = pytest.mark.skipif(
    not importlib.util.find_spec("skimage"), reason="scikit-image is not here"
)


def random_arrays(shape, dtype=jnp.float32):
    """x, kernel and gradient of a convolution."""
    rng = np.random.default_rng(0)
    shapes = shape, (7, 7, 1, shape[-1]), shape
    return tuple(jnp.asarray(rng.standard_normal(s, np.float32), dtype) for s in shapes)


# Depthwise convolution. Pallas is interpreted here: odd sizes need its masks.


@pytest.mark.parametrize("form", ["library", "shifted", "pallas"])
def test_convolutions_and_gradients_are_those_of_xla(form):
    arrays = random_arrays((2, 9, 13, 40))

    def value_and_gradients(conv):
        def run(x, kernel, gradient):
            value, gradients = jax.vjp(conv, x, kernel)
            return value, *gradients(gradient)

        return jax.jit(run)(*arrays)

    ours = value_and_gradients(depthwise.FORMS[form])
    for a, b in zip(ours, value_and_gradients(depthwise.grouped), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * np.abs(b).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("height", [56, 7])
def test_the_kernels_can_be_lowered_for_a_gpu_that_is_not_here(dtype, height):
    def conv_and_gradients(x, kernel, gradient):
        value, gradients = jax.vjp(depthwise.FORMS["pallas"], x, kernel)
        return value, *gradients(gradient)

    h200 = jax.sharding.AbstractDevice("NVIDIA H200", 132, "gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=h200)
    x, kernel = (jax.ShapeDtypeStruct(s, dtype) for s in ((2, height, height, 96), (7, 7, 1, 96)))
    with platform.tracing_for("gpu"), jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(conv_and_gradients).trace(x, kernel, x)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("__gpu$xla.gpu.triton") == 3


@needs_torch
@pytest.mark.parametrize("work", depthwise.WORKS)
def test_pytorch_computes_the_same_from_what_it_is_given(work):
    arrays = random_arrays((2, 5, 6, 4))
    _, result = depthwise._run_of("pytorch", work, arrays, 2)
    expected = depthwise.works_of(depthwise.grouped)[work](*arrays)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_a_wrong_or_failing_convolution_is_said_so_and_the_rest_is_timed(monkeypatch):
    def fails(x, kernel):
        raise RuntimeError("no such kernel\nhere")

    monkeypatch.setitem(
        depthwise.FORMS, "wrong", lambda x, kernel: 1.1 * depthwise.grouped(x, kernel)
    )
    monkeypatch.setitem(depthwise.FORMS, "fails", fails)
    rows = depthwise.measure((1, 3, 3, 2), ["wrong", "fails", "grouped"], "float32", 1, 1)
    assert rows["fails"] == dict.fromkeys(depthwise.WORKS, "failed: no such kernel")
    assert all(cell.startswith("failed: differs by 0.1") for cell in rows["wrong"].values())
    assert all(cell > 0 for cell in rows["grouped"].values())


def test_depthwise_prints_and_writes_times_beside_the_floor(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(timing, "copy_bandwidth", lambda rounds: 1e9)
    path = tmp_path / "times.json"
    depthwise.main(
        ["--batch=2", "--shapes=4x3", "--forms=grouped", "--dtype=bfloat16", f"--json={path}"]
    )
    times = json.loads(path.read_text())["ms"]["4x3"]
    assert times["floor"]["forward"] == pytest.approx(2 * (2 * 4 * 4 * 3) * 2 / 1e9 * 1e3)
    assert set(times["grouped"]) == set(depthwise.WORKS)
    assert "4x3" in capsys.readouterr().out


# Corruption


@pytest.fixture(scope="module")
def images():
    return corruption.make_images(2, 32)


@pytest.mark.parametrize("form", corruption.FORMS)
def test_entropies_are_those_of_scipy(form, images):
    program = jax.jit(corruption.FORMS[form])
    flat = np.zeros((2, 32, 32, 3), np.uint8)
    for array in (*images.values(), flat):
        patches = array.reshape(2, 2, 16, 2, 16, 3).transpose(0, 1, 3, 5, 2, 4).reshape(-1, 256)
        expected = [stats.entropy(np.bincount(patch)) for patch in patches]
        expected = np.reshape(expected, (2, 2, 2, 3)).mean(axis=-1)
        np.testing.assert_allclose(program(array), expected, atol=1e-5)


def test_dark_images_are_dark_and_the_others_are_not(images):
    zeros = {name: np.mean(array == 0) for name, array in images.items()}
    assert zeros["dark"] > 0.5 > 0.1 > max(zeros["natural"], zeros["noise"])


@pytest.mark.parametrize("name", [name for name in corruption.NOISES if "," in name])
def test_noises_are_standard_normal(name):
    generator, normal = corruption.NOISES[name]
    values = np.asarray(normal(jax.random.key(1, impl=generator), (2, 50, 50, 3)))
    assert values.shape == (2, 50, 50, 3)
    assert values.dtype == np.float32
    assert stats.kstest(values.ravel(), "norm").pvalue > 0.01
    pairs = values.reshape(2, -1)
    assert abs((pairs[0] * pairs[1]).mean()) < 4 / math.sqrt(pairs.shape[1])


def test_flat_noise_is_the_librarys_bit_for_bit():
    key, shape = jax.random.key(2), (2, 6, 5, 3)
    np.testing.assert_array_equal(
        corruption._normal_flat(key, shape), jax.random.normal(key, shape)
    )


@needs_skimage
def test_corruption_prints_and_writes_times_and_the_share_of_a_step(tmp_path, capsys):
    path = tmp_path / "times.json"
    arguments = "--batch=1 --image_size=16 --rounds=1 --forms=library,scatter --step_ms=50"
    corruption.main([*arguments.split(), f"--json={path}"])
    result = json.loads(path.read_text())
    assert set(result["entropy_ms"]["dark"]) == {"library", "scatter"}
    assert result["loop_ratio"]["dark"] == pytest.approx(
        result["loop_ms"]["dark"] / result["entropy_ms"]["dark"]["library"]
    )
    assert result["share_of_step"] == result["corruption_ms"]["entropy and corrupt"] / 50
    assert "scikit-image" in capsys.readouterr().out


# Layer selection


@pytest.mark.slow
def test_layer_selection_prints_and_writes_what_each_mode_costs(tmp_path, capsys):
    tiny.register()
    path = tmp_path / "costs.json"
    layer_selection.main(
        [f"--model={tiny.RESNET}", "--batch=2", "--image_size=32", "--rounds=1", f"--json={path}"]
    )
    rows = json.loads(path.read_text())
    assert list(rows) == ["all", "low_entropy", "random", "head"]
    shapes = abstract_variables(
        models.create(tiny.RESNET, 4), jax.ShapeDtypeStruct((1, 32, 32, 3), "f4")
    )
    everything, head = count_parameters(shapes["params"]), 8 * 4 + 4
    assert rows["all"]["parameters"] == everything
    assert rows["head"]["parameters"] == head
    for mode, row in rows.items():
        assert row["step_s"] > 0
        assert row["optimizer_bytes"] == 4 * (2 * row["parameters"] + 1)  # two moments, a count
        if mode in ("low_entropy", "random"):
            assert everything / 2 <= row["parameters"] < everything
    assert rows["head"]["flops"] < rows["low_entropy"]["flops"] <= rows["all"]["flops"]
    assert "low_entropy" in capsys.readouterr().out


# Scaling


COUNTED = {
    "parameter_bytes": 100,
    "optimizer_bytes": 200,
    "flops_an_image": 1000.0,
    "kept_bytes_an_image": 50.0,
    "sent_bytes": {"all-reduce": 120},
}


def test_a_steps_time_is_that_of_what_it_computes_moves_and_sends():
    system = scaling.System("two hosts of four", 2, 4, 1e6, 1e4, 1e3, 4e3)
    found = scaling.predict(COUNTED, system, 10, 0.5)
    assert found["compute_s"] == pytest.approx(10 * 1000 / (1e6 * 0.5))
    assert found["memory_s"] == pytest.approx((10 * 4 * 50 + 6 * 100 + 2 * 200) / 1e4)
    sending = 2 * 3 / 4 * 120 / 1e3 + 2 * 1 / 2 * 120 / 4e3
    assert found["sending_s"] == pytest.approx(sending)
    assert found["serial_s"] == pytest.approx(found["memory_s"] + sending)
    assert found["step_s"] == pytest.approx(found["memory_s"] / 3 + sending)
    assert found["images_per_s"] == pytest.approx(80 / found["step_s"])


def test_from_the_batch_that_is_told_on_sending_hides():
    system = scaling.System("four", 1, 4, 1e6, 1e5, 1e4)
    least = scaling.predict(COUNTED, system, 1, 0.5)["hiding_batch"]
    assert least > 2
    for batch, hides in ((math.floor(least), False), (math.ceil(least), True)):
        found = scaling.predict(COUNTED, system, batch, 0.5)
        busy = max(found["compute_s"], found["memory_s"])
        assert (found["step_s"] == busy) == hides


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
    assert "computed, not measured" in " ".join(output.split())
    # ConvNeXt-Tiny: 4.5 GMAC forwards (Liu et al. 2022), twice as many backwards.
    flops = float(re.search(r"FLOPS (\S+)", output)[1])
    assert flops == pytest.approx(3 * 2 * 4.5e9, rel=0.05)
    result = json.loads(path.read_text())
    for work in scaling.WORKS:
        counted = result[work]["counted"]
        assert counted["parameter_bytes"] == 4 * counted["parameters"]
        assert counted["optimizer_bytes"] == 4 * (2 * counted["parameters"] + 1)
        assert counted["image_bytes"] == 37 * 37 * 3 + 12
        assert counted["kept_bytes_an_image"] > 4 * 32 * 32 * 3
        assert counted["sent_bytes"].keys() == {"all-reduce"}
        assert counted["sent_bytes"]["all-reduce"] == pytest.approx(
            counted["parameter_bytes"], rel=0.02
        )
        assert result[work]["systems"].keys() == {system.name for system in scaling.SYSTEMS}


# Timing


@pytest.mark.parametrize("repeats", [1, 3, 10])
def test_a_repeated_program_gives_what_the_function_gives(repeats):
    def function(key, x):
        return jax.random.normal(key, (1000,)) + x

    arguments = jax.random.key(0), jnp.arange(1000.0)
    results = timing.repeated(function, repeats)(*arguments)
    assert len(results) == math.gcd(repeats, 5)
    for result in results:
        np.testing.assert_allclose(result, function(*arguments), rtol=1e-6)


def test_a_repeated_program_applies_the_function_every_time():
    program = timing.repeated(jnp.sort, 10)
    text = program.lower(jnp.ones(1000)).compile().as_text()
    assert text.count(" sort(") == 5
    assert '"n":"2"' in text


def small_arguments(folder, minutes="1"):
    return ["--out", str(folder), "--minutes", minutes, "--batches", "2,4,8"]


@pytest.fixture
def gpu():
    pytest.importorskip("torch")
    from benchmarks import gpu

    return gpu


def run_gpu(gpu, monkeypatch, folder, items, minutes="1"):
    monkeypatch.setattr(gpu, "make_items", lambda arguments: items)
    gpu.main(small_arguments(folder, minutes))
    return json.loads((folder / "summary.json").read_text())


def test_one_failing_benchmark_does_not_stop_the_others(gpu, monkeypatch, tmp_path, capsys):
    figures = {"batch": 4, "train_ours_s": 0.5, "train_ratio": 2.0}
    write = f"open({str(tmp_path / 'steps_4.json')!r}, 'w').write({json.dumps(figures)!r})"
    summary = run_gpu(
        gpu,
        monkeypatch,
        tmp_path,
        [
            gpu.Item("broken", ["-c", "raise SystemExit('no such thing')"], 20),
            gpu.Item("endless", ["-c", "import time; time.sleep(60)"], 0.2),
            gpu.Item("steps_4", ["-c", write], 20),
            gpu.Item("recipe", ["-c", "pass"], 20),
        ],
    )
    statuses = {name: entry["status"] for name, entry in summary.items()}
    assert statuses["broken"] == "failed, see broken.txt"
    assert "no such thing" in (tmp_path / "broken.txt").read_text()
    assert statuses["endless"].startswith("stopped after")
    assert statuses["steps_4"] == "done"
    assert re.search(r"train\W+4\W+8\W+4\W+2\.00", capsys.readouterr().out)  # batch, images/s


def test_what_the_time_does_not_suffice_for_is_left_out(gpu, monkeypatch, tmp_path):
    items = [gpu.Item("recipe", ["-c", "pass"], 20)]
    summary = run_gpu(gpu, monkeypatch, tmp_path, items, minutes="0.1")
    assert summary["recipe"]["status"] == "left out: no time"


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
        module = importlib.util.find_spec(item.command[1])
        source = Path(module.origin).read_text()
        for flag in item.command[2:]:
            assert f'"{flag.split("=")[0]}"' in source, (item.name, flag)


@pytest.mark.slow
@needs_torch
def test_steps_are_measured_beside_the_reference(tmp_path):
    path = tmp_path / "steps.json"
    command = [sys.executable, "-m", "benchmarks.train_step", "--model=convnext_atto", "--batch=2"]
    command += ["--image_size=32", "--rounds=1", "--profile", "--work=train,inference"]
    subprocess.run([*command, f"--json={path}"], check=True)
    result = json.loads(path.read_text())
    wanted = ("train_ratio", "inference_ratio", "compile_s", "cached_compile_s", "init_s")
    assert all(result[name] > 0 for name in wanted)
    assert any("dot" in name for name in result["train_ours_top_kernels_ms"])


@pytest.mark.slow
@needs_torch
def test_the_reference_runs_the_whole_recipe(tmp_path):
    phantoms.write(tmp_path, images_per_class=12, seed=0, height=80, width=96)
    command = [sys.executable, "-m", "benchmarks.pytorch_reference.main", f"--data={tmp_path}"]
    command += ["--model=convnext_atto", "--image_size=64", "--batch=8", "--workers=1"]
    command += ["--pretrain_epochs=2", "--finetune_epochs=2"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert len(re.findall(r"epoch \d: loss \d\.\d+", output)) == 6
    assert re.search(r"ensemble: accuracy [01]\.\d+, AUC [01]\.\d+", output)


def test_what_few_images_cost_is_measured_from_the_true_temperature():
    found = bench_calibration.measure(2, 2.0, count=2000, draws=2)
    # So many images find the true temperature; unscaled probabilities are worse than it.
    assert abs(found.fitted) < 0.003
    assert abs(found.likeliest) < 0.003
    assert 0.01 < found.unscaled_1_5 < found.unscaled_3
    few = bench_calibration.measure(2, 2.0, count=5, draws=20)
    assert found.fitted < few.fitted < few.likeliest
