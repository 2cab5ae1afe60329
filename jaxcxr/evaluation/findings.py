"""Whether pictures show what was asked for: what a classifier of phantoms sees in them, counted."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.pictures import Picture
from jaxcxr.phantoms.classifier import Classifier, Seen, see
from jaxcxr.phantoms.generator import KINDS
from jaxcxr.phantoms.scores import Rate, Score, score, score_grades
from jaxcxr.phantoms.truth import CLASSES, grades, kind_of, present


@dataclass(frozen=True)
class Report:
    """What was asked for and what is seen, of N pictures.

    `asked` and `seen` are bool (N, 16) in the order of `CLASSES`. `about`, bool (N, 16), has the classes that decide
    whether a picture is right: those of the kinds that were asked for or denied. A class that a prompt does not name is
    not asked for, as the impression of a phantom's report names every finding.
    """

    asked: np.ndarray
    seen: np.ndarray
    about: np.ndarray
    classes: Mapping[str, Score]
    grades: Mapping[str, Rate]

    @property
    def right(self) -> np.ndarray:
        """Which pictures show what was asked for, bool (N,)."""
        return ((self.asked == self.seen) | ~self.about).all(axis=1)

    @property
    def rate(self) -> Rate:
        """How many pictures show what was asked for."""
        return Rate.of(self.right)

    def as_dict(self) -> dict[str, Any]:
        """The counts as JSON values."""
        return {
            "shows_what_was_asked": self.rate.as_dict(),
            "findings": {name: one.as_dict() for name, one in self.classes.items()},
            "grades": {kind: rate.as_dict() for kind, rate in self.grades.items()},
        }


def report(pictures: Sequence[Picture], classifier: Classifier, kinds: Collection[str] = ()) -> Report:
    """Counts what the classifier sees in pictures whose `asked` is known.

    A picture is right if it shows what was asked for of the kinds that it was asked about, or of `kinds` if given.

    Raises:
      UserError: the pictures are too small for the classifier.
    """
    known = [picture.asked for picture in pictures if picture.asked]
    seen: Seen = see(classifier, np.stack([picture.pixels for picture in pictures if picture.asked]))
    asked = np.stack([present(one.findings) for one in known])
    about = np.array([[kind_of(name) in (kinds or one.kinds or KINDS) for name in CLASSES] for one in known])
    graded = score_grades(np.stack([grades(one.findings) for one in known]), seen.grades)
    return Report(asked, seen.present, about, score(asked, seen.present), graded)


def as_rows(name: str, shown: Report, ceiling: Report, seen_by: str) -> list[Row]:
    """The rates of a generated set, with those of real phantoms for floors.

    Args:
      name: the set's.
      shown: what it was asked for and shows.
      ceiling: the same of phantoms.
      seen_by: the classifier's name.
    """

    def row(metric: str, group: str, rate: Rate, floor: Rate) -> Row:
        ours, theirs = ((one.share if one.total else None, *one.interval) for one in (rate, floor))
        return Row(name, metric, f"phantom-classifier/{seen_by}", group, *ours, *theirs, rate.total)

    rows = [row("shows_what_was_asked", "", shown.rate, ceiling.rate)]
    for finding, one in shown.classes.items():
        other = ceiling.classes[finding]
        rows.append(row("sensitivity", f"finding={finding}", one.sensitivity, other.sensitivity))
        rows.append(row("specificity", f"finding={finding}", one.specificity, other.specificity))
    return rows + [row("grade", f"finding={kind}", rate, ceiling.grades[kind]) for kind, rate in shown.grades.items()]


def in_words(classes: np.ndarray, about: np.ndarray) -> str:
    """Classes, bool (16,), in words; where there are none, the kinds that it is `about`, bool (16,), denied."""
    names = [name for name, there in zip(CLASSES, classes, strict=True) if there]
    if names[:2] == ["right effusion", "left effusion"]:
        names[:2] = ["bilateral effusion"]
    kinds = dict.fromkeys(kind_of(name) for name, there in zip(CLASSES, about, strict=True) if there)
    return ", ".join(names) or f"no {' or '.join(kinds) if len(kinds) < 3 else 'finding'}"


def kinds_asked(pictures: Sequence[Picture]) -> set[str]:
    """The kinds of finding that pictures were asked to show or not to show."""
    return {kind for picture in pictures if picture.asked for kind in picture.asked.kinds}
