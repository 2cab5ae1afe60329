"""How well images fit their texts, by extractors that embed both; real images and their reports are the floor."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxcxr.evaluation.bootstrap import bootstrap
from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.extractors import Chosen
from jaxcxr.evaluation.metrics.retrieval import clip_scores, cosines, retrieval
from jaxcxr.evaluation.sets import Item
from jaxcxr.evaluation.settings import ALIGNMENT, CLIP_SCORE, RETRIEVAL

_RECALLS = (1, 5, 10)
_Interval = tuple[float | None, float | None, float | None]


class WithTexts:
    """The images of a set that have a text, with the features of both."""

    def __init__(self, items: Sequence[Item], features: np.ndarray, chosen: Chosen):
        rows = [place for place, item in enumerate(items) if item.text]
        self.items, self.images, self._chosen = [items[row] for row in rows], features[rows], chosen

    def __len__(self) -> int:
        return len(self.items)

    def texts(self, rows: np.ndarray) -> np.ndarray:
        """Features of the texts of some images, (len(rows), D)."""
        assert self._chosen.extractor.text is not None
        unique = list(dict.fromkeys(self.items[row].text for row in rows))
        found = dict(zip(unique, self._chosen.extractor.text(self._chosen.file, unique), strict=True))
        return np.stack([found[self.items[row].text] for row in rows])

    def values(self, metrics: Sequence[str], rows: np.ndarray) -> dict[str, tuple[np.ndarray, Callable[..., Any]]]:
        """By name: a value for each image or text, and what makes a number of them."""
        images, texts = self.images[rows], self.texts(rows)
        found: dict[str, tuple[np.ndarray, Callable[..., Any]]] = {}
        for name, of in ((CLIP_SCORE, clip_scores), (ALIGNMENT, cosines)):
            if name in metrics:
                found[name] = of(images, texts), np.mean
        if RETRIEVAL in metrics:
            items = [self.items[row] for row in rows]
            labels = [frozenset(item.groups.get("label", ())) for item in items]
            ranks = retrieval(images, texts, [item.text for item in items], labels if any(labels) else None)
            for way, one in vars(ranks).items():
                if one is not None:
                    found |= {f"recall_at_{k}/{way}": (one.ranks <= k, np.mean) for k in _RECALLS}
                    found[f"median_rank/{way}"] = one.ranks, np.median
        return found


def compare_texts(
    real: WithTexts, generated: WithTexts, metrics: Sequence[str], of: str, extractor: str, seed: int
) -> Iterator[Row]:
    """Yields the metrics of generated images and their prompts.

    The floor is that of as many real images and reports, so that galleries are of one size. Intervals are bootstraps
    by prompt, or by patient of real images, of the values of each image; those of ranks leave the gallery as it is.

    Args:
      real: real images with texts; none gives no floor.
      generated: images with the texts that they were drawn from.
      metrics: of `settings.OF_TEXTS`.
      of: the set's name, for the rows.
      extractor: the features' name, for the rows.
      seed: of what is drawn.
    """
    draw = np.random.default_rng(seed)
    n = min(len(generated), len(real)) if len(real) > 1 else len(generated)
    places = [np.sort(draw.permutation(len(one))[:n]) for one in (generated, real)]
    ours = generated.values(metrics, places[0])
    floors = real.values(metrics, places[1]) if len(real) > 1 else {}
    for name, value in ours.items():
        drawn_as = [generated.items[place].text for place in places[0]]
        number = _summary(*value, drawn_as, seed)
        patients = [real.items[place].patient for place in places[1]]
        floor: _Interval = _summary(*floors[name], patients, seed) if name in floors else (None, None, None)
        yield Row(of, name, extractor, "", *number, *floor, n)


def _summary(values: np.ndarray, statistic: Callable[..., Any], units: Sequence[str], seed: int) -> _Interval:
    # Ranks of texts are fewer than images; a text is drawn by itself then.
    drawn = units if len(values) == len(units) else [str(number) for number in range(len(values))]
    low, high = bootstrap(np.asarray(values, np.float64), np.array(drawn), statistic, seed=seed)
    return float(statistic(values)), float(low), float(high)
