"""Which records a stream draws, and how often: several folders by weight, rare labels more often."""

import bisect
import functools
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from jaxcxr import parsing
from jaxcxr.data.summary import LABELS, Count, Summary
from jaxcxr.errors import UserError


class Part(NamedTuple):
    """Records that are drawn from together, each once an epoch."""

    places: Sequence[int] | np.ndarray
    weight: float  # beside the other parts'


class Order:
    """The places to read, in an endless order that depends on the arguments alone, by any index into it.

    Parts take turns by their weights, exactly so over any longer stretch. Every epoch of a part is another
    permutation; with `shuffle=False` it is the part's own order.
    """

    def __init__(self, parts: Sequence[Part], seed: int, shuffle: bool):
        self._parts, self._seed = [(np.asarray(part.places), part.weight) for part in parts], seed
        # The raw bits, since NumPy promises those alone to stay what they are in later versions.
        self._permutation = functools.lru_cache(2 * len(parts))(self._draw if shuffle else self._straight)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """The places at these indices, (n,) integers."""
        indices, places = np.asarray(indices, np.int64), np.zeros(len(indices), np.int64)
        left, weight = np.arange(len(indices)), sum(weight for _, weight in self._parts)
        for number in reversed(range(len(self._parts))):
            share = self._parts[number][1] / weight if number else 1.0  # all that is left, whatever the rounding
            # Of the first n draws that are left, floor(n · share) are this part's.
            before = np.floor(indices * share).astype(np.int64)
            mine = np.floor((indices + 1) * share).astype(np.int64) > before
            places[left[mine]] = self._read(number, before[mine])
            indices, left, weight = (indices - before)[~mine], left[~mine], weight - self._parts[number][1]
        return places

    def _read(self, number: int, indices: np.ndarray) -> np.ndarray:
        members = self._parts[number][0]
        epochs, within = np.divmod(indices, len(members))
        places = np.zeros(len(indices), np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            places[here] = members[self._permutation(number, int(epoch))[within[here]]]
        return places

    def _draw(self, number: int, epoch: int) -> np.ndarray:
        count = len(self._parts[number][0])
        bits = np.random.PCG64((self._seed, number, epoch)).random_raw(count)
        # Sorted with the places in their low bits: many times faster than argsort, and no two are equal, so that
        # every algorithm of sorting gives the same.
        low = np.uint64((1 << count.bit_length()) - 1)
        return (np.sort(bits & ~low | np.arange(count, dtype=np.uint64)) & low).astype(np.int64)

    def _straight(self, number: int, epoch: int) -> np.ndarray:
        return np.arange(len(self._parts[number][0]))


def by_rarest_label(folder: Path, split: str, strength: float) -> list[Part]:
    """Parts the records of a prepared folder by the rarest of their labels.

    Args:
      folder: the prepared folder.
      split: one of its splits.
      strength: 0 draws the records as often as one another, 1 the labels; between them a label of n records is drawn
        in proportion to n ** (1 - strength).

    Raises:
      UserError: the strength is not from 0 to 1, or the folder lists no labels.
    """
    if not 0 <= strength <= 1:
        raise UserError(f"config.data.rebalance={strength}: give a number from 0 to 1")
    file, remedy = folder / LABELS, "no labels to rebalance by: prepare again"
    if not file.is_file():
        raise UserError(f"{file}: {remedy}")
    kind = dict[str, dict[str, list[Count]]]
    listed: dict[str, dict[str, list[int]]] = parsing.read_json(file, kind, remedy=remedy)
    places = listed.get(split)
    if places is None:
        raise UserError(f"{file}: {remedy}")
    if max(map(max, filter(None, places.values())), default=0) >= Summary.require(folder).splits.get(split, 0):
        raise UserError(f"{file}: names records that are not in the folder; {remedy}")
    parts, taken = [], set[int]()
    for label in sorted(places, key=lambda label: (len(places[label]), label)):
        members = [place for place in places[label] if place not in taken]
        taken.update(members)
        if members:
            parts.append(Part(np.array(members), len(members) ** (1 - strength)))
    return parts


def weighted(parts: Iterable[Part], weight: float, offset: int) -> list[Part]:
    """The parts, `weight` together, their places moved by `offset`."""
    parts = list(parts)
    total = sum(part.weight for part in parts)
    return [Part(np.asarray(part.places) + offset, weight * part.weight / total) for part in parts]


class Joined(Sequence[Any]):
    """Several sequences of records as one."""

    def __init__(self, sources: Sequence[Sequence[Any]]):
        self._sources = sources
        self.starts = [0, *itertools.accumulate(map(len, sources))]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, place: SupportsIndex) -> Any:  # type: ignore[override]
        owner = bisect.bisect_right(self.starts, place.__index__()) - 1
        return self._sources[owner][place.__index__() - self.starts[owner]]
