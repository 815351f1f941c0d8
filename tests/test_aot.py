"""The readers of compiled programs, and programs for a TPU that is not here."""

import importlib.util
import json
import re
from types import SimpleNamespace

import jax
import pytest

from benchmarks import aot, hlo, llo
from benchmarks.inputs import NUM_CLASSES
from egmae_jax import models
from egmae_jax.models.init import abstract_variables
from egmae_jax.training.state import count_parameters
from tests import tiny

PROGRAM = """HloModule jit_run, is_scheduled=true

%fused (p0: f32[8,4], p1: f32[4,2]) -> f32[8,2] {
  %p0 = f32[8,4]{1,0} parameter(0)
  %p1 = f32[4,2]{1,0} parameter(1)
  ROOT %dot.1 = f32[8,2]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%inner_body (t: (s32[], f32[8,2])) -> (s32[], f32[8,2]) {
  %t = (s32[], f32[8,2]{1,0}) parameter(0)
  %x = f32[8,2]{1,0} get-tuple-element(%t), index=1
  %negate.1 = f32[8,2]{1,0} negate(%x), metadata={op_name="jit(run)/norm/neg"}
  ROOT %tuple.1 = (s32[], f32[8,2]{1,0}) tuple(%i, %negate.1)
}

%inner_condition (t: (s32[], f32[8,2])) -> pred[] {
  %t = (s32[], f32[8,2]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %constant.3 = s32[] constant(3)
  ROOT %compare.1 = pred[] compare(%i, %constant.3), direction=LT
}

%body (t: (f32[8,4], f32[4,2])) -> (f32[8,4], f32[4,2]) {
  %t = (f32[8,4]{1,0}, f32[4,2]{1,0:T(8,128)S(1)}) parameter(0)
  %a = f32[8,4]{1,0} get-tuple-element(%t), index=0
  %b = f32[4,2]{1,0:T(8,128)S(1)} get-tuple-element(%t), index=1
  %fusion.1 = f32[8,2]{1,0} fusion(%a, %b), kind=kOutput, calls=%fused, \
metadata={op_name="jit(run)/while/body/mlp/fc1/dot_general"}, \
backend_config={"estimated_cycles":"70"}
  %while.2 = (s32[], f32[8,2]{1,0}) while(%init), condition=%inner_condition, body=%inner_body
  %all-reduce-start.1 = f32[8,4]{1,0} all-reduce-start(%a), replica_groups={}, to_apply=%add
  %all-gather-start.1 = (f32[8,4]{1,0}, f32[16,4]{1,0}) all-gather-start(%a), dimensions={0}
  ROOT %tuple.2 = (f32[8,4]{1,0}, f32[4,2]{1,0}) tuple(%a, %b)
}

%condition (t: (f32[8,4], f32[4,2])) -> pred[] {
  %t = (f32[8,4]{1,0}, f32[4,2]{1,0}) parameter(0)
  ROOT %less = pred[] compare(%turn, %turns), direction=LT
}

ENTRY %main (x: f32[8,4], y: f32[4,2]) -> (f32[8,4], f32[4,2]) {
  %x = f32[8,4]{1,0} parameter(0)
  %y = f32[4,2]{1,0} parameter(1)
  %copy.1 = f32[8,4]{1,0} copy(%x)
  %tuple.3 = (f32[8,4]{1,0}, f32[4,2]{1,0}) tuple(%copy.1, %y)
  ROOT %while.1 = (f32[8,4]{1,0}, f32[4,2]{1,0}) while(%tuple.3), condition=%condition, body=%body
}
"""


def test_a_step_is_the_body_of_the_loop_over_steps():
    step = hlo.Program(PROGRAM).step()
    assert hlo.count_by_kind(step) == {
        "other": 6,  # a negation and a comparison in each of three turns
        "collective": 2,
        "matrix product": 1,
    }
    product = step[0]
    assert product.flops == 2 * 8 * 2 * 4
    assert product.bytes == 4 * (8 * 4 + 8 * 2)  # %b lies in the core's own memory
    assert product.cycles == 70
    assert product.seconds(flops_per_s=1.0, bytes_per_s=1e9) == product.flops
    assert product.instruction.path.endswith("mlp/fc1/dot_general")
    assert hlo.collectives(step) == {
        "all-reduce": {"count": 1, "bytes": 4 * 8 * 4},
        "all-gather": {"count": 1, "bytes": 4 * 16 * 4},
    }


SCHEDULE = """= control target key start
LB: loop body
     0   :  { %s1 = smov.u32 0 }
   0x1 LB: > { %s2 = sadd.s32 1, %s1 /* iteration index, stage = 2 */ }
   0x2   :  {}
   0x3 LB: >> { %s3 = sadd.s32 1, %s3 }
   0x4   : >> { %p1 = scmp.ge.s32.totalorder %s3, 10 /* loop exit test */ }
   0x5   : > { %p2 = scmp.ge.s32.totalorder %s2, 5 /* loop exit test */ }
   0x6   :  { %s4 = smov.u32 0 }
"""


