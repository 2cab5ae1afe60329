"""How a run scales from 8 to 1,024 chips: with the same images a chip (weak), and the same images a step (strong)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxcxr import config as configs
from jaxcxr.errors import UserError
from jaxcxr.plan import apart, targets
from jaxcxr.plan.roofline import Estimate, estimate
from jaxcxr.plan.sweep import Measure, sweep
from jaxcxr.plan.targets import Target

CHIPS = tuple(2**exponent for exponent in range(3, 11))


@dataclasses.dataclass(frozen=True)
class Size:
    """A plan at one number of chips; `found` is None where it cannot be, for the reason `why`."""

    target: Target
    found: Mapping[str, Any] | None
    interpolated: bool = False
    why: str = ""

    @property
    def estimate(self) -> Estimate:
        """Its speed."""
        assert self.found is not None
        return estimate(self.found)


def scaling(
    config: ConfigDict,
    target: Target,
    folder: Path,
    *,
    coarse: bool = False,
    chips: Sequence[int] = CHIPS,
    measure: Measure = apart.measure,
) -> dict[str, list[Size]]:
    """Plans of the config at every number of chips, `weak` and `strong`.

    Args:
      config: `batch_size` is that of `target`, which gives the images a chip of the one, and of the other's every step.
      target: of the kind that is scaled.
      folder: keeps the plans, as for `sweep`.
      coarse: compiles the smallest, the largest and one between, and interpolates the others.
      chips: powers of two.
      measure: gives a plan.

    Raises:
      UserError: a target has less than an image a chip, or no size can be planned.
    """
    if config.batch_size % target.chips:
        raise UserError(f"config.batch_size={config.batch_size}: is not a multiple of the {target.chips} chips")
    each = config.batch_size // target.chips
    batches = {
        "weak": {n: each * n for n in chips},
        "strong": {n: config.batch_size for n in chips if config.batch_size % n == 0},
    }
    scaled = {kind: _sizes(config, target, folder, batches[kind], coarse, chips, measure) for kind in batches}
    sizes = [size for kind in scaled.values() for size in kind]
    if not any(size.found for size in sizes):
        raise UserError(next((size.why for size in sizes if size.why), "no number of chips to plan for"))
    return scaled


def _sizes(
    config: ConfigDict,
    target: Target,
    folder: Path,
    batches: Mapping[int, int],
    coarse: bool,
    chips: Sequence[int],
    measure: Measure,
) -> list[Size]:
    possible = sorted(batches)
    compiled = {possible[0], possible[len(possible) // 2], possible[-1]} if coarse and possible else set(possible)
    sizes: dict[int, Size] = {}
    for n in possible:
        if n not in compiled:
            continue
        here = targets.larger(target.chip.kind, n)
        try:
            (point,) = sweep([at(config, target, here, batches[n])], here, folder, measure)
        except UserError as error:
            sizes[n] = Size(here, None, why=str(error))
        else:
            sizes[n] = Size(here, point.found)
    known = {n: size.found for n, size in sizes.items() if size.found and "temporaries" in size.found["memory"]}
    for n in chips:
        here = targets.larger(target.chip.kind, n)
        if n not in batches:
            sizes[n] = Size(here, None, why=f"{config.batch_size} images do not divide among {n} chips")
        elif n not in sizes:
            between = interpolate(known, here, batches[n])
            sizes[n] = Size(here, between, True, "" if between else "sizes around it could not be planned")
    return [sizes[n] for n in sorted(sizes)]


def at(config: ConfigDict, target: Target, other: Target, batch_size: int) -> ConfigDict:
    """A config of `target` for `other`: as many images at once a chip or fewer, states split within a slice or node."""
    within = other.chips // other.slices
    split = config.mesh.fsdp if config.mesh.fsdp > 0 else within
    each, at_once = batch_size // other.chips, max(1, config.batch_size // target.chips // config.accumulation)
    changes = {
        "batch_size": batch_size,
        "accumulation": each // math.gcd(each, at_once),
        "mesh.data": -1,
        "mesh.fsdp": math.gcd(split, within // max(1, config.mesh.tensor)),
    }
    return configs.changed(config, [f"--config.{key}={value}" for key, value in changes.items()])


def interpolate(known: Mapping[int, Mapping[str, Any]], target: Target, batch_size: int) -> dict[str, Any] | None:
    """A plan between two that were compiled: each number that grows or shrinks with the chips as a power of them."""
    n = target.chips
    below, above = max((m for m in known if m < n), default=0), min((m for m in known if m > n), default=0)
    if not below or not above:
        return None
    share = math.log(n / below) / math.log(above / below)
    between = _between(known[below], known[above], share)
    said = {"target": target.name, "chips": n, "batch_size": batch_size, "mesh": {}, "over": max(0, _over(between))}
    return between | said


def _over(found: Mapping[str, Any]) -> int:
    return int(sum(found["memory"].values()) - found["limit"]) if found["limit"] else 0


def _between(a: Any, b: Any, share: float) -> Any:
    if isinstance(a, Mapping) or isinstance(b, Mapping):
        a, b = a or {}, b or {}  # a kind of collective that one of the two lacks sends nothing there
        return {key: _between(a.get(key, 0), b.get(key, 0), share) for key in {**a, **b}}
    if isinstance(a, bool) or not isinstance(a, int | float) or not isinstance(b, int | float):
        return a
    if a > 0 and b > 0:
        return a ** (1 - share) * b**share
    return a * (1 - share) + b * share
