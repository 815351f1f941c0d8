"""The benchmarks run, and their forms agree with one another."""

import argparse
import importlib.util
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks import depthwise, scaling
from egmae_jax.core import platform
from egmae_jax.data import phantoms
from tests import tiny

needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="torch is not here")

# Small arguments of each program; DATA is a folder of phantoms. Where they have forms, they compare
# them. Those whose figures are looked at have tests of their own below.
PROGRAMS = {
    "calibration": "--draws=2",
    "corruption": "--batch=1 --image_size=32 --rounds=1 --step_ms=50",
    "coverage": "--trials=2 --resamples=20",
    # Pallas is interpreted here: odd sizes need its masks.
    "depthwise": "--batch=2 --shapes=9x5 --forms=library,grouped,pallas --rounds=1",
    "forms": "--model=convnext_atto --image_size=32 --batch=2 --rounds=1 --forms=depthwise",
    "input_pipeline": "--data=image_folder --dir=DATA --batches=5 --rounds=1 --only=decode",
    "layer_selection": "--batch=2 --image_size=32 --rounds=1",
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
    return tiny.python("-m", f"benchmarks.{module}", *arguments).stdout


@pytest.mark.slow
@needs_torch
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_program_runs_and_prints_a_table(program, phantom_folder):
    arguments = PROGRAMS[program].replace("DATA", str(phantom_folder)).split()
    output = run(program, *arguments)
    assert len(output.splitlines()) > 3
    assert "failed" not in output  # as of a form whose result differs


# Depthwise convolution


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


# Scaling


def test_a_steps_time_is_that_of_what_it_computes_and_sends():
    counted = {"sent_bytes": {"all-reduce": 120}}
    system = scaling.System("two hosts of four", "v5e", 2, 4, 1e3, 4e3)
    step = scaling.predict(counted, system, 10, {16: 0.17, 32: 0.33})
    assert step["busy_s"] == pytest.approx(0.01 + 10 * 0.01)
    sending = 2 * 3 / 4 * 120 / 1e3 + 2 * 1 / 2 * 120 / 4e3
    assert step["sending_s"] == pytest.approx(sending)
    assert step["step_s"] == pytest.approx(0.11 / 3 + sending)
    assert step["images_per_s"] == pytest.approx(80 / step["step_s"])
    hidden = scaling.predict(counted, system, 31, {16: 0.17, 32: 0.33})
    assert step["hiding_batch"] == pytest.approx((1.5 * sending - 0.01) / 0.01)
    assert hidden["step_s"] == pytest.approx(hidden["busy_s"])
    assert scaling.predict(counted, system, 8, {16: 0.16})["busy_s"] == pytest.approx(0.08)


def test_a_step_on_one_device_is_read_from_what_was_compiled_for_it(tmp_path):
    settings = {"model": "convnext_tiny", "image_size": 224, "dtype": "bfloat16"}

    def write(name, topology, batch, **changes):
        theirs = {"topology": topology, "batch": batch, "devices": 1}
        row = {"estimate_s": 1e-3 * batch}
        content = {"settings": settings | theirs | changes, "train": row}
        (tmp_path / name).write_text(json.dumps(content))
        return str(tmp_path / name)

    paths = [write(f"{n}.json", "v5e:2x2", n) for n in (16, 256)]
    paths.append(write("gpu.json", "h200", 16))
    expected = {"v5e": {16: 0.016, 256: 0.256}, "h200": {16: 0.016}}
    assert scaling.read_compiled(paths, "train", settings) == expected
    assert scaling.read_compiled(paths, "pretrain", settings) == {}
    other = write("float32.json", "h200", 16, dtype="float32")
    with pytest.raises(ValueError, match="dtype"):
        scaling.read_compiled([other], "train", settings)


SCALING = """
import sys
from unittest import mock
import jax
import numpy as np
from benchmarks import scaling
from egmae_jax.core import sharding
from tests import tiny

tiny.register()
scaling.main([f"--model={tiny.MODEL}", "--image_size=32", "--batch=2", f"--json={sys.argv[1]}"])
with mock.patch("jax.default_backend", return_value="gpu"):
    step = scaling.make_step("train", scaling.make_config("convnext_tiny", 224, dtype="bfloat16"))
    print("FLOPS", scaling.step_flops(step, 1, 224))
    sharding._SPLIT_ELEMENTS = 64  # small arrays are split, too
    step = scaling.make_step("train", scaling.make_config(tiny.MODEL, 32, dtype="float32"))
    for kind, sent in scaling.sent_bytes(step, 16, 32, 4).items():
        print("SENT", kind, sent)
places = sharding.state_shardings(step.state, sharding.make_mesh(-1, 4, (16,)))
leaves = zip(jax.tree.leaves(step.state), jax.tree.leaves(places), strict=True)
print("HELD", sum(4 * np.prod(place.shard_shape(x.shape)) for x, place in leaves))
"""


@pytest.mark.essential
@pytest.mark.slow
def test_scaling_counts_what_a_step_computes_and_sends(tmp_path):
    """In a process of its own, which has eight devices."""
    path = tmp_path / "scaling.json"
    output = tiny.python("-c", SCALING, path).stdout
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
        assert result[work]["systems"] == {}  # nothing compiled for one device was given
    # With mesh.fsdp=4 the state is split, and the parameters alone are gathered.
    parameters = result["train"]["counted"]["parameter_bytes"]
    sent = {kind: int(size) for kind, size in re.findall(r"SENT (\S+) (\d+)", output)}
    assert sent.keys() == {"all-reduce", "all-gather"}
    assert 0.8 * parameters < sent["all-gather"] < 1.1 * parameters
    assert sent["all-reduce"] < 1.3 * parameters  # within 'fsdp' whole, then each part
    held = float(re.search(r"HELD (\S+)", output)[1])
    assert held < 1.2 * 3 * parameters / 4  # parameters and AdamW's two moments


# The GPU's harness


@pytest.fixture
def gpu():
    pytest.importorskip("torch")
    from benchmarks import gpu

    return gpu


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
