"""What a compiled program sends between chips, and reads and writes in their memory, read from its HLO text."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"(pred|bf16|[sufc]\d+)(?:e\dm\d\w*)?\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPERATION = re.compile(rf" = (.+?) ({'|'.join(KINDS)})(-start)?\(")
# libtpu spreads an operation over several fusions, from its start to its end; each of them prints it whole.
_CHAINED = re.compile(r"channel_id=(\d+),.*\bchain_id=")
_MEGASCALE = re.compile(r'^\s*(?:ROOT )?%\S+ = (.+?) send\(.*_xla_megascale_transfer_type="(\w+)"')
_CALLED = re.compile(
    r"(body|calls|to_apply|true_computation|false_computation|branch_computations)=\{?([^,}]+(?:, %[^,}]+)*)"
)
_MESH_GROUPS = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}"
)
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\(([^)]*)\)")
_COMMENT = re.compile(r"/\*.*?\*/")
_OPERAND = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_INDEX = re.compile(r"index=(\d+)")
_TILED = re.compile(r"(\w+)\[([\d,]*)\]\{([\d,]*):T\(([\d,]+)\)")
_ELSEWHERE = re.compile(r"S\(\d+\)\}")  # in a layout: on the chip or on the host, not in its main memory
_WHILE = re.compile(r" while\(.*?condition=%?([\w.\-]+), body=%?([\w.\-]+)")


class Instruction(NamedTuple):
    """A line of a computation.

    Attributes:
      line: all of it.
      root: whether it gives the computation's result.
      name: its own.
      shapes: of its result, or of a tuple's elements.
      operation: its opcode.
      operands: the names of what it takes.
      op_name: where in the traced program it comes from; empty if the compiler made it.
      element: which of a tuple's a get-tuple-element gives, else -1.
    """

    line: str
    root: bool
    name: str
    shapes: list[str]
    operation: str
    operands: list[str]
    op_name: str
    element: int


VIEWS = ("get-tuple-element", "tuple", "bitcast", "optimization-barrier")
"""Operations that move nothing: other names for what there is."""
CALLS = ("while", "conditional", "call")
"""Operations that run whole computations; a fusion's is one kernel."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of the program.

    Attributes:
      kind: of `KINDS`.
      bytes: of the whole value on each chip: what is reduced, or what has been gathered.
      group: chips that take part together.
      across: whether they are of several slices or nodes.
      times: how often a step runs it.
    """

    kind: str
    bytes: int
    group: int
    across: bool
    times: int

    @property
    def sent(self) -> float:
        """Bytes that a chip sends in a step if the group is a ring (arXiv 1802.05799), the least there is."""
        rounds = {"all-reduce": 2, "collective-permute": self.group / max(1, self.group - 1)}.get(self.kind, 1)
        return self.times * self.bytes * rounds * (self.group - 1) / max(1, self.group)


def collectives(text: str, node_of: Sequence[int]) -> list[Collective]:
    """The collectives of a compiled program.

    Args:
      text: `jax.stages.Compiled.as_text()`.
      node_of: for every device in the mesh's order, the slice or node that it belongs to.
    """
    computations = parse(text)
    times = _times(computations)
    found, chained = [], set()
    for name, lines in computations.items():
        for line in lines if times[name] else ():
            one = _collective(line, name, node_of)
            if one is None:
                continue
            if match := _CHAINED.search(line):
                if match[1] in chained:
                    continue
                chained.add(match[1])
            found.append(dataclasses.replace(one, times=times[name]))
    return found


def by_kind(found: Sequence[Collective]) -> dict[str, dict[str, float]]:
    """Per kind, of one step and chip: `count`, `bytes` of the values, and `sent` within and `sent_across` slices."""
    table: dict[str, dict[str, float]] = {}
    for one in found:
        row = table.setdefault(one.kind, {"count": 0, "bytes": 0, "sent": 0.0, "sent_across": 0.0})
        row["count"] += one.times
        row["bytes"] += one.times * one.bytes
        row["sent_across" if one.across else "sent"] += one.sent
    return {kind: table[kind] for kind in KINDS if kind in table}


def parse(text: str) -> dict[str, list[str]]:
    """The lines of every computation of a program, by name; the entry's is the empty name."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = found.setdefault("" if line.startswith("ENTRY") else match[1], [])
        else:
            lines.append(line)
    return found


