"""A plan in words: the tables that are printed."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxcxr.parallel import rules
from jaxcxr.parallel.chips import GIB
from jaxcxr.plan.roofline import ASSUMPTIONS, estimate

_KINDS = {
    "weights": "those that learn, float32",
    "frozen": "in the compute dtype",
    "optimizer": "its moments",
    "ema": "the average",
    "batch": "images and prompts",
    "padding": "of layouts",
    "temporaries": "",
    "program": "instructions",
}
_ALIVE = {
    "activations": "kept for the backward pass",
    "gradients": "of parameters, and updates",
    "rounded weights": "in the compute dtype, gathered",
    "workspace": "of what is under way",
}


def gib(count: float) -> str:
    """Bytes for people."""
    return f"{count / GIB:.2f} GiB" if count >= 0.1 * GIB else f"{count / 2**20:.1f} MiB"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def text(found: Mapping[str, Any]) -> str:
    """The whole plan of one config for one target."""
    return "\n\n".join(["\n".join(_verdict(found)), _memory(found), *_speed(found)])


def fits(found: Mapping[str, Any]) -> str:
    """Whether it fits, and by how much."""
    if found["over"]:
        return f"does not fit: {gib(found['over'])} a chip too much"
    if found["limit"] is None:
        return "compiles"
    return f"fits: {gib(found['limit'] - sum(found['memory'].values()))} of {gib(found['limit'])} a chip are left"


def _verdict(found: Mapping[str, Any]) -> Iterator[str]:
    each = found["batch_size"] / found["chips"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    yield f"{found['target']}: {found['chips']} chips ({mesh}), {found['batch_size']} images a step, {each:g} a chip"
    yield fits(found)
    yield from rules.warning(found.get("unnamed", ()))


def _memory(found: Mapping[str, Any]) -> str:
    memory = found["memory"]
    rows = [("memory a chip", "", "")]
    for kind, what in _KINDS.items():
        if kind in memory:
            rows.append((f"  {kind}", gib(memory[kind]), f"  {what}"))
        if kind == "temporaries":
            rows += [(f"    {part}", gib(size), f"  {_ALIVE[part]}") for part, size in temporaries(found).items()]
    complete = "temporaries" in memory
    total = sum(memory.values()) if complete else found["over"] + (found["limit"] or 0)
    if not complete:
        rows.append(("  temporaries", gib(total - sum(memory.values())), "  and padding, by the compiler's refusal"))
    rows.append(("  total", gib(total), f"  of {gib(found['limit'])}" if found["limit"] else ""))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{a.ljust(widths[0])}  {b.rjust(widths[1])}{c}".rstrip() for a, b, c in rows]
    if found["donated"]:
        lines.append(f"donating the state saves {gib(found['donated'])}")
    return "\n".join(lines)


def temporaries(found: Mapping[str, Any]) -> dict[str, float]:
    """Bytes a chip of the temporaries by kind, in the shares of what is alive at the fullest moment."""
    alive, whole = found["alive"] or {}, found["memory"].get("temporaries", 0)
    return {kind: whole * size / sum(alive.values()) for kind, size in alive.items() if size and whole}


def _speed(found: Mapping[str, Any]) -> Iterator[str]:
    flops, images = found["flops"], found["batch_size"]
    kinds = {"  work": flops["model"], "  with recomputing": flops["traced"]}
    yield table([("FLOPs", "a step", "an image"), *((name, _tera(n), _tera(n / images)) for name, n in kinds.items())])
    if flops.get("compiler"):
        yield f"the compiler counts {_tera(flops['compiler'])} a chip, the body of a loop once"
    if found["collectives"]:
        yield table([("sent by a chip in a step", "count", "of values", "within", "across slices"), *_sent(found)])
    if "temporaries" not in found["memory"]:
        yield "no speed is given for a step that does not fit"
        return
    if found["limit"] is None:
        yield "no speed is given for CPUs"
        return
    guess = estimate(found)
    low, high = guess.band
    if guess.memory:
        yield (
            f"read and written by a chip in a step: {gib(found['moved'])},"
            f" {1000 * guess.memory:.1f} ms at its memory's full speed"
        )
    else:
        yield "the program is of a form not known here: what it moves cannot be read in its text, nor bound its speed"
    times = {name: getattr(guess, name) for name in ("compute", "state", "communication", "ideal")}
    times["expected"] = guess.seconds
    yield table([("roofline", "a step"), *((f"  {name}", f"{1000 * time:.1f} ms") for name, time in times.items())])
    yield (
        f"expected {guess.rate:.4g} images/s ({images / high:.4g} to {images / low:.4g}),"
        f" {guess.rate / guess.chips:.3g} a chip, MFU {100 * guess.mfu:.0f} %"
    )
    yield "assumed:\n" + "\n".join(f"  {line}" for line in ASSUMPTIONS)
    yield "planned in " + ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in found["seconds"].items())


def _sent(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for kind, row in found["collectives"].items():
        yield f"  {kind}", f"{row['count']:.0f}", *(gib(row[key]) for key in ("bytes", "sent", "sent_across"))


def _tera(count: float) -> str:
    return f"{count / 1e12:.4g} T" if count >= 1e10 else f"{count / 1e9:.3g} G"


def sharding(found: Mapping[str, Any]) -> str:
    """The table of where parameters lie, and bytes a chip; those that differ by their numbers alone are one row."""

    def key(row: Mapping[str, Any]) -> tuple:
        return re.sub(r"\.\d+(?=\.)", ".*", row["name"]), tuple(row["shape"]), str(row["spec"])

    kinds = ("weights", "optimizer", "ema")
    rows: list[tuple[str, ...]] = [("parameter", "how many", "shape", "split", *kinds)]
    total = dict.fromkeys(kinds, 0)
    for (name, shape, _), group in itertools.groupby(sorted(found["sharding"], key=key), key):
        alike = list(group)
        sizes = {kind: sum(row[kind] for row in alike) for kind in kinds}
        total = {kind: total[kind] + sizes[kind] for kind in kinds}
        shown = [gib(size) if size else "-" for size in sizes.values()]
        rows.append((name, str(len(alike)), "x".join(map(str, shape)) or "scalar", _spec(alike[0]), *shown))
    rows.append(("all, a chip", str(len(found["sharding"])), "", "", *map(gib, total.values())))
    return table(rows)


def _spec(row: Mapping[str, Any]) -> str:
    """The axes that are split, by their size: `1280/fsdp`."""
    named = [(size, axis) for size, axis in zip(row["shape"], row["spec"], strict=False) if axis]
    return ", ".join(f"{size}/{'+'.join(axis) if isinstance(axis, list) else axis}" for size, axis in named) or "-"