def test_cycles_of_a_schedule_count_the_turns_of_its_loops():
    # Two of the five turns of the outer loop only copy.
    assert llo.count_cycles(SCHEDULE) == 1 + 3 * (2 + 10 * 2 + 1) + 1


def test_kernels_are_read_with_the_shapes_that_their_results_do_not_tell():
    kernel = """  %depthwise_kernel_gradient_14_14_16.3 = f32[49,384]{1,0} \
custom-call(%x, %y), custom_call_target="tpu_custom_call", operand_layout={bf16[14,14,16,384]}
  %block_mlp_gradient.1 = (bf16[196,16,384]{2,1,0}, f32[1,384]{1,0}) \
custom-call(%x, %y), custom_call_target="tpu_custom_call", frontend_attributes={}
"""
    program = hlo.Program(f"ENTRY %main (x: f32[1]) -> f32[1] {{\n{kernel}}}")
    calls = [llo.call_of(operation) for operation in program.step()]
    assert [str(call) for call in calls] == [
        "depthwise_kernel_gradient:16,14,14,384:bfloat16",
        "block_mlp_gradient:16,196,1,384:bfloat16",
    ]
    assert [llo.Call.parse(str(call)) for call in calls] == calls


@pytest.mark.parametrize(("step", "fixed"), [(1.0, 5.0), (0.3, 0.0), (20.0, 90.0)])
def test_the_largest_batch_fits_and_few_programs_are_compiled_for_it(step, fixed):
    compiled = []

    def lowering(batch):
        compiled.append(batch)
        memory = SimpleNamespace(temp_size_in_bytes=step * batch, argument_size_in_bytes=fixed)
        return SimpleNamespace(compile=lambda: SimpleNamespace(memory_analysis=lambda: memory))

    device = aot.Device(1.0, 1.0, 1000.0, 1.0)
    largest = aot.largest_batch(lowering, device, 2)
    assert fixed + step * largest <= 1000
    assert fixed + step * (1.1 * largest + 4) > 0.95 * 1000
    assert len(compiled) <= 5


def test_of_a_program_that_jaxlib_cannot_read_the_memory_is_shown(capsys):
    def as_text():
        raise jax.errors.JaxRuntimeError("INTERNAL: async-update sees 3 operands\nat file.cc")

    memory = SimpleNamespace(
        temp_size_in_bytes=2e9,
        argument_size_in_bytes=1e9,
        output_size_in_bytes=0,
        alias_size_in_bytes=0,
    )
    compiled = SimpleNamespace(
        as_text=as_text, memory_analysis=lambda: memory, cost_analysis=lambda: None
    )
    lowered = SimpleNamespace(compile=lambda: compiled)
    row = aot.compile_and_read(lambda: lowered, "v6e:2x4")
    aot.print_work(aot.rich.console.Console(width=200), "train", row, tpu=True)
    printed = capsys.readouterr().out
    assert "train: 2.000 GB temporary, 1.000 GB arguments" in printed
    assert "cannot read the operations of this program (INTERNAL: async-update sees" in printed
    assert "file.cc" not in printed


needs_compiler = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"), reason="the compiler for TPUs is not here"
)


@pytest.mark.slow
@pytest.mark.essential
@needs_compiler
def test_programs_for_a_tpu_that_is_not_here(tmp_path):
    """On two of its chips: what is sent are the gradients, once."""
    path = tmp_path / "aot.json"
    command = ["-m", "benchmarks.aot", "--platform=tpu", "--topology=v5e:2x2", "--devices=2"]
    command += ["--model=convnext_atto", "--image_size=32", "--batch=4", "--work=train,entropy"]
    command += ["--dtype=float32"]
    output = tiny.python(*command, "--peer", f"--json={path}").stdout
    assert re.search(r"train +million cycles", output)
    result = json.loads(path.read_text())
    train = result["train"]
    assert train["cycles"] > 0
    assert train["peer_cycles"] > 0
    assert train["cycles"] == sum(row["cycles"] for row in train["parts"].values())
    assert {"crop", "depthwise", "norm", "MLP", "optimizer"} <= train["parts"].keys()
    (kind,) = train["collectives"]
    assert kind == "all-reduce"
    network = models.create("convnext_atto", NUM_CLASSES)
    gradients = 4 * count_parameters(abstract_variables(network)["params"])
    assert train["collectives"][kind]["bytes"] == pytest.approx(gradients, rel=0.01)
    assert result["entropy"]["collectives"] == {}
