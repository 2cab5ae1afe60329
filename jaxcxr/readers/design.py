"""Which images readers see, for which task and in what order: functions of the sets and a seed."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from jaxcxr.errors import UserError
from jaxcxr.evaluation.sets import Item
from jaxcxr.readers.deck import Case, Deck, findings_of, name_of
from jaxcxr.readers.key import Truth
from jaxcxr.readers.tasks import ABSENT, PRESENT, REAL, SYNTHETIC, TASKS

_CODE = "BCDFGHJKLMNPQRSTVWXZ"  # letters that make no words


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides a study, besides its sets.

    Attributes:
      tasks: names of `TASKS`, in the order in which they are read.
      count: images of each class in each task; pairs, of the task `better`.
      repeats: items of each task that are shown twice.
      readers: how many.
      size: pixels of a side.
      fit: pad, images become square with black at their sides; crop, by their centre.
      jpeg: quality of the JPEG that every image becomes on its way; 0: none.
      seed: of all draws.
      title: of the page.
    """

    tasks: tuple[str, ...]
    count: int
    repeats: int
    readers: int
    size: int
    fit: str
    jpeg: int
    seed: int
    title: str

    def __post_init__(self) -> None:
        """Raises UserError for a task that does not exist or is named twice, and for a size that shows nothing."""
        if unknown := [name for name in self.tasks if name not in TASKS]:
            raise UserError(f"--tasks {unknown[0]!r:.60}: no such task; choose from {', '.join(TASKS)}")
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise UserError(f"--tasks {','.join(self.tasks)!r:.60}: name each once, of {', '.join(TASKS)}")
        if not 16 <= self.size <= 8192:
            raise UserError(f"--size {self.size}: may be from 16 to 8192 pixels")


@dataclasses.dataclass(frozen=True)
class Planned:
    """An item: what the key says of it, and the text that is shown with it."""

    truth: Truth
    text: str = ""

    def shown(self) -> dict[str, object]:
        """What the page has of it."""
        words = {"text": self.text, "finding": self.truth.finding}
        about = {name: value for name, value in words.items() if value}
        return {"task": self.truth.task, "images": list(self.truth.images), **about}


def plan(decks: Sequence[Deck], sets: Mapping[str, str], settings: Settings) -> dict[str, Planned]:
    """The items of a study by id, in the order of their ids, which says nothing of their classes.

    Args:
      decks: the images of each set.
      sets: real or synthetic, by the name of a set.
      settings: of the study.

    Raises:
      UserError: a task needs another set, more images, or has too few items for its repeats.
    """
    found: dict[str, Planned] = {}
    for task in settings.tasks:
        draw = np.random.default_rng((settings.seed, list(TASKS).index(task)))
        if task == "better":
            items = list(_pairs(decks, sets, settings.count, draw))
        elif task == "finding":
            items = list(_findings(decks, _shares(decks, sets, settings.count), draw))
        else:
            items = list(_singles(task, decks, sets, _shares(decks, sets, settings.count)))
        own = _named(items, settings.seed)
        found |= own | _repeated(task, own, settings)
    return dict(sorted(found.items()))


def orders(items: Mapping[str, Planned], settings: Settings) -> dict[str, list[str]]:
    """The order of the items for each reader, by the reader's code: task by task, each task in an order of its own.

    An item and its repeat are at least a third of the task apart. More readers leave the codes and orders of the others
    as they are.
    """
    found: dict[str, list[str]] = {}
    for number in range(settings.readers):
        draw = np.random.default_rng((settings.seed, len(TASKS), number))
        code = ""
        while not code or code in found:
            code = "".join(draw.choice(list(_CODE), 4))
        of_task = [[name for name, item in items.items() if item.truth.task == task] for task in settings.tasks]
        found[code] = [name for names in of_task for name in _order(names, items, draw)]
    return found


def _order(names: Sequence[str], items: Mapping[str, Planned], draw: np.random.Generator) -> Iterator[str]:
    """Names of items in a random order: those that are repeated in its first third, their repeats in its last."""
    shuffled = [names[place] for place in draw.permutation(len(names))]
    repeats = [name for name in shuffled if items[name].truth.repeat_of]
    originals = {items[name].truth.repeat_of for name in repeats}
    firsts = [name for name in shuffled if name in originals]
    third, last = len(names) // 3, len(names) - len(names) // 3
    slots: dict[int, str] = dict(zip(draw.permutation(third), firsts, strict=False))
    slots |= dict(zip(last + draw.permutation(third), repeats, strict=False))
    others = iter([name for name in shuffled if name not in originals and not items[name].truth.repeat_of])
    for place in range(len(names)):
        yield slots[place] if place in slots else next(others)


