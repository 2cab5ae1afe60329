"""What a prepared record is, and the account of what did not become one."""

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxcxr.data import images, prompts, tokens
from jaxcxr.errors import UserError

SPLITS = ("train", "validate", "test")
LABEL_TABLES = ("chexpert", "negbio", "test")
# By the field of a prompt that a row lacks, where the reason for the quarantine is not `no_FIELD`.
_ABSENT = dict.fromkeys(("report", "impression", "findings"), "no_usable_section")


def defaults() -> ConfigDict:
    """Returns the `data` section of a config with its default values."""
    config = ConfigDict()
    config.size = 512  # pixels of a side; the longer one is resized to it, the shorter padded with black
    config.views = ("PA", "AP")  # empty: every view, also an unstated one
    config.sections = ("impression", "findings")  # {report} in a prompt is the first of these that is there
    # Templates; several are several prompts of one image. Fields: {report}, {impression}, {findings}, {labels}, {view},
    # and with MIMIC-IV's tables {age}, {sex}, {race}; of an image folder every column of metadata.jsonl.
    config.prompts = ("{report}",)
    config.min_words = 2
    config.tokens = (0, 0)  # least and most tokens of a prompt, start and end among them; 0: any; needs data.tokenizer
    config.split = "official"  # MIMIC-CXR's table, or p19: patients p10–p18 train, p19 test
    config.label_table = "chexpert"  # of MIMIC-CXR-JPG; or negbio, or test: the labels radiologists gave in 2.1.0
    config.labels = ()  # images with at least one of these; empty: all
    config.one_per_study = False  # the first that is selected, in the table's order
    config.patients_in = ""  # file of patient ids, one a line: only these
    config.patients_out = ""  # not these
    # One report in twenty of MIMIC-CXR has neither section, so a sound tree is near 0.05.
    config.max_bad_share = 0.1
    config.tokenizer = ""  # folder with CLIPTokenizer files; empty: train one on the train split
    config.tokenizer_vocab = 4096  # at most; a small corpus has fewer words
    return config


@dataclasses.dataclass(frozen=True)
class Settings:
    """The checked values of `config.data` that decide what a prepared folder holds."""

    size: int
    views: tuple[str, ...]
    sections: tuple[str, ...]
    prompts: tuple[str, ...]
    min_words: int
    tokens: tuple[int, ...]
    split: str
    label_table: str
    labels: tuple[str, ...]
    one_per_study: bool
    patients_in: str
    patients_out: str
    max_bad_share: float
    tokenizer: str
    tokenizer_vocab: int

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Settings":
        """Takes these fields from `config.data`, defaults where absent; raises UserError on a bad value."""
        values: dict[str, Any] = {**defaults(), **{k: config[k] for k in defaults() if k in config}}
        for key in ("views", "sections", "prompts", "tokens", "labels"):
            if isinstance(values[key], str):
                raise UserError(f"data.{key} is the string {values[key]!r}: give a tuple such as ('{values[key]}',)")
            values[key] = tuple(values[key])
        settings = cls(**values)
        for key, least in (("size", 8), ("min_words", 0)):
            if getattr(settings, key) < least:
                raise UserError(f"data.{key} is {getattr(settings, key)}: give at least {least}")
        if not settings.sections:
            raise UserError("data.sections is empty: name a report section such as 'impression'")
        if not settings.prompts:
            raise UserError("data.prompts is empty: give a template such as '{report}'")
        if len(settings.tokens) != 2 or min(settings.tokens) < 0:
            raise UserError(f"data.tokens is {settings.tokens}: give the least and the most, such as (7, 77)")
        if any(settings.tokens) and not settings.tokenizer:
            raise UserError("data.tokens counts tokens of data.tokenizer, which is empty: give its folder")
        if settings.label_table not in LABEL_TABLES:
            raise UserError(f"data.label_table is {settings.label_table!r}: may be {' or '.join(LABEL_TABLES)}")
        for name in (settings.patients_in, settings.patients_out):
            if name and not Path(name).is_file():
                raise UserError(f"{name}: no such file: data.patients_in and patients_out name lists of patient ids")
        if not 0 <= settings.max_bad_share <= 1:
            raise UserError(f"data.max_bad_share is {settings.max_bad_share}: give a share from 0 to 1")
        return settings


