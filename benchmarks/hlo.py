"""Reads the HLO of a compiled program: its kernels, how often they run, and their cost.

A GPU launches a kernel for each operation that is outside of fused computations. A TPU's compiler
writes the cycles that it expects of each operation into the text.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

# Operations that run nothing on the device, or whose second half does.
_FREE = frozenset(
    """
    parameter constant tuple get-tuple-element bitcast reshape after-all add-dependency opt-barrier
    partition-id replica-id domain copy-done slice-done async-done async-update all-reduce-done
    all-gather-done collective-permute-done send-done recv-done
    """.split()  # noqa: SIM905
)
_STARTS = frozenset(("copy-start", "slice-start"))
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "token": 0}
_SHAPE = re.compile(r"\b(pred|token|[a-z]+\d+(?:e\dm\d\w*)?)\[([\d,]*)\](\{[^}]*\})?")
_ON_CHIP = "S(1)"  # in the layout of an array that lies in a TPU core's own memory
_PICKING = frozenset(("gather", "dynamic-slice"))  # read a part of their operand
_CUTTING = frozenset(("fusion", "slice", "parameter", "bitcast"))  # so does what has only these
_CALLED = re.compile(r"(?:calls|to_apply|called_computations)=\{?%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    @property
    def path(self) -> str:
        """Scope in which it was traced, such as 'jit(run)/while/body/jvp(ConvNeXt)/stem/conv'."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    @property
    def cycles(self) -> int:
        """Cycles that a TPU's compiler expects; 0 if it does not say."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
        return int(match[1]) if match else 0

    @property
    def target(self) -> str:
        """Name of the library function that a custom call runs."""
        match = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return match[1] if match else ""

    def called(self, attribute: str) -> str:
        """Returns the name of the computation of an attribute such as 'body'; '' if none."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else ""


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation that the device runs, with its cost."""

    instruction: Instruction
    times: int  # in one step
    kind: str  # 'fusion', 'matrix product', 'convolution', 'copy', ...
    bytes: int  # read from and written to the device's main memory, each time
    operand_bytes: int  # in any memory
    flops: float  # of matrix products and convolutions, each time
    opcodes: frozenset[str]  # within it
    kernel_cycles: int = 0  # each time, of a Pallas kernel; see `benchmarks.llo`

    @property
    def result_bytes(self) -> int:
        """Size of the result; the start of a gather or permutation returns its operands, too."""
        size = nbytes(self.instruction.shape, anywhere=True)
        repeats = self.instruction.opcode in ("all-gather-start", "collective-permute-start")
        return size - self.operand_bytes if repeats else size

    @property
    def cycles(self) -> int:
        """Cycles in one step that a TPU's compiler expects."""
        return self.times * (self.instruction.cycles or self.kernel_cycles)

    def seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
        """Returns the least time in one step by the roofline of a device."""
        return self.times * max(self.flops / flops_per_s, self.bytes / bytes_per_s)


class Program:
    """The computations of a compiled program.

    Args:
        text: result of `compiled.as_text()`.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if line.endswith("{") and (match := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
                current = self.computations[match[2]] = {}
                if match[1]:
                    self.entry = match[2]
            elif instruction := _parse(line):
                current[instruction.name] = instruction

    def step(self) -> list[Operation]:
        """Returns the operations of one step.

        These are those of the body of the loop over steps, whose number of turns the compiler does
        not know; without such a loop, of the whole program.
        """
        for instruction in self.computations[self.entry].values():
            if instruction.opcode == "while" and self._turns(instruction) is None:
                return list(self._launched(instruction.called("body")))
        return list(self._launched(self.entry))

    def _launched(self, computation: str, times: int = 1) -> Iterator[Operation]:
        for instruction in self.computations[computation].values():
            opcode = instruction.opcode
            if opcode == "while":
                turns = times * (self._turns(instruction) or 1)
                yield from self._launched(instruction.called("body"), turns)
                yield from self._launched(instruction.called("condition"), turns)
            elif opcode == "call":
                yield from self._launched(instruction.called("to_apply"), times)
            elif opcode == "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
                names = re.findall(r"[\w.\-]+", branches[1]) if branches else []
                names += [
                    x for b in ("true", "false") if (x := instruction.called(f"{b}_computation"))
                ]
                yield from max((list(self._launched(name, times)) for name in names), key=len)
            elif opcode not in _FREE:
                yield self._operation(instruction, computation, times)

    def _turns(self, loop: Instruction) -> int | None:
        """Returns how often a loop runs; None if that is known only when it runs."""
        if match := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(match[1])
        condition = self.computations[loop.called("condition")].values()
        limits = [
            int(x.operands[0])
            for x in condition
            if x.opcode == "constant" and x.operands and x.operands[0].isdigit()
        ]
        return max(limits) if limits else None

    def _operation(self, instruction: Instruction, computation: str, times: int) -> Operation:
        inner = list(self._within(instruction))
        opcodes = frozenset(x.opcode for x, _ in inner) | {instruction.opcode}
        flops = sum(_flops(x, scope) for x, scope in inner)
        flops += _flops(instruction, self.computations[computation])
        scope = self.computations[computation]
        written = nbytes(instruction.shape)
        operands = [nbytes(scope[x].shape) for x in instruction.operands if x in scope]
        if opcodes & _PICKING or ("slice" in opcodes and opcodes <= _CUTTING):
            operands = [min(x, written) for x in operands]
        # The start of an asynchronous copy returns its operand, too.
        size = sum(operands) + (0 if instruction.opcode in _STARTS else written)
        everywhere = sum(
            nbytes(scope[x].shape, anywhere=True) for x in instruction.operands if x in scope
        )
        kind = _kind(instruction, opcodes)
        return Operation(instruction, times, kind, size, everywhere, flops, opcodes)

    def _within(
        self, instruction: Instruction
    ) -> Iterator[tuple[Instruction, dict[str, Instruction]]]:
        """Yields the instructions of fused computations, each with all of its computation."""
        for name in _CALLED.findall(instruction.attributes):
            scope = self.computations.get(name, {})
            for inner in scope.values():
                yield inner, scope
                yield from self._within(inner)


def _parse(line: str) -> Instruction | None:
    match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not match:
        return None
    start = match.end()
    end = _closing(line, start) if line[start] == "(" else line.index(" ", start)
    shape, rest = line[start:end], line[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    stop = _closing(rest, len(opcode))
    operands = tuple(
        x.split()[-1].lstrip("%") for x in _split(rest[len(opcode) + 1 : stop - 1]) if x.strip()
    )
    return Instruction(match[1], shape, opcode, operands, rest[stop:])


def _closing(text: str, start: int) -> int:
    """Returns the index after the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.end()
    return len(text)


