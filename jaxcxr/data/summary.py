"""The account that goes with a prepared folder."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import msgspec

from jaxcxr import parsing
from jaxcxr.errors import UserError

LABELS = "labels.json"
"""Beside it: by split and label, the places of the records that have it."""


Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a prepared folder holds; `summary.json` is its content. No report text, no patient ids."""

    source: str  # its kind and form
    records: Annotated[
        str, msgspec.Meta(pattern=r"^[\w-]+$")
    ]  # the folder of the ArrayRecord files, relative to the prepared folder
    fingerprint: str
    settings: dict[str, Any]
    splits: dict[str, Count]  # empty splits are there, with 0
    views: dict[str, dict[str, Count]]
    labels: dict[str, dict[str, Count]]
    fields: dict[str, dict[str, Count]]  # what was known for prompts: sections, age, …
    duplicates: Count  # records whose pixels are those of an earlier one
    bad: dict[str, Count]  # by reason
    not_selected: dict[str, Count]  # by reason
    vocab_size: Count
    prompts_cut: dict[str, Count]  # prompts longer than the tokenizer's length
    # The share of train's patients that became the split `validate`, as the source has none.
    carved: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0

    def __post_init__(self) -> None:
        if not (isinstance(size := self.settings.get("size"), int) and 0 < size <= 2**16):
            raise ValueError("settings.size is no number of pixels")

    @classmethod
    def read(cls, folder: Path) -> "Summary | None":
        """Reads a prepared folder's summary; None if the folder is not one, or its summary is damaged."""
        try:
            return cls.require(folder)
        except UserError:
            return None

    @classmethod
    def require(cls, folder: Path) -> "Summary":
        """Reads a prepared folder's summary; raises UserError if the folder is not one, or its summary is damaged."""
        file, remedy = folder / "summary.json", "make one with jaxcxr prepare"
        if not file.is_file():
            raise UserError(f"{folder}: not a prepared folder: {remedy}")
        return parsing.read_json(file, cls, remedy=remedy)

    def to_json(self) -> str:
        """The content of `summary.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    def carving(self) -> str:
        """How the split `validate` was made where the source has none."""
        return f"carved from train by patient, {100 * self.carved:.2g} % of its patients"

    def __str__(self) -> str:
        kept = ", ".join(f"{split} {count}" for split, count in self.splits.items())
        lines = [f"{sum(self.splits.values())} records: {kept}", f"vocabulary {self.vocab_size}"]
        if self.carved:
            lines.append(f"validate: {self.carving()}")
        if any(self.prompts_cut.values()):
            cut = ", ".join(f"{split} {count}" for split, count in self.prompts_cut.items() if count)
            lines.append(f"prompts longer than the text encoder reads, cut: {cut}")
        if self.duplicates:
            lines.append(f"{self.duplicates} records have the pixels of an earlier one")
        for title, counts in (("not selected", self.not_selected), ("bad, in quarantine.jsonl", self.bad)):
            if counts:
                listed = ", ".join(f"{reason} {count}" for reason, count in counts.items())
                lines.append(f"{title}: {sum(counts.values())} ({listed})")
        lines += [f"split {split} is empty" for split, count in self.splits.items() if not count]
        return "\n".join(lines)
