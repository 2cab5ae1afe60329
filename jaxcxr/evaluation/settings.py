"""What an evaluation computes: `config.evaluation`, with its types and ranges."""

import dataclasses
from typing import Annotated, Any

import msgspec
from ml_collections import ConfigDict

from jaxcxr import parsing
from jaxcxr.errors import UserError
from jaxcxr.evaluation.metrics import METRICS

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
WITHIN_PROMPTS = "ssim_within"
"""The metric of pixels, which needs two images or more of a prompt."""
CLIP_SCORE, ALIGNMENT, RETRIEVAL = OF_TEXTS = ("clip_score", "alignment", "retrieval")
"""Metrics of images and texts, for extractors that embed both: `clip_score` is max(100 · cosine, 0), `alignment` the
cosine; `retrieval` stands for recall at 1, 5 and 10 and the median rank, both ways, plain and with answers of equal
labels."""
GROUPS = ("label", "view", "sex", "age", "race")
"""What an image may belong to; a row of metadata gives the first as `labels` and the others under these names."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """`config.evaluation`.

    Attributes:
      extractors: each NAME or NAME/PREPROCESSING.
      weights: NAME=FILE, the files of the weights of extractors that do not come with a package.
      metrics: names of `METRICS`, of `OF_TEXTS`, and `ssim_within`.
      groups: of what the numbers are split by, where the data have it: label, view, sex, age, race.
      images: of each set at most, drawn at random; 0: all.
      draws: halves of the patients that values and intervals are of.
      as_published: whole sets compared once, without floor and interval, as published numbers are.
      every: steps between evaluations of what a run draws while it trains; 0: never.
      generated: images that are drawn then, by the prompts of validation images.
    """

    extractors: tuple[str, ...] = ("efficientnet-lite0",)
    weights: tuple[str, ...] = ()
    metrics: tuple[str, ...] = (
        *("fd", "fd_infinity", "kid", "prdc", "authenticity", "vendi"),
        *(WITHIN_PROMPTS, *OF_TEXTS),
    )
    groups: tuple[str, ...] = GROUPS
    images: Count = 0
    draws: Annotated[int, msgspec.Meta(ge=2, le=10_000)] = 20
    as_published: bool = False
    every: Count = 0
    generated: Annotated[int, msgspec.Meta(ge=1, le=10**6)] = 256


def defaults() -> ConfigDict:
    """`config.evaluation` as it is in a config that says nothing of it."""
    return ConfigDict(dataclasses.asdict(Settings()))


def read(section: Any) -> Settings:
    """Checks a config's section.

    Raises:
      UserError: a value is of a wrong type, out of its range, or names what there is not.
    """
    settings: Settings = parsing.convert(section.to_dict(), Settings, "config.evaluation")
    for key, known in (("metrics", (*METRICS, WITHIN_PROMPTS, *OF_TEXTS)), ("groups", GROUPS)):
        if unknown := [name for name in getattr(settings, key) if name not in known]:
            raise UserError(f"config.evaluation.{key}: {unknown[0]!r} may be {', '.join(known)}")
    return settings