class Rejected(Exception):
    """A row that cannot become a record: `reason` is a short key, `detail` never holds report text."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class NotSelected(Exception):
    """A sound row that the settings leave out; the message is the reason's key."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A listed image that has passed selection.

    `read_fields` returns what is known for its prompts, empty where unknown, or raises Rejected.
    """

    id: str
    split: str
    patient: str
    view: str
    labels: tuple[str, ...]
    image: Path
    read_fields: Callable[[], Mapping[str, str]]


class Ledger:
    """Counts kept, not selected and bad rows, and lists the bad ones."""

    def __init__(self) -> None:
        self.not_selected: Counter[str] = Counter()
        self.bad: list[dict[str, str]] = []
        self.kept: Counter[str] = Counter()
        self.kept_by: dict[str, dict[str, Counter[str]]] = {"view": {}, "label": {}, "field": {}}
        self.duplicates = 0  # records whose pixels are those of an earlier one
        self._seen: set[bytes] = set()

    def refuse(self, identity: str, error: Rejected | NotSelected) -> None:
        """Books a row as bad or as not selected."""
        if isinstance(error, NotSelected):
            self.not_selected[str(error)] += 1
        else:
            self.bad.append({"id": identity, "reason": error.reason, "detail": error.detail})

    def keep(self, candidate: Candidate, made: "Made") -> None:
        """Books a row that became a record."""
        self.kept[candidate.split] += 1
        digest = hashlib.blake2b(made.record["image"], digest_size=12).digest()
        self.duplicates += digest in self._seen
        self._seen.add(digest)
        for kind, names in (("view", (candidate.view,)), ("label", candidate.labels), ("field", made.known)):
            self.kept_by[kind].setdefault(candidate.split, Counter()).update(names)

    def reasons(self) -> dict[str, int]:
        """Returns the number of bad rows by reason."""
        return dict(sorted(Counter(row["reason"] for row in self.bad).items()))

    def bad_share(self) -> float:
        """Returns bad rows over all rows that the settings did not leave out."""
        return len(self.bad) / max(1, len(self.bad) + self.kept.total())

    def check(self, source: Path, max_bad_share: float) -> None:
        """Raises UserError if nothing was kept or too large a share of the rows is bad."""
        bad = ", ".join(f"{reason} {count}" for reason, count in self.reasons().items()) or "none"
        left = ", ".join(f"{reason} {count}" for reason, count in sorted(self.not_selected.items())) or "none"
        if not self.kept:
            raise UserError(f"{source}: no usable row; bad: {bad}; not selected: {left} (data.views, data.min_words)")
        if self.bad_share() > max_bad_share:
            raise UserError(
                f"{source}: {self.bad_share():.1%} of the rows are bad ({bad}), more than data.max_bad_share "
                f"{max_bad_share:.1%}: mend the source or raise the limit"
            )

    def write_quarantine(self, path: Path) -> None:
        """Writes one JSON line {id, reason, detail} per bad row, in the order of ids."""
        rows = sorted(self.bad, key=lambda row: (row["id"], row["reason"], row["detail"]))
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def inside(root: Path, relative: str) -> Path:
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
    """A record, by the fields of `builder.features`, and the names of the fields that were known for its prompts."""

    record: dict[str, Any]
    known: tuple[str, ...]


def make_record(candidate: Candidate, settings: Settings, tokenizer: Any = None) -> Made:
    """Reads a candidate's text and image into a record.

    Raises:
      Rejected: the text or the image is missing or damaged, or no prompt can be made of what is known.
      NotSelected: every prompt has too few words, or too few or too many tokens.
    """
    fields = candidate.read_fields()
    filled, absent = prompts.fill(settings.prompts, fields)
    if not filled:
        raise Rejected(_ABSENT.get(absent, f"no_{absent}"))
    texts = [text for text in filled if len(text.split()) >= settings.min_words]
    if not texts:
        raise NotSelected("too few words")
    if tokenizer is not None:
        least, most = settings.tokens
        counts = [tokens.count(tokenizer, text) for text in texts]
        texts = [text for text, n in zip(texts, counts, strict=True) if least <= n <= (most or n)]
        if not texts:
            raise NotSelected("too few tokens" if max(counts) < least else "too many tokens")
    try:
        if candidate.image.stat().st_size == 0:
            raise Rejected("empty_image", candidate.image.name)
        image = images.load_square(candidate.image, settings.size)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Rejected("missing_image", candidate.image.name) from error
    except (OSError, images.UnreadableImage) as error:
        raise Rejected("unreadable_image", f"{candidate.image.name}: {error}") from error
    record = {
        "image": images.encode_png(image),
        "prompts": texts,
        "id": candidate.id,
        "patient": candidate.patient,
        "view": candidate.view,
        "labels": list(candidate.labels),
    }
    return Made(record, tuple(name for name, value in fields.items() if value))
