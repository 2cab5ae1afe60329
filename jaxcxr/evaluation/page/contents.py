"""What the page is made of."""

import dataclasses
from collections.abc import Mapping, Sequence

from jaxcxr.evaluation.comparison import Row
from jaxcxr.evaluation.curves import Run
from jaxcxr.evaluation.findings import Report
from jaxcxr.evaluation.pictures import Picture
from jaxcxr.phantoms.classifier import Classifier
from jaxcxr.phantoms.scores import Rate

PHANTOMS = "phantoms"
"""The `real_name` of drawn radiographs, which are of no patient."""


@dataclasses.dataclass(frozen=True)
class Classified:
    """What a classifier sees in the generated and in the real images, and the size at which it reads them."""

    classifier: Classifier
    size: int
    generated: Report
    real: Report

    def worst(self) -> tuple[Rate, str]:
        """The classifier's lowest sensitivity or specificity in its own table, and what it is of."""
        classes = self.classifier.about.tables[str(self.size)].classes
        rates = [(one.sensitivity, f"sensitivity to {name}") for name, one in classes.items()]
        rates += [(one.specificity, f"specificity of {name}") for name, one in classes.items()]
        return min((pair for pair in rates if pair[0].total), key=lambda pair: pair[0].share)


@dataclasses.dataclass(frozen=True)
class Page:
    """Everything that the page shows; what is not here cannot get onto it.

    Attributes:
      title: of the page.
      generated: images by the name of their set.
      real: real images, or phantoms, to show beside them; none where they may not be shown.
      real_name: what these are called, in the plural.
      rows: the numbers.
      left_out: why others are not there, a line each.
      counts: images by set: `images` that were compared, and those that were not by why.
      classified: by set, what a classifier saw in each of its images, in their order; nothing is said of findings in a
        set that is not here.
      runs: whose curves are shown.
      settings: texts by title, for the end of the page.
      reconstructions: whether sheets that hold images of the data set may be shown.
      shown: generated images shown, in equal parts of the sets and of everything that was asked for.
      neighbours: generated images, each with the real one that is nearest to it, and their distance.
    """

    title: str
    generated: Mapping[str, Sequence[Picture]]
    real: Sequence[Picture]
    real_name: str
    rows: Sequence[Row]
    left_out: Sequence[str]
    counts: Mapping[str, Mapping[str, int]]
    classified: Mapping[str, Classified]
    runs: Sequence[Run]
    settings: Mapping[str, str]
    reconstructions: bool = False
    shown: int = 48
    neighbours: Sequence[tuple[Picture, Picture, float]] = ()

    @property
    def of_patients(self) -> bool:
        """Whether any image on the page is a real patient's."""
        sheets = self.reconstructions and any(run.sheet and run.reconstructs for run in self.runs)
        return self.real_name != PHANTOMS and bool(self.real or self.neighbours or sheets)

    def report(self, name: str) -> Report | None:
        """What a classifier saw in the images of a set; None if it has not seen them."""
        return self.classified[name].generated if name in self.classified else None
