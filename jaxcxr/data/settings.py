"""What `config.data` says of preparing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxcxr import parsing
from jaxcxr.data.reports import SECTIONS
from jaxcxr.errors import UserError, one_line

LABEL_TABLES = ("chexpert", "negbio", "test")
INTENSITIES = ("stored", "equalize", "percentile")
DEFAULT_PIXELS = 8192 * 8192
LIMITS = ("max_bad_share", "max_pixels", "max_report_bytes")  # decide what is damaged, not what a record holds
LEAST_VOCAB, MOST_VOCAB = 2 * 256 + 2, 1_000_000  # of a tokenizer that is trained: the bytes and the two marks alone
MOST_PIXELS = 178_956_970  # that data.max_pixels may allow; Pillow opens no larger picture


def defaults() -> ConfigDict:
    """Returns the `data` section of a config with its default values."""
    config = ConfigDict()
    # Height and width in pixels; the longer side is resized to it, the shorter padded with black. 0, for a training
    # alone: that of the prepared folder.
    config.size = 512
    config.channels = 1  # gray; or 3, in colour
    config.intensity = "stored"  # or equalize (its histogram), or percentile: the lowest and highest 0.5 % are clipped
    config.views = ("PA", "AP")  # empty: every view, also an unstated one
    config.sections = ("impression", "findings")  # of reports.SECTIONS; {report} in a prompt is the first that is there
    # Templates; several are several prompts of one image. Fields: {report}, {impression}, {findings}, {labels}, {view},
    # and with MIMIC-IV's tables {age}, {sex}, {race}; of an image folder every column of its metadata.
    config.prompts = ("{report}",)
    config.min_words = 2
    config.report_exceptions = ""  # csv of reports that are read otherwise: study_id, and section or start and end
    # Tables that give MIMIC-CXR's {report} in place of the reports, which are then not read: csv with text and dicom_id
    # or study_id, or LLaVA-Rad's json; several are read as one.
    config.report_tables = ()
    config.tokens = (0, 0)  # least and most tokens of a prompt, start and end among them; 0: any; needs data.tokenizer
    # The source's own; or p19: MIMIC-CXR's patients p10–p18 as train, p19 as test; or hash: 90, 5, 5 % of the patients.
    config.split = "official"
    # Share of train's patients that become `validate` where the source has no such split; 0: none.
    config.validate_share = 0.05
    config.label_table = "chexpert"  # of MIMIC-CXR-JPG; or negbio, or test: the labels radiologists gave in 2.1.0
    config.labels = ()  # images with at least one of these; empty: all
    config.one_per_study = False  # the first that is selected, in the table's order
    config.patients_in = ""  # file of patient ids, one a line: only these
    config.patients_out = ""  # not these
    config.max_bad_share = 0.1  # of the rows that the settings select; what a sound tree lacks is not selected
    config.max_pixels = DEFAULT_PIXELS  # of an image; a larger one is bad, and is not decoded
    # Bytes of a report's file, also of one in a zip: a larger one is bad and not read. Characters of a text in a table:
    # a longer one is bad. Tables have limits of their own: 2**20 characters a line, 131,072 a field of a csv.
    config.max_report_bytes = 2**20
    config.tokenizer = ""  # folder with CLIPTokenizer files, or ORG/NAME of the hub; empty: train one on train
    config.tokenizer_vocab = 4096  # at most; a small corpus has fewer words
    return config


def of_pictures(size: int, tokenizer: str, channels: int = 1) -> ConfigDict:
    """Returns the `data` section that takes every picture that was drawn as it is, with its text.

    None of them is for validation, which is of real images.
    """
    config = defaults()
    config.size, config.views, config.min_words, config.validate_share = size, (), 0, 0.0
    config.channels = channels
    config.tokenizer = tokenizer
    return config


@dataclasses.dataclass(frozen=True)
class Settings:
    """The checked values of `config.data` that decide what a prepared folder holds."""

    size: int
    channels: int
    intensity: str
    views: tuple[str, ...]
    sections: tuple[str, ...]
    prompts: tuple[str, ...]
    min_words: int
    report_exceptions: str
    report_tables: tuple[str, ...]
    tokens: tuple[int, ...]
    split: str
    validate_share: float
    label_table: str
    labels: tuple[str, ...]
    one_per_study: bool
    patients_in: str
    patients_out: str
    max_bad_share: float
    max_pixels: int
    max_report_bytes: int
    tokenizer: str
    tokenizer_vocab: int

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Settings":
        """Takes these fields from `config.data`, defaults where absent; raises UserError on a bad value."""
        values: dict[str, Any] = {**defaults(), **{k: config[k] for k in defaults() if k in config}}
        for key in ("views", "sections", "prompts", "report_tables", "tokens", "labels"):
            if isinstance(values[key], str):
                raise UserError(f"data.{key} is the string {values[key]!r}: give a tuple such as ('{values[key]}',)")
            values[key] = tuple(values[key])
        settings: Settings = parsing.convert(values, cls, "config.data")
        for key, least in (("size", 8), ("min_words", 0), ("max_pixels", 1), ("max_report_bytes", 1)):
            if getattr(settings, key) < least:
                raise UserError(f"data.{key} is {getattr(settings, key)}: give at least {least}")
        if settings.channels not in (1, 3):
            raise UserError(f"data.channels is {settings.channels}: give 1, gray, or 3, colour")
        if settings.channels == 3 and settings.intensity != "stored":
            raise UserError(
                f"data.intensity is {settings.intensity!r}: is of gray images; with data.channels=3 give stored"
            )
        if not settings.sections:
            raise UserError("data.sections is empty: name a report section such as 'impression'")
        if unknown := [name for name in settings.sections if name not in SECTIONS]:
            raise UserError(f"data.sections has {one_line(repr(unknown[0]))}: give some of {', '.join(SECTIONS)}")
        if not settings.prompts:
            raise UserError("data.prompts is empty: give a template such as '{report}'")
        if len(settings.tokens) != 2 or min(settings.tokens) < 0:
            raise UserError(f"data.tokens is {settings.tokens}: give the least and the most, such as (7, 77)")
        if any(settings.tokens) and not settings.tokenizer:
            raise UserError("data.tokens counts tokens of data.tokenizer, which is empty: give its folder")
        for key, known in (("label_table", LABEL_TABLES), ("intensity", INTENSITIES)):
            if (value := getattr(settings, key)) not in known:
                raise UserError(f"data.{key} is {value!r}: may be {' or '.join(known)}")
        for name in settings.lists():
            if not name.is_file():
                raise UserError(
                    f"{name}: no such file; data.patients_in, patients_out, report_exceptions and report_tables "
                    "name files"
                )
        if not settings.tokenizer and not LEAST_VOCAB <= settings.tokenizer_vocab <= MOST_VOCAB:
            vocab = settings.tokenizer_vocab
            raise UserError(f"data.tokenizer_vocab is {vocab}: give a number from {LEAST_VOCAB} to {MOST_VOCAB:,}")
        for key, most in (("max_bad_share", 1), ("validate_share", 0.5), ("max_pixels", MOST_PIXELS)):
            if not 0 <= (value := getattr(settings, key)) <= most:
                raise UserError(f"data.{key} is {value}: give a number from 0 to {most:,}")
        return settings

    def lists(self) -> list[Path]:
        """The user's own files that decide what is selected."""
        named = (self.patients_in, self.patients_out, self.report_exceptions, *self.report_tables)
        return [Path(name) for name in named if name]

    def as_json(self) -> dict[str, Any]:
        """The values as they are read back from JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))
