"""What readers are asked, a line a task; the page and the scores are made of this table."""

import dataclasses
from collections.abc import Mapping

from jaxcxr.readers.statistics import Level

REAL, SYNTHETIC = "real", "synthetic"
"""The classes of images."""
PRESENT, ABSENT = "present", "absent"
"""Whether an image was asked, or is labelled, to show the finding that a reader is asked for."""
LEFT, RIGHT = "left", "right"
CONFIDENCE = range(1, 6)
"""1 is a guess, 5 is certain."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """An answer: as it is in the CSV, what it says, and the key that gives it."""

    value: str
    label: str
    key: str


@dataclasses.dataclass(frozen=True)
class Task:
    """A question about an image, or a pair of them.

    Attributes:
      title: of the part of the reading.
      question: what is asked; `{finding}` stands for a finding.
      choices: the answers, in order.
      level: of the answers: nominal, or ordinal where they are numbers.
      images: shown at once, 1 or 2.
      confidence: whether a confidence is asked for too.
      text: whether the image's text is shown.
      yes: of two answers with a confidence, the positive one.
    """

    title: str
    question: str
    choices: tuple[Choice, ...]
    level: Level = "nominal"
    images: int = 1
    confidence: bool = False
    text: bool = False
    yes: str = ""

    @property
    def scale(self) -> bool:
        """Whether the answers are numbers."""
        return self.level == "ordinal"

    @property
    def numbers(self) -> dict[str, float]:
        """The answers as numbers: those of a scale are what they say."""
        values = [choice.value for choice in self.choices]
        return {value: float(value) if self.scale else float(place) for place, value in enumerate(values)}


def _scale(first: int, *labels: str) -> tuple[Choice, ...]:
    return tuple(Choice(str(first + place), label, str(1 + place)) for place, label in enumerate(labels))


TASKS: Mapping[str, Task] = {
    "real": Task(
        title="Real or synthetic",
        question="Is this a radiograph of a patient, or a synthetic image?",
        choices=(Choice(REAL, "Real", "f"), Choice(SYNTHETIC, "Synthetic", "j")),
        confidence=True,
        yes=SYNTHETIC,
    ),
    "realism": Task(
        title="Realism",
        question="How realistic is this image?",
        choices=_scale(1, "Not at all", "Slightly", "Moderately", "Very", "As a radiograph of a patient"),
        level="ordinal",
    ),
    # The scale of ChexGen's study.
    "match": Task(
        title="Image and text",
        question="How well does the image match the text?",
        choices=_scale(-2, "Mismatch", "A key finding is missing", "Details are missing", "Good", "Perfect"),
        level="ordinal",
        text=True,
    ),
    "finding": Task(
        title="Findings",
        question="Does the image show this finding: {finding}?",
        choices=(Choice(ABSENT, "Absent", "f"), Choice(PRESENT, "Present", "j")),
        confidence=True,
        yes=PRESENT,
    ),
    "better": Task(
        title="Which is better",
        question="Which of the two is the better chest radiograph?",
        choices=(Choice(LEFT, "Left", "f"), Choice(RIGHT, "Right", "j")),
        images=2,
        text=True,
    ),
}