def _shares(decks: Iterable[Deck], sets: Mapping[str, str], count: int) -> list[tuple[Deck, int]]:
    """How many images of each set make so many of each class, the sets of a class in equal parts."""
    found = []
    for kind in (REAL, SYNTHETIC):
        of_kind = [deck for deck in decks if sets[deck.name] == kind]
        for number, deck in enumerate(of_kind):
            found.append((deck, count // len(of_kind) + (number < count % len(of_kind))))
    return found


def _truth(task: str, *cases: Case, expected: str = "", finding: str = "") -> Truth:
    sets, images = tuple(case.set for case in cases), tuple(case.name for case in cases)
    return Truth(task, sets, tuple(case.item.stamp for case in cases), images, expected, finding)


def _singles(
    task: str, decks: Iterable[Deck], sets: Mapping[str, str], shares: Iterable[tuple[Deck, int]]
) -> Iterator[Planned]:
    """Items of one image, of a task that has no question of its own for each."""
    if task == "real" and REAL not in sets.values():
        raise UserError("--real: the task 'real' needs real images; give them, or leave out the task")
    text = TASKS[task].text
    for deck, count in shares:
        for case in deck.deal(count, task, set(), lambda item: not text or bool(item.text.strip())):
            expected = sets[deck.name] if task == "real" else ""
            yield Planned(_truth(task, case, expected=expected), case.item.text.strip() if text else "")


def _findings(
    decks: Sequence[Deck], shares: Iterable[tuple[Deck, int]], draw: np.random.Generator
) -> Iterator[Planned]:
    """Of each set as many images that are asked for a finding that they have as for one of a kind that they lack."""
    kinds = {name: kind for deck in decks for name, kind in sorted(deck.findings.items())}

    def absent(item: Item) -> list[str]:
        own = set(findings_of(item).values())
        return sorted(name for name in kinds if kinds[name] not in own)

    for deck, count in shares:
        taken: set[str] = set()
        for case in deck.deal((count + 1) // 2, "finding", taken, lambda item: bool(findings_of(item))):
            finding = str(draw.choice(sorted(findings_of(case.item))))
            yield Planned(_truth("finding", case, expected=PRESENT, finding=finding))
        known = deck.deal(
            count // 2, "finding", taken, lambda item: bool(item.groups.get("label")) and bool(absent(item))
        )
        for case in known:
            yield Planned(_truth("finding", case, expected=ABSENT, finding=str(draw.choice(absent(case.item)))))


def _pairs(decks: Sequence[Deck], sets: Mapping[str, str], count: int, draw: np.random.Generator) -> Iterator[Planned]:
    """Pairs of generated sets, or of the real set and a generated one alone, on sides at random.

    Where two sets share enough texts both images of a pair are of one, which is shown.
    """
    synthetic = [deck for deck in decks if sets[deck.name] == SYNTHETIC]
    of = list(itertools.combinations(synthetic if len(synthetic) > 1 else decks, 2))
    if not of:
        raise UserError("--tasks better: needs two sets; give real images or two folders of generated ones")
    for number, (first, second) in enumerate(of):
        wanted = count // len(of) + (number < count % len(of))
        shared = sorted(first.texts.keys() & second.texts.keys())
        if len(shared) >= wanted:
            texts = [shared[place] for place in draw.permutation(len(shared))[:wanted]]
            pairs = [(first.pick(text, "better"), second.pick(text, "better")) for text in texts]
        else:
            texts = [""] * wanted
            pairs = list(zip(*(deck.deal(wanted, "better", set()) for deck in (first, second)), strict=True))
        for text, pair, turned in zip(texts, pairs, draw.random(len(pairs)) < 0.5, strict=True):
            yield Planned(_truth("better", *(pair[::-1] if turned else pair)), text)


def _named(items: Iterable[Planned], seed: int, again: str = "") -> dict[str, Planned]:
    """The items by ids, which depend on what is shown alone."""
    found: dict[str, Planned] = {}
    seen: collections.Counter[tuple] = collections.Counter()
    for item in items:
        what = (item.truth.task, item.truth.images, item.truth.finding)
        found[name_of(repr((*what, seen[what], again)).encode(), seed)] = item
        seen[what] += 1  # equal images in one task are items of their own
    return found


def _repeated(task: str, items: Mapping[str, Planned], settings: Settings) -> dict[str, Planned]:
    """Some items once more, as many of each set as can be; of a pair the sides are exchanged."""
    if 3 * settings.repeats > len(items) + settings.repeats:
        raise UserError(
            f"--repeats {settings.repeats}: are too many for the {len(items)} items of the task {task!r}, of which"
            f" {len(items) // 2} may be repeated; lower --repeats or raise --count"
        )
    groups: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
    for name in sorted(items):  # ids are random
        groups[tuple(sorted(items[name].truth.sets))].append(name)
    turns = [name for turn in itertools.zip_longest(*groups.values()) for name in turn if name]
    found: dict[str, Planned] = {}
    for name in turns[: settings.repeats]:
        truth = items[name].truth
        sides = {key: getattr(truth, key)[::-1] for key in ("sets", "sources", "images")}
        again = dataclasses.replace(items[name], truth=dataclasses.replace(truth, **sides, repeat_of=name))
        found |= _named([again], settings.seed, again=name)
    return found
