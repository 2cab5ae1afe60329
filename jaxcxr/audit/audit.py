"""An audit: generated images, and the model if it is there, against its training images and held-out ones."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcxr.audit import copies, membership, prompts
from jaxcxr.audit.membership import Attack
from jaxcxr.audit.sides import Counts, Side, Sides, one_of_each, pixels_of, require_enough, unlisted
from jaxcxr.audit.similarity import Inputs, Seen, Similarity, compare
from jaxcxr.audit.verdict import Verdict, conclude
from jaxcxr.errors import UserError
from jaxcxr.evaluation.bootstrap import bootstrap
from jaxcxr.evaluation.evaluate import some
from jaxcxr.evaluation.metrics.classification import auroc
from jaxcxr.evaluation.reconstructions import reconstruct
from jaxcxr.evaluation.sets import open_set
from jaxcxr.generate import default_size
from jaxcxr.interop.pipeline import StableDiffusion

_HIGHEST = 20  # prompts that the local page lists


@dataclasses.dataclass(frozen=True)
class Settings:
    """What an audit computes; fields as the options of `jaxcxr audit`."""

    rate: float = 0.01
    size: int = 0
    images: int = 0
    planted: int = 200
    members: int = 1000
    prompts: int = 200
    steps: int = 50
    guidance: float = 7.5
    batch_size: int = 16
    seed: int = 0

    def check(self) -> None:
        """Raises UserError for the first number that is out of range."""
        for name, least, most in (
            *(("size", 0, 8192), ("images", 0, 10**9), ("planted", 10, 10**6), ("members", 10, 10**6)),
            *(("prompts", 0, 10**6), ("steps", 1, 1000), ("batch_size", 1, 2**16), ("seed", 0, 2**32 - 1)),
        ):
            if not least <= getattr(self, name) <= most:
                option = name.replace("_", "-")
                raise UserError(f"--{option} {getattr(self, name)}: may be from {least} to {most:,}")
        if not 0 < self.rate <= 0.5:
            raise UserError(f"--rate {self.rate:g}: may be above 0 and up to 0.5")
        if not 1 < self.guidance < 1000:
            raise UserError(f"--guidance {self.guidance:g}: may be above 1, as prompts do nothing else below")


class Prompts(NamedTuple):
    """How far prompts move the U-Net's prediction: norms of the conditional noise.

    Attributes:
      train: of prompts of training images, (N,).
      held_out: of prompts that only held-out images have, (M,).
      auc: the chance that a training prompt moves it further, with its 95 % interval; None where there are none to
        compare.
      low: its lower end.
      high: its upper end.
      marked: training prompts that have the marker `___`, of all of `texts`.
      texts: different training prompts.
      with_marker: norms of some of these, (K,).
      without_marker: norms of the same prompts with the marker taken out, (K,).
      difference: the mean of what the marker adds, with its 95 % interval; None where no prompt has it.
      highest: the training prompts that move it furthest, with their norms: for the local page alone.
    """

    train: np.ndarray
    held_out: np.ndarray
    auc: float | None
    low: float | None
    high: float | None
    marked: int
    texts: int
    with_marker: np.ndarray
    without_marker: np.ndarray
    difference: tuple[float, float, float] | None
    highest: list[tuple[str, float]]


@dataclasses.dataclass
class Audit:
    """What an audit has found.

    Attributes:
      counts: images by set.
      similarities: by extractor.
      attacks: membership, where there is a model.
      prompts: of the model, where there is one.
      verdict: the conclusion.
      left_out: what could not be computed and why, a line each.
      size: pixels of a side at which images were compared.
      sides: the images that were compared, by the first extractor; the places of its pairs are of these.
    """

    counts: Counts
    similarities: list[Similarity]
    attacks: list[Attack]
    prompts: Prompts | None
    verdict: Verdict
    left_out: list[str]
    size: int
    sides: Sides


def audit(
    train: str, held_out: str, generated: str, seen: Sequence[Seen], settings: Settings, folder: Path, model: Any = None
) -> Audit:
    """Audits generated images, and a model.

    Args:
      train: the images that the model was trained on, all of them, as of `evaluation.sets.open_set`.
      held_out: images of other patients of the same source.
      generated: images that the model has drawn.
      seen: the extractors, one or more.
      settings: how.
      folder: where features and the like are kept.
      model: a `StableDiffusion` of all networks, or None.

    Raises:
      UserError: images or weights cannot be read, or there are too few for the rate of false alarms.
    """
    settings.check()
    opened = [open_set(place) for place in (train, held_out, generated)]
    counts: Counts = {name: {} for name in ("train", "held_out", "generated")}
    for name, place, images in zip(counts, (train, held_out, generated), opened, strict=True):
        if more := unlisted(Path(place), images):
            counts[name]["not listed, left out"] = more
    ours, theirs, drawn = opened[0], opened[1], some(opened[2], settings.images, settings.seed)
    alone = require_enough(ours, theirs, settings.rate)
    counts["held_out"]["of training patients, left out"] = len(theirs.items) - len(alone.items)
    size = settings.size or drawn.side()
    inputs = Inputs(ours, alone, drawn, size, folder, settings.rate, settings.planted, settings.seed)
    left_out: list[str] = []
    if model is not None:
        inputs, left_out = _with_autoencoder(inputs, model, settings)
    found = [compare(inputs, each, counts) for each in seen]
    similarities, sides = [one for one, _ in found], found[0][1]
    attacks, about = ([], None) if model is None else _ask(model, sides, settings, folder, left_out)
    verdict = conclude(similarities, attacks)
    return Audit(counts, similarities, attacks, about, verdict, left_out, size, sides)


def _with_autoencoder(inputs: Inputs, model: StableDiffusion, settings: Settings) -> tuple[Inputs, list[str]]:
    """With copies that the model's own autoencoder makes, where the size fits it."""
    if inputs.size % model.vae.config.vae_scale_factor:
        return inputs, [f"copies by the autoencoder: it does not take images of {inputs.size} pixels; give --size"]
    return inputs._replace(reconstruct=lambda images: reconstruct(model, images, settings.batch_size)), []