def instructions(lines: Sequence[str]) -> Iterator[tuple[int, Instruction]]:
    """The instructions of a computation, by the number of their line."""
    for number, line in enumerate(lines):
        if match := _INSTRUCTION.match(line):
            root, name, shape, operation, arguments = match.groups()
            op_name, index = _OP_NAME.search(line), _INDEX.search(line) if operation == "get-tuple-element" else None
            yield (
                number,
                Instruction(
                    line,
                    bool(root),
                    name,
                    elements(shape) if shape.startswith("(") else [shape],
                    operation,
                    _OPERAND.findall(arguments),
                    op_name[1] if op_name else "",
                    int(index[1]) if index else -1,
                ),
            )


def moved(text: str) -> int:
    """Bytes that the operations of a step read and write in a chip's main memory, each operand and result once."""
    return _moved("", parse(text))


def _moved(name: str, computations: Mapping[str, Sequence[str]]) -> int:
    program = [instruction for _, instruction in instructions(computations[name])]
    looked_at = {(each.operands[0], each.element) for each in program if each.operation == "get-tuple-element"}
    sizes: dict[str, int] = {}
    started: dict[str, int] = {}  # by an asynchronous operation: the bytes that it takes
    total = 0
    for each in program:
        whole = len(each.shapes) == 1
        results = [
            laid_out(shape)
            for place, shape in enumerate(each.shapes)
            if whole or (each.name, place) in looked_at or each.operation == "parameter"  # workspace is not counted
        ]
        sizes[each.name] = sum(results)
        taken = [sizes.get(operand, 0) for operand in each.operands]
        started[each.name] = sum(taken)
        if each.operation in CALLS:
            total += sum(often * _moved(one, computations) for one, often in calls(each.line, computations))
        elif each.operation.endswith("-start"):  # what it gives may hold what it takes, too
            total += 2 * sum(taken)
        elif each.operation == "all-gather-done":  # which has grown meanwhile
            total += max(0, sum(results) - sum(started.get(operand, 0) for operand in each.operands))
        elif each.operation == "dynamic-slice":
            total += 2 * sum(results)
        elif each.operation == "dynamic-update-slice":
            total += 2 * taken[1]
        elif each.operation not in (*VIEWS, "parameter", "constant") and not each.operation.endswith("-done"):
            total += sum(taken) + sum(results)
    return total


def _times(computations: Mapping[str, Sequence[str]]) -> collections.Counter[str]:
    """How often each computation runs in a step."""
    times: collections.Counter[str] = collections.Counter()

    def visit(name: str, often: int) -> None:
        times[name] += often
        for line in computations.get(name, ()):
            for called, trips in calls(line, computations):
                if called in computations:
                    visit(called, often * trips)

    visit("", 1)
    return times


def calls(line: str, computations: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, int]]:
    """The computations that a line calls, by name, and how often."""
    if match := _WHILE.search(line):
        yield match[2], _trips(line, computations.get(match[1], ()))
        return
    for _, names in _CALLED.findall(line):
        for name in names.split(","):
            yield name.strip().removeprefix("%"), 1


def _trips(line: str, condition: Sequence[str]) -> int:
    """How often a loop runs: as the compiler says, or else the constant that its counter is compared with."""
    if match := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
        return int(match[1])
    constants = [int(number) for found in condition for number in re.findall(r"s32\[\]\S* constant\((\d+)\)", found)]
    return max(constants, default=1)


