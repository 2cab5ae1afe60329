"""Many plans of one config: which batch, strategy, remat and accumulation fit a target and are fastest there."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm.auto import tqdm

import jaxcxr
from jaxcxr import config as configs
from jaxcxr.errors import UserError
from jaxcxr.files import replace_file
from jaxcxr.plan import apart, networks
from jaxcxr.plan.roofline import Estimate, estimate
from jaxcxr.plan.targets import Target
from jaxcxr.training import ranges

OURS = Path(jaxcxr.__file__).parent
_SAVES = ("none", "attention", "blocks")  # remat, by the memory that it saves

Measure = Callable[[ConfigDict, Target], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Point:
    """One config of a sweep, and what was found.

    Attributes:
      config: the whole of it.
      found: as `jaxcxr.plan.compile.measure` gives it; None where it was not compiled.
      why: it was not.
    """

    config: ConfigDict
    found: Mapping[str, Any] | None = None
    why: str = ""

    @property
    def fits(self) -> bool:
        """Whether it was compiled and fits."""
        return self.found is not None and not self.found["over"]

    @property
    def estimate(self) -> Estimate:
        """The speed of one that fits."""
        assert self.found is not None
        return estimate(self.found)

    @property
    def micro_batch(self) -> float:
        """Images that are gone through at once, of all chips."""
        return self.config.batch_size / self.config.accumulation


def default_axes(config: ConfigDict, target: Target) -> dict[str, list[str]]:
    """Half the batch, the same and twice it; whole states and split ones; remat; accumulation."""
    batches = [size for size in (config.batch_size // 2, config.batch_size, 2 * config.batch_size) if size]
    return {
        "batch_size": [str(size) for size in batches],
        "sharding": ["replicated", "fsdp"] if target.chips > 1 else ["replicated"],
        "remat": ["none", "blocks"],
        "accumulation": ["1", "4"],
    }


def axes_of(texts: Sequence[str]) -> dict[str, list[str]]:
    """Axes as the command line gives them: `batch_size=64,128`.

    Raises:
      UserError: one has no values.
    """
    axes = {}
    for text in texts:
        key, _, values = text.partition("=")
        if not key or not values:
            raise UserError(f"--try {text}: give a key of the config and its values, as in batch_size=64,128")
        axes[key] = values.split(",")
    return axes


def grid(config: ConfigDict, target: Target, axes: Mapping[str, Sequence[str]]) -> list[ConfigDict]:
    """Every combination, those that need least memory first.

    Where the strategy is one of the axes and no axis of the mesh is, split states are split over a slice or node.

    Raises:
      UserError: a key or value is not the config's.
    """
    points = []
    for values in itertools.product(*axes.values()):
        point = configs.changed(config, [f"--config.{key}={value}" for key, value in zip(axes, values, strict=True)])
        if "sharding" in axes and not any(key.startswith("mesh.") for key in axes):
            point = configs.changed(point, [f"--config.mesh.{axis}={n}" for axis, n in _mesh(point, target).items()])
        ranges.check(point)
        points.append(point)
    return sorted(points, key=lambda point: (_cost(point)[0], point.batch_size))


def _mesh(config: ConfigDict, target: Target) -> dict[str, int]:
    within = target.chips // target.slices
    tensor = 2 if config.sharding == "fsdp+tensor" and within % 2 == 0 else 1
    splits = config.sharding != "replicated" or config.ema_sharding
    return {"data": -1, "fsdp": within // tensor if splits else 1, "tensor": tensor}


def sweep(points: Sequence[ConfigDict], target: Target, folder: Path, measure: Measure = apart.measure) -> list[Point]:
    """Plans each of `points`, or takes what an earlier sweep has left of it in `folder`.

    One is passed over where another that needs no more memory did not fit.

    Raises:
      UserError: none of them could be planned; the first one's reason.
    """
    done: list[Point] = []
    for config in tqdm(points, desc=f"sweep {target.name}", unit="plan", disable=None):
        if any(point.found and point.found["over"] and _no_dearer(point.config, config) for point in done):
            done.append(Point(config, why="not tried: a smaller one does not fit"))
            continue
        try:
            done.append(Point(config, _remembered(config, target, folder, measure)))
        except UserError as error:
            done.append(Point(config, why=str(error)))
    if not any(point.found for point in done):
        raise UserError(next((point.why for point in done), "nothing to sweep"))
    return done


def _cost(config: ConfigDict) -> tuple[float, int, bool]:
    """What memory grows with: the images at once, how little remat saves, gradients that are summed up."""
    saved = _SAVES.index(config.remat) if config.remat in _SAVES else 0
    return config.batch_size / config.accumulation, -saved, config.accumulation > 1


def _no_dearer(one: ConfigDict, other: ConfigDict) -> bool:
    """Whether `one` needs no more memory than `other`, as far as is known beforehand."""
    swept = dict.fromkeys(("batch_size", "accumulation", "remat", "sharding", "mesh"))
    rest = [json.dumps(config.to_dict() | swept, default=list) for config in (one, other)]
    alike = one.sharding == other.sharding and one.mesh == other.mesh
    # Each kind of remat saves something, and either may save more than the other.
    saves = other.remat in (one.remat, "none")
    # Whole states need the most, whatever the mesh, unless split ones are gathered into as many bytes; of two ways to
    # split it is not known.
    whole = other.sharding == "replicated" and not other.ema_sharding and one.mesh.tensor == other.mesh.tensor
    whole = whole and one.dtype == "bfloat16"
    cheaper = all(a <= b for a, b in zip(_cost(one), _cost(other), strict=True))
    return rest[0] == rest[1] and (alike or whole) and cheaper and saves


def _remembered(config: ConfigDict, target: Target, folder: Path, measure: Measure) -> dict[str, Any]:
    """The plan, kept in a file by the digest of everything that decides it."""
    file = folder / "plans" / f"{digest(config, target)}.json"
    if file.is_file():
        return json.loads(file.read_text())
    found = measure(config, target)
    try:
        replace_file(file, (json.dumps(found, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error
    return found


def digest(config: ConfigDict, target: Target) -> str:
    """Of a config and the files that it names, a target, the versions of what compiles and our own code."""
    text = configs.to_json(config) + networks.digest(config) + target.name
    text += json.dumps(versions(), sort_keys=True) + sources(OURS)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


@functools.cache
def sources(folder: Path) -> str:
    """A digest of the Python files below a folder: what a plan counts may change within a version."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        found.update(f"{file.relative_to(folder)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def versions() -> dict[str, str]:
    """Of the packages that decide what is compiled."""
    return dict(_versions())


def _versions() -> Iterator[tuple[str, str]]:
    for package in ("jaxcxr", "jax", "jaxlib", "libtpu", "jax-cuda12-pjrt"):
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue


def best(points: Sequence[Point]) -> Point | None:
    """The fastest that fits."""
    return max((point for point in points if point.fits), key=lambda point: point.estimate.rate, default=None)