def _ask(
    model: StableDiffusion, sides: Sides, settings: Settings, folder: Path, left_out: list[str]
) -> tuple[list[Attack], Prompts | None]:
    """What the model itself says of its training images and prompts."""
    attacks = _attack(model, sides, settings, folder)
    for one in attacks[:1]:
        missing = [rate for rate in membership.RATES if rate not in one.found]
        left_out += [
            f"membership at {100 * rate:g} % false positives: needs {round(1 / rate):,} held-out images, there are"
            f" {one.others}"
            for rate in missing
        ]
    about = _prompts(model, sides, settings, folder) if settings.prompts else None
    if settings.prompts and about is None:
        left_out.append("prompts: no training image has a text")
    return attacks, about


def _attack(model: StableDiffusion, sides: Sides, settings: Settings, folder: Path) -> list[Attack]:
    size, seed = default_size(model), settings.seed
    # One image of each patient, as those of one are alike; as many training images as held-out ones.
    parts = [side.taken(one_of_each(side.patients, seed)) for side in (sides.train, sides.held_out)]
    count = min(settings.members, *(len(part.patients) for part in parts))
    chosen = [part.taken(copies.chosen(len(part.patients), count, seed)) for part in parts]
    errors = [_errors(model, part, size, settings, folder) for part in chosen]
    people = np.concatenate([part.patients for part in chosen])
    return [
        membership.attack(name, errors[0][name], errors[1][name], people, settings.seed) for name in membership.ATTACKS
    ]


def _errors(model: StableDiffusion, part: Side, size: int, settings: Settings, folder: Path) -> dict[str, np.ndarray]:
    images = pixels_of(part.images, range(len(part.patients)), size)
    texts = [item.text for item in part.images.items]
    return membership.errors(model, images, texts, folder / "membership", settings.batch_size, settings.seed)


def _prompts(model: StableDiffusion, sides: Sides, settings: Settings, folder: Path) -> Prompts | None:
    known, others = (
        list(dict.fromkeys(item.text for item in side.images.items if item.text))
        for side in (sides.train, sides.held_out)
    )
    if not known:
        return None
    only = [text for text in others if text not in set(known)]
    marked = [text for text in known if prompts.MARKER.search(text)]

    def norms(texts: Sequence[str]) -> np.ndarray:
        how = settings.steps, settings.guidance, settings.batch_size, settings.seed
        return prompts.conditional_noise(model, texts, folder / "prompts", *how)

    def drawn(texts: Sequence[str]) -> list[str]:
        return [texts[place] for place in copies.chosen(len(texts), settings.prompts, settings.seed)]

    ours, theirs, held = drawn(known), drawn(only), drawn(marked)
    train, held_out = norms(ours), norms(theirs)
    with_marker, without = norms(held), norms([prompts.stripped(text) for text in held])
    highest = [(ours[place], float(train[place])) for place in np.argsort(-train)[:_HIGHEST]]
    area, low, high = _area(train, held_out, settings.seed) if len(theirs) else (None, None, None)
    change = with_marker - without
    difference = None if not len(held) else (float(change.mean()), *_interval(change, settings.seed))
    return Prompts(
        train=train,
        held_out=held_out,
        auc=area,
        low=low,
        high=high,
        marked=len(marked),
        texts=len(known),
        with_marker=with_marker,
        without_marker=without,
        difference=difference,
        highest=highest,
    )


def _area(train: np.ndarray, held_out: np.ndarray, seed: int) -> tuple[float, float, float]:
    labels, scores = np.arange(len(train) + len(held_out)) < len(train), np.concatenate([train, held_out])
    rows = np.stack([labels, scores], axis=1)
    low, high = bootstrap(rows, np.arange(len(rows)), lambda drawn: auroc(drawn[:, 0] > 0, drawn[:, 1]), seed=seed)
    return auroc(labels, scores), float(low), float(high)


def _interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    low, high = bootstrap(values, np.arange(len(values)), seed=seed)
    return float(low), float(high)
