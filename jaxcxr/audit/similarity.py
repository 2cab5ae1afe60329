"""What images alone say, by one extractor: which generated images are copies, and how many are."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcxr.audit import copies, copying
from jaxcxr.audit.calibrate import Share, Threshold, calibrate, estimate_share
from jaxcxr.audit.copying import Exchange
from jaxcxr.audit.nearest import Nearest, Space, nearest, of_network, of_pixels
from jaxcxr.audit.pixels import Pixels, Stacked
from jaxcxr.audit.sides import Counts, Side, Sides, cleaned, one_of_each
from jaxcxr.audit.smoothing import Smoothed
from jaxcxr.audit.sscd import Session, open_sscd
from jaxcxr.errors import UserError
from jaxcxr.evaluation import extractors
from jaxcxr.evaluation.features import Described, Network, Open, extract
from jaxcxr.evaluation.metrics.neighbours import authenticity
from jaxcxr.evaluation.sets import ImageSet
from jaxcxr.parallel import mesh as meshes
from jaxcxr.phantoms.scores import Rate, wilson

PERCENTILES = (50, 75, 90, 95, 99)
PAIRS = 20
_CELLS, _LEAST_OF_CELL = 10, 20  # cells of C_T at most, and held-out images of each on average
_MOST_TRAIN = 2000  # training images that are compared with those of other patients


class Seen(NamedTuple):
    """An extractor that an audit uses: what describes it, what computes, and when two of its vectors are alike, of
    features of training and held-out images."""

    described: Described
    open_network: Open
    space: Callable[[np.ndarray, np.ndarray], Space]


def choose(names: Sequence[str], weights: Sequence[str] = ()) -> list[Seen]:
    """Extractors by name: `pixels`, `sscd`, or what `evaluation.extractors.choose_all` takes.

    Raises:
      UserError: there is no such extractor, or its weights are not here.
    """
    own = {"pixels", "sscd"}
    files = dict(each.partition("=")[::2] for each in weights)
    others = [each for each in weights if each.partition("=")[0] not in own]
    if "pixels" in files:
        raise UserError("--weights pixels: it has none; leave it out")
    found = []
    for name in dict.fromkeys(names):
        if name == "pixels":
            found.append(Seen(Pixels(), lambda batch_size: Stacked(), lambda train, held_out: of_pixels()))
        elif name == "sscd":
            sscd = open_sscd(files.get("sscd"))
            found.append(Seen(Smoothed(sscd), functools.partial(_session, sscd.file), of_network))
        else:
            try:
                chosen = extractors.choose_all([name], others)[0]
            except UserError as error:
                also = f"; or {' or '.join(sorted(own))}" if name.partition("/")[0] not in extractors.EXTRACTORS else ""
                raise UserError(f"{error}{also}") from error
            found.append(Seen(Smoothed(chosen), functools.partial(_network, chosen), of_network))
    return found


@dataclasses.dataclass(frozen=True)
class Similarity:
    """What an extractor says.

    Attributes:
      extractor: its name.
      digest: of its weights.
      threshold: above which an image counts as a copy.
      recalls: planted copies that are found, by kind.
      flagged: generated images that count as copies.
      share: the share of copies, corrected for false alarms and missed copies.
      exchange: of all generated images, those nearer to a training image than to every held-out one.
      exchange_flagged: the same of images that are as near as a copy to a training or a held-out image.
      z_u: distances of generated images from training images against those of held-out ones.
      c_t: the same by cells.
      authenticity: share of generated images that are no copies by `metrics.neighbours.authenticity`.
      percentiles: of similarities with the nearest training image, by `PERCENTILES`: of generated and held-out images,
        and of training images with those of other patients.
      ratio: medians of d₁ / d₂, the distances from the nearest training image and from that of another patient, of
        generated and held-out images.
      low_ratio: share of generated images whose d₁ / d₂ is below that of all but `rate` of the held-out ones.
      places: of the flagged images in the generated set.
      pairs: the nearest pairs: place in the generated set, in the training set, and similarity.
    """

    extractor: str
    digest: str
    threshold: Threshold
    recalls: dict[str, Rate]
    flagged: Rate
    share: Share
    exchange: Exchange
    exchange_flagged: Exchange
    z_u: float
    c_t: float
    authenticity: float
    percentiles: dict[str, list[float]]
    ratio: dict[str, float]
    low_ratio: Rate
    places: list[int]
    pairs: list[tuple[int, int, float]]

    @property
    def recall(self) -> float:
        """The mean recall of the kinds of planted copies."""
        return float(np.mean([rate.share for rate in self.recalls.values()]))

    @property
    def planted(self) -> tuple[float, float]:
        """The interval of the recall of all planted copies together."""
        return wilson(sum(one.hits for one in self.recalls.values()), sum(one.total for one in self.recalls.values()))


def _session(file: Path, batch_size: int) -> Session:
    return Session(file)


def _network(chosen: extractors.Chosen, batch_size: int) -> Network:
    return Network(chosen, batch_size, meshes.own_mesh())


class Inputs(NamedTuple):
    """The three sets, and how they are read.

    Attributes:
      train: training images.
      held_out: images of other patients.
      generated: images of the model.
      size: pixels of a side that all are brought to.
      folder: where what is computed is kept.
      rate: of false alarms.
      planted: copies of each kind.
      seed: of what is drawn.
      reconstruct: an autoencoder: uint8 (N, S, S) -> the same; its copies are planted too.
    """

    train: ImageSet
    held_out: ImageSet
    generated: ImageSet
    size: int
    folder: Path
    rate: float
    planted: int
    seed: int = 0
    reconstruct: Callable[[np.ndarray], np.ndarray] | None = None


def compare(inputs: Inputs, seen: Seen, counts: Counts) -> tuple[Similarity, Sides]:
    """What one extractor says, and the images that it has compared; which were left out is added to `counts`.

    Raises:
      UserError: images cannot be read, or there are too few for the rate of false alarms.
    """
    sets = (inputs.train, inputs.held_out, inputs.generated)
    train, held_out, generated = ((each, _features(inputs, each, seen)) for each in sets)
    sides = cleaned(train, held_out, generated, counts)
    space = seen.space(sides.train.values, sides.held_out.values)

    def near(side: Side, reference: Side, own: Sequence[str] | None = None) -> Nearest:
        names = reference.patients.tolist()
        return nearest(space, side.values, reference.values, names, inputs.folder / "neighbours", own)

    drawn, real = near(sides.generated, sides.train), near(sides.held_out, sides.train)
    control = near(sides.generated, sides.held_out)
    some = sides.train.taken(copies.chosen(len(sides.train.patients), _MOST_TRAIN, inputs.seed))
    others = near(some, sides.train, some.patients.tolist()).similarity
    each = one_of_each(sides.held_out.patients, inputs.seed)
    threshold = calibrate(real.similarity[each], inputs.rate)
    recalls = {
        name: Rate.of(near(copied, sides.train).similarity > threshold.value)
        for name, copied in _planted(inputs, seen, sides.train)
    }
    flagged = drawn.similarity > threshold.value
    z_u, c_t = _copying(space, sides, drawn, real)
    ratios = [_ratio(one) for one in (drawn, real)]
    units = space.views(sides.train.values)[0], space.views(sides.generated.values)[0]
    found = Similarity(
        extractor=seen.described.name,
        digest=seen.described.digest,
        threshold=threshold,
        recalls=recalls,
        flagged=Rate.of(flagged),
        share=estimate_share(Rate.of(flagged), threshold, list(recalls.values()), inputs.seed),
        exchange=_exchange(sides, drawn, control, np.ones(len(flagged), bool), inputs.seed),
        exchange_flagged=_exchange(
            sides, drawn, control, flagged | (control.similarity > threshold.value), inputs.seed
        ),
        z_u=z_u,
        c_t=c_t,
        authenticity=authenticity(*units) if len(units[0]) > 1 else float("nan"),
        percentiles=_percentiles({"generated": drawn.similarity, "held_out": real.similarity, "train": others}),
        ratio={name: float(np.nanmedian(each)) for name, each in zip(("generated", "held_out"), ratios, strict=True)},
        low_ratio=Rate.of(ratios[0] < np.nanquantile(ratios[1], inputs.rate)),
        places=np.flatnonzero(flagged).tolist(),
        pairs=_pairs(drawn),
    )
    return found, sides


def _features(inputs: Inputs, images: ImageSet, seen: Seen):
    folder = inputs.folder / "features"
    return extract(images, seen.described, inputs.size, folder, open_network=seen.open_network)


def _planted(inputs: Inputs, seen: Seen, train: Side):
    """Yields each kind of planted copies with their features."""
    count = min(inputs.planted, len(train.patients))
    sets = [(name, copies.planted(train.images, name, count, inputs.seed)) for name in copies.CHANGES]
    if inputs.reconstruct is not None:
        places = copies.chosen(len(train.patients), count, inputs.seed)
        originals = np.stack([train.images.items[int(place)].load(inputs.size) for place in places])
        made = inputs.reconstruct(originals)
        sets.append(("autoencoder", (copies.given(train.images, places.tolist(), made, "autoencoder"), places)))
    for name, (images, places) in sets:
        yield name, Side(images, _features(inputs, images, seen).values, train.patients[places])


def _exchange(sides: Sides, drawn: Nearest, control: Nearest, which: np.ndarray, seed: int) -> Exchange:
    return copying.exchange(
        drawn.similarity[which],
        control.similarity[which],
        drawn.place[which],
        control.place[which],
        sides.train.patients,
        sides.held_out.patients,
        seed,
    )


def _copying(space: Space, sides: Sides, drawn: Nearest, real: Nearest) -> tuple[float, float]:
    """Z_U and C_T, whose cells are those of the training images."""
    ours, theirs = 1 - drawn.similarity, 1 - real.similarity
    count = max(1, min(_CELLS, len(sides.held_out.patients) // _LEAST_OF_CELL))
    units = [space.views(side.values)[0] for side in sides]
    centres = copying.k_means(units[0][copies.chosen(len(units[0]), _MOST_TRAIN, 0)], count)
    cell, other = copying.cell_of(units[2], centres), copying.cell_of(units[1], centres)
    return copying.z_u(ours, theirs), copying.c_t(ours, theirs, cell, other, least=0.2 / count)


def _ratio(found: Nearest) -> np.ndarray:
    """d₁ / d₂; 1 where both are 0, as of images that two patients share."""
    first, second = np.maximum(1 - found.similarity, 0), np.maximum(1 - found.second, 0)
    return np.divide(first, second, out=np.ones_like(first), where=second > 0)


def _percentiles(similarities: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    known = {name: values[~np.isnan(values)] for name, values in similarities.items()}
    return {name: np.percentile(values, PERCENTILES).tolist() for name, values in known.items() if len(values)}


def _pairs(drawn: Nearest) -> list[tuple[int, int, float]]:
    order = np.argsort(-drawn.similarity, kind="stable")[:PAIRS]
    return [(int(place), int(drawn.place[place]), float(drawn.similarity[place])) for place in order]
