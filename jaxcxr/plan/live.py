"""What a compiled program holds at its fullest moment, by kind, read from its scheduled HLO text."""

import collections
import dataclasses
import re
from collections.abc import Mapping, Sequence, Set

from jaxcxr.plan import hlo

KINDS = ("activations", "gradients", "rounded weights", "workspace")

_DIMENSIONS = re.compile(r"\[([\d,]*)\]")
_PARAMETERS = re.compile(r"state\[\\?'learnt|frozen\[")  # begins the names of a step's arguments that are
_IN_PLACE = ("bitcast", "optimization-barrier", "while", "dynamic-update-slice")  # the result lies where an operand lay


@dataclasses.dataclass
class _Buffer:
    """A value in a chip's main memory: bytes, kind, and the lines at which it is made and needed last."""

    size: int
    kind: str
    made: int
    last: int


@dataclasses.dataclass(frozen=True)
class _Element:
    """An array, or one of a tuple's: the buffers that it lies in, and whether it comes of parameters alone.

    That is not asked of constants: None.
    """

    buffers: tuple[_Buffer, ...] = ()
    of_weights: bool | None = False


def at_peak(text: str) -> dict[str, int]:
    """Bytes by `KINDS` at the fullest moment of a train step, without what it is given and what it gives.

    Activations are values of the forward pass; gradients have the shape of a parameter, and updates with them; rounded
    weights are made of parameters alone, before use. The rest is workspace: the gradients of activations, what remat
    computes again, the kernels' own. The sum was the compiler's own number within 1 % for a CPU and an H100, 5 % for
    several, where gathers are combined; for TPUs, where buffers leave gaps between them, up to a quarter less.

    Args:
      text: `jax.stages.Compiled.as_text()`.
    """
    return _peak("", hlo.parse(text), None)


def _peak(name: str, computations: Mapping[str, Sequence[str]], given: Sequence[_Element] | None) -> dict[str, int]:
    """The same of one computation; `given` tells which of a loop's values come of parameters alone."""
    buffers, within = _buffers(computations[name], computations, given)
    begin, end = collections.defaultdict(list), collections.defaultdict(list)
    for buffer in buffers:
        begin[buffer.made].append(buffer)
        end[buffer.last].append(buffer)
    alive, most = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    for line in range(len(computations[name])):
        for buffer in begin[line]:
            alive[buffer.kind] += buffer.size
        called = within.get(line, {})
        most = max(most, {kind: alive[kind] + called.get(kind, 0) for kind in KINDS}, key=lambda all: sum(all.values()))
        for buffer in end[line]:
            alive[buffer.kind] -= buffer.size
    return most


def _buffers(
    lines: Sequence[str], computations: Mapping[str, Sequence[str]], given: Sequence[_Element] | None
) -> tuple[list[_Buffer], dict[int, dict[str, int]]]:
    """The buffers that a computation makes and does not give away; and the peaks of those that it calls, by line."""
    made: dict[str, list[_Element]] = {}
    buffers: list[_Buffer] = []
    within: dict[int, dict[str, int]] = {}
    weights: set[tuple[int, ...]] = set()  # the shapes of parameters, or their parts
    for number, (_, root, name, shapes, operation, names, op_name, place) in hlo.instructions(lines):
        operands = [made[operand] for operand in names if operand in made]
        if operation == "parameter":
            made[name] = (
                list(given) if given else [_Element(of_weights=_PARAMETERS.match(op_name) is not None)] * len(shapes)
            )
        elif operation == "get-tuple-element":
            made[name] = [operands[0][place]]
        elif operation == "tuple":
            made[name] = [_joined(operand) for operand in operands]
        elif operation in _IN_PLACE or operation.endswith(("-done", "-update")):
            same = len(operands[0]) == len(shapes)
            made[name] = operands[0] if same else [operands[0][_new(operation)]] * len(shapes)
        elif operation == "constant":
            made[name] = [_Element(of_weights=None)] * len(shapes)
        else:
            whole = _joined([element for operand in operands for element in operand])
            kinds = [_kind(each, op_name, whole, weights) for each in shapes]
            own = [_Buffer(hlo.laid_out(each), kind, number, number) for each, kind in zip(shapes, kinds, strict=True)]
            made[name] = [_Element((buffer,), whole.of_weights) for buffer in own]
            if operation.endswith("-start") and len(shapes) > 1 and not operation.startswith("all-reduce"):
                new = _new(operation)
                own = own[new : new + 1]
                made[name] = [made[name][n] if n == new else whole for n in range(len(shapes))]
            buffers += own
        needed = [made[name]] if operation in hlo.VIEWS else operands  # of a tuple not more than is looked at
        for buffer in (buffer for value in needed for element in value for buffer in element.buffers):
            buffer.last = number
        weights |= {_sides(each) for each, element in zip(shapes, made[name], strict=False) if element.of_weights}
        if operation in hlo.CALLS:
            called = [each for each, _ in hlo.calls(lines[number], computations) if each in computations]
            carried = operands[0] if operation == "while" else None
            peaks = [_peak(each, computations, carried and _apart(carried)) for each in called]
            within[number] = max(peaks, key=lambda peak: sum(peak.values()), default={})
        if root:
            result = {id(buffer) for element in made[name] for buffer in element.buffers}
            buffers = [buffer for buffer in buffers if id(buffer) not in result]
    return buffers, within


def _kind(shape: str, op_name: str, operands: _Element, weights: Set[tuple[int, ...]]) -> str:
    if operands.of_weights:
        return "rounded weights"
    kinds = {buffer.kind for buffer in operands.buffers}
    if not op_name and len(kinds) == 1:  # a copy of the compiler's own
        return kinds.pop()
    if "jvp(" in op_name and "transpose(" not in op_name:
        return "activations"
    return "gradients" if _sides(shape) in weights else "workspace"


def _sides(shape: str) -> tuple[int, ...]:
    """The sizes of an array's axes, in ascending order, as layouts differ."""
    found = _DIMENSIONS.search(shape)
    return tuple(sorted(int(size) for size in found[1].split(",") if size not in ("", "1"))) if found else ()


def _new(operation: str) -> int:
    """Which element of what an asynchronous operation's start gives is its result; the others are what it was given."""
    return 0 if operation.startswith("copy") else 1


def _joined(value: Sequence[_Element]) -> _Element:
    buffers = tuple(buffer for element in value for buffer in element.buffers)
    asked = {element.of_weights for element in value} - {None}
    return _Element(buffers, asked == {True} if asked or not value else None)


def _apart(value: Sequence[_Element]) -> list[_Element]:
    """The same value within another computation, whose caller counts its buffers."""
    return [_Element((), element.of_weights) for element in value]
