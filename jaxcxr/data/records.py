"""What a prepared record is, and how an image that a source lists becomes one."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxcxr.data import images, prompts, tokens
from jaxcxr.data.settings import Settings
from jaxcxr.errors import UserError

SPLITS = ("train", "validate", "test")
# Fields of a record with any number of texts; older ones lack the last two.
LISTS = ("prompts", "labels", "uncertain", "person")
PERSON = ("sex", "age", "race")
"""What a source may know of a patient; a record's `person` has them as `sex=female`."""
FIELDS = ("image", "id", "patient", "view", *LISTS)
# By the field of a prompt that a row lacks, where the reason for leaving it out is not `no FIELD`.
_ABSENT = dict.fromkeys(("report", "impression", "findings"), "no usable section")
# One line of a bounded length; ids of the sources whose ids have no form of their own.
ANY_ID = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,512}"
# Of a view or a label: those of MeSH and PadChest have up to six words. No stop nor colon before a space: a report has
# these.
_NAME = re.compile(r"(?=.{1,64}$)([\w,()/&'+–-]|[.:](?=\w))+( ([\w,()/&'+–-]|[.:](?=\w))+){0,5}")


class Rejected(Exception):
    """A row that cannot become a record: `reason` is a short key; `detail` never holds report text or ids."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class NotSelected(Exception):
    """A sound row that the settings leave out, or that lacks what they ask for; the message is the reason's key."""


class Where(NamedTuple):
    """The place of a row, by which its owner finds it again; it tells nothing to anybody else."""

    table: str  # relative to the source; or a folder
    row: int  # its line, the first being 1; of a folder, its place among the names in order


class EmptySplit(UserError):
    """A folder of data has no record in a split."""


class Candidate(NamedTuple):
    """A listed image that has passed selection: what the source's tables say of it."""

    id: str
    split: str
    patient: str
    study: str
    view: str
    labels: tuple[str, ...]
    image: str  # its path
    known: Mapping[str, str]  # values for prompts; empty where unknown
    where: Where = Where("", 0)
    uncertain: tuple[str, ...] = ()  # labels that may be there or not, as the tables say

    def check_words(self) -> None:
        """Raises Rejected if view or labels, which summaries count by name, are no names: text of a shifted row."""
        if self.view and not _NAME.fullmatch(self.view):
            raise Rejected("view_is_no_name")
        if not all(_NAME.fullmatch(label) for label in (*self.labels, *self.uncertain)):
            raise Rejected("label_is_no_name")


def check_ids(form: str, *ids: str) -> None:
    """Raises Rejected if an id is not of the form, a regular expression: a shifted row has other values there."""
    if not all(re.fullmatch(form, each, re.ASCII) for each in ids):
        raise Rejected("id_of_another_form")


def joined_below(root: Path, relative: str) -> Path:
    """Joins a path that a table states to its root; raises Rejected if it leads out of the root.

    The check is on the words of the path: links inside a tree, as data stores use them, may lead anywhere.
    """
    normal = os.path.normpath(relative)
    if not relative or "\0" in relative or os.path.isabs(relative) or normal.split(os.sep)[0] == os.pardir:
        raise Rejected("path_outside_tree")
    return root / normal


def check_patients(pairs: Iterable[tuple[str, str]], table: Path) -> None:
    """Raises UserError if (patient, split) pairs put a patient into two splits, which leaks test images."""
    splits: dict[str, set[str]] = {}
    for patient, split in pairs:
        splits.setdefault(patient, set()).add(split)
    crossing = sum(len(found) > 1 for found in splits.values())
    if crossing:
        raise UserError(f"{table}: {crossing} patients are in more than one split: put each patient into one split")


class Made(NamedTuple):
    """A record, by the fields of `features`, and what the ledger wants to know of it."""

    record: dict[str, Any]
    known: tuple[str, ...]  # the fields that were known for its prompts
    pixels: str  # a digest


def features(size: int, channels: int) -> Any:
    """Returns the TFDS features of a record: a (size, size, channels) uint8 image, prompts, and where it comes from."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(size, size, channels), encoding_format="png"),
            "prompts": tfds.features.Sequence(tfds.features.Text()),
            "id": tfds.features.Text(),
            "patient": tfds.features.Text(),
            "view": tfds.features.Text(),
            "labels": tfds.features.Sequence(tfds.features.Text()),
            "uncertain": tfds.features.Sequence(tfds.features.Text()),
            "person": tfds.features.Sequence(tfds.features.Text()),
        }
    )


def make_record(
    candidate: Candidate,
    fields: Mapping[str, str],
    settings: Settings,
    picture: Callable[[Candidate], Path | Image.Image],
    tokenizer: Any = None,
) -> Made:
    """Makes a record of a candidate, the values that its source gives for prompts, and its picture.

    Raises:
      Rejected: the image is missing, damaged or too large, or a text is too long.
      NotSelected: no prompt can be made of what is known, or every one has too few words, or too few or too many
        tokens.
    """
    if any(len(value) > settings.max_report_bytes for value in fields.values()):
        raise Rejected("report_too_long")
    texts = _prompts(fields, settings, tokenizer)
    image = images.encode_png(_read_image(candidate, picture, settings))
    record = {
        "image": image,
        "prompts": texts,
        "id": candidate.id,
        "patient": candidate.patient,
        "view": candidate.view,
        "labels": list(candidate.labels),
        "uncertain": list(candidate.uncertain),
        "person": [f"{key}={fields[key]}" for key in PERSON if fields.get(key)],
    }
    known = tuple(name for name, value in fields.items() if value)
    return Made(record, known, hashlib.blake2b(image, digest_size=12).hexdigest())


def _prompts(fields: Mapping[str, str], settings: Settings, tokenizer: Any) -> list[str]:
    filled, absent = prompts.fill(settings.prompts, fields)
    if not filled:
        raise NotSelected(_ABSENT.get(absent, f"no {absent}"))
    texts = [text for text in filled if len(text.split()) >= settings.min_words]
    if not texts:
        raise NotSelected("too few words")
    if tokenizer is not None:
        least, most = settings.tokens
        counts = [tokens.count(tokenizer, text) for text in texts]
        texts = [text for text, n in zip(texts, counts, strict=True) if least <= n <= (most or n)]
        if not texts:
            raise NotSelected("too few tokens" if max(counts) < least else "too many tokens")
    return texts


def _read_image(
    candidate: Candidate, picture: Callable[[Candidate], Path | Image.Image], settings: Settings
) -> np.ndarray:
    try:
        found = picture(candidate)
        if isinstance(found, Path) and found.stat().st_size == 0:
            raise Rejected("empty_image")
        return images.load_square(found, settings.size, settings.intensity, settings.max_pixels, settings.channels)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Rejected("missing_image") from error
    except images.UnreadableImage as error:
        raise Rejected(error.reason, str(error)) from error
    except OSError as error:
        raise Rejected("unreadable_image", error.strerror or type(error).__name__) from error