def _split(text: str) -> list[str]:
    """Splits at the commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]]


def dimensions(shape: str) -> list[list[int]]:
    """Returns the dimensions of each array of a shape, such as 'bf16[16,96]{1,0}' or a tuple."""
    return [[int(n) for n in match[1].split(",") if n] for match in _SHAPE.findall(shape)]


def nbytes(shape: str, *, anywhere: bool = False) -> int:
    """Returns the bytes of an array, or of all of a tuple, in the device's main memory or any."""
    total = 0
    for dtype, sides, layout in _SHAPE.findall(shape):
        if _ON_CHIP in layout and not anywhere:
            continue
        bits = re.search(r"\d+", dtype)
        size = _BYTES[dtype] if dtype in _BYTES else max(1, int(bits[0]) // 8) if bits else 0
        total += size * math.prod(int(n) for n in sides.split(",") if n)
    return total


def _flops(instruction: Instruction, scope: dict[str, Instruction]) -> float:
    """Returns the operations of a matrix product or convolution, padding included."""
    is_convolution = instruction.opcode == "convolution" or "dnn$conv" in instruction.target
    is_product = instruction.opcode == "dot" or "gemm" in instruction.target
    if not (is_convolution or is_product) or len(instruction.operands) < 2:
        return 0.0
    left, right = (scope.get(name) for name in instruction.operands[:2])
    if left is None or right is None:
        return 0.0
    outputs = math.prod(dimensions(instruction.shape)[0])
    kernel = dimensions(right.shape)[0]
    if is_convolution:
        labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.attributes)
        features = kernel[labels[1].index("o")] if labels else 1
        return 2.0 * outputs * math.prod(kernel) / features
    axes = re.search(r'lhs_contracting_dim\w*(?:=\{|":\[")([\d,"]*)', instruction.attributes)
    numbers = re.findall(r"\d+", axes[1]) if axes else []
    image = dimensions(left.shape)[0]
    return 2.0 * outputs * math.prod(image[int(n)] for n in numbers)


def _kind(instruction: Instruction, opcodes: frozenset[str]) -> str:
    opcode, target = instruction.opcode.removesuffix("-start"), instruction.target
    if opcode in COLLECTIVES:
        return "collective"
    if "conv" in target or (opcode == "convolution"):
        return "convolution"
    if (
        "gemm" in target
        or opcode == "dot"
        or "dot" in opcodes
        or "__triton_gemm" in instruction.attributes
    ):
        return "matrix product"
    if opcode == "fusion":
        return "convolution" if "convolution" in opcodes else "fusion"
    return opcode if opcode in ("copy", "sort", "scatter") else "other"


def collectives(operations: list[Operation]) -> dict[str, dict[str, int]]:
    """Returns the number of collectives in a step and the bytes of their results, by kind."""
    result: dict[str, dict[str, int]] = {}
    for operation in operations:
        kind = operation.instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            row = result.setdefault(kind, {"count": 0, "bytes": 0})
            row["count"] += operation.times
            row["bytes"] += operation.times * operation.result_bytes
    return result


def count_by_kind(operations: list[Operation]) -> dict[str, int]:
    """Returns the number of kernels of each kind in a step, most frequent first."""
    counts: collections.Counter[str] = collections.Counter()
    for operation in operations:
        counts[operation.kind] += operation.times
    return dict(counts.most_common())
