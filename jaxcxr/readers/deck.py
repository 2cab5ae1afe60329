"""The images of a set, dealt to the tasks of a study in a random order."""

import dataclasses
import functools
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from jaxcxr.data.images import UnreadableImage
from jaxcxr.errors import UserError
from jaxcxr.evaluation.sets import ImageSet, Item
from jaxcxr.phantoms.truth import classes_of, kind_of

_NO_FINDING = "no finding"
_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")


def name_of(data: bytes, seed: int) -> str:
    """A name of 16 letters, a digest under a seed; without digits, as spreadsheets take some names for numbers."""
    digest = hashlib.blake2b(data, digest_size=8, key=seed.to_bytes(8, "big"))
    return digest.hexdigest().translate(_LETTERS)


def findings_of(item: Item) -> dict[str, str]:
    """The findings that an image was asked, or is labelled, to show, each with its kind; empty if it is healthy."""
    if item.asked is not None:
        return {name: kind_of(name) for finding in item.asked.findings for name in classes_of(finding)}
    return {name: name for name in item.groups.get("label", ()) if name.lower() != _NO_FINDING}


@dataclasses.dataclass(frozen=True)
class Case:
    """An image of a set, as readers get it: `png` is its file, `name` that file's name."""

    set: str
    item: Item
    name: str
    png: bytes


class Deck:
    """The images of a set in a random order; where they end, the first are dealt again.

    Args:
      images: the set.
      name: of the set, in the key.
      seed: of the order and of the images' names.
      file: makes the file of an image; raises UnreadableImage or FileNotFoundError.
    """

    def __init__(self, images: ImageSet, name: str, seed: int, file: Callable[[Item], bytes]):
        self.name, self._images, self._seed, self._file = name, images.items, seed, file
        # Of the name, so that sets of one size are not drawn alike; not of places or dates, so that copies are.
        own = list(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())
        self._order = [int(place) for place in np.random.default_rng((seed, *own)).permutation(len(images.items))]
        self._next = 0
        self._read: dict[int, Case | None] = {}

    @property
    def cases(self) -> list[Case]:
        """The images that were dealt, each once."""
        return [case for case in self._read.values() if case]

    @property
    def unreadable(self) -> int:
        """How many that were to be dealt cannot be read."""
        return sum(case is None for case in self._read.values())

    @functools.cached_property
    def texts(self) -> Mapping[str, Sequence[int]]:
        """Where the images of each text are."""
        found = defaultdict(list)
        for place in self._order:
            if text := self._images[place].text.strip():
                found[text].append(place)
        return found

    @functools.cached_property
    def findings(self) -> dict[str, str]:
        """Every finding that an image of the set has, with its kind."""
        return {name: kind for item in self._images for name, kind in findings_of(item).items()}

    def deal(
        self, count: int, task: str, taken: set[str], wanted: Callable[[Item], bool] = lambda item: True
    ) -> list[Case]:
        """The next images that are wanted, one of a patient.

        Args:
          count: how many.
          task: for the message.
          taken: patients who have an image in the task already; those of the images that are dealt are added.
          wanted: which images.

        Raises:
          UserError: there are fewer.
        """
        found: list[Case] = []
        begin, total = self._next, len(self._order)
        for turn in range(begin, begin + total):
            if len(found) == count:
                break
            if case := self._take(self._order[turn % total], taken, wanted):
                found.append(case)
                self._next = (turn + 1) % total
        if len(found) < count:
            raise UserError(
                f"{self.name}: {len(found)} of {count} images for the task {task!r} are there, one of a patient; lower"
                " --count, leave out the task, or give more images"
            )
        return found

    def pick(self, text: str, task: str) -> Case:
        """An image of this text; raises UserError where none can be read."""
        cases: Iterator[Case | None] = (self._take(place, set(), lambda item: True) for place in self.texts[text])
        case = next((case for case in cases if case), None)
        if case is None:
            raise UserError(f"{self.name}: images for the task {task!r} cannot be read; lower --count")
        return case

    def _take(self, place: int, taken: set[str], wanted: Callable[[Item], bool]) -> Case | None:
        item = self._images[place]
        if item.patient in taken or not wanted(item):
            return None
        if place not in self._read:
            self._read[place] = self._case(item)
        if self._read[place]:
            taken.add(item.patient)
        return self._read[place]

    def _case(self, item: Item) -> Case | None:
        try:
            png = self._file(item)
        except (FileNotFoundError, UnreadableImage):
            return None
        return Case(self.name, item, name_of(png, self._seed), png)