def _collective(line: str, computation: str, node_of: Sequence[int]) -> Collective | None:
    if match := _MEGASCALE.match(line):
        # libtpu moves between slices by hand: the hosts send and receive, whatever the operation.
        kind = match[2].lower().replace("_", "-")
        kind = kind if kind in KINDS else "collective-permute"
        return Collective(kind, array_bytes(match[1]), len(set(node_of)), True, 1)
    match = _OPERATION.search(line)
    if match is None:
        return None
    shape, kind, start = match[1], match[2], match[3]
    group, across = _group(line, node_of)
    if group < 2:
        return None
    if start and shape.startswith("(") and kind != "all-reduce":
        shape = elements(shape)[1]  # (operands, results, …)
    size = array_bytes(shape)
    if kind == "reduce-scatter":
        size *= group
    if kind == "all-reduce" and "all-reduce-scatter" in computation:  # libtpu's fusion of it with a slice of the result
        kind = "reduce-scatter"
    return Collective(kind, size, group, across, 1)


def elements(shape: str) -> list[str]:
    """The elements of a tuple's shape, which may be tuples."""
    found, depth = [""], 0
    for character in _COMMENT.sub("", shape[1:-1]):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            found.append("")
        else:
            found[-1] += character
    return [each.strip() for each in found]


def array_bytes(shape: str) -> int:
    """Bytes of an array or a tuple of arrays."""
    sizes = []
    for dtype, dimensions in _SHAPE.findall(shape):
        width = _BYTES.get(dtype) or max(1, int(re.sub(r"\D", "", dtype)) // 8)
        # A send's tuple holds its own bookkeeping.
        sizes.append(
            0 if dtype == "u32" and not dimensions else width * math.prod(map(int, filter(None, dimensions.split(","))))
        )
    return sum(sizes)


def laid_out(shape: str) -> int:
    """Bytes of an array in a chip's main memory, where it is there: in tiles, on TPUs."""
    if _ELSEWHERE.search(shape):
        return 0
    tiled = _TILED.match(shape)
    if tiled is None:
        return array_bytes(shape)
    sizes = [int(size) for size in tiled[2].split(",") if size]
    order, tile = ([int(n) for n in tiled[group].split(",") if n] for group in (3, 4))
    for axis, side in zip(order, reversed(tile), strict=False):  # both from the axis that varies fastest
        sizes[axis] = -(-sizes[axis] // side) * side
    return array_bytes(f"{tiled[1]}[{','.join(map(str, sizes))}]")


def _group(line: str, node_of: Sequence[int]) -> tuple[int, bool]:
    """Chips that take part together, and whether any of these groups spans slices."""
    groups = _groups(line, len(node_of))
    nodes = np.asarray(node_of)[groups]
    return groups.shape[1], bool((nodes != nodes[:, :1]).any())


def _groups(line: str, devices: int) -> np.ndarray:
    """(groups, chips in each): positions in the mesh's order."""
    if match := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        return np.array([[int(a), int(b)] for a, b in re.findall(r"\{(\d+),(\d+)", match[1] + "}")])
    if match := re.search(r"replica_groups=\{(\{[\d,{}]+\})\}", line):
        return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", match[1])])
    if match := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        order = np.arange(devices).reshape([int(n) for n in match[3].split(",")])
        if match[4]:
            order = order.transpose([int(n) for n in match[4].split(",")])
        return order.reshape(int(match[1]), int(match[2]))
    if match := _MESH_GROUPS.search(line):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
        taken = re.findall(r"'([^']+)'", match[4])
        order = np.arange(devices)
        if match[2]:
            order = order.reshape([int(n) for n in match[2].split(",")])
        if match[3]:
            order = order.transpose([int(n) for n in match[3].split(",")])
        order = order.reshape(list(sizes.values()))
        rest = [axis for axis, name in enumerate(sizes) if name not in taken]
        order = order.transpose(rest + [list(sizes).index(name) for name in taken])
        return order.reshape(-1, math.prod(sizes[name] for name in taken))
    return np.arange(devices)[None]
