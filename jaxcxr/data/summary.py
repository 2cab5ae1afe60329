"""The account that goes with a prepared folder."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxcxr.errors import UserError

LABELS = "labels.json"
"""Beside it: by split and label, the places of the records that have it."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a prepared folder holds; `summary.json` is its content. No report text, no patient ids."""

    source: str  # its kind and form
    records: str  # the folder of the ArrayRecord files, relative to the prepared folder
    fingerprint: str
    settings: dict[str, Any]
    splits: dict[str, int]  # empty splits are there, with 0
    views: dict[str, dict[str, int]]
    labels: dict[str, dict[str, int]]
    fields: dict[str, dict[str, int]]  # what was known for prompts: sections, age, …
    duplicates: int  # records whose pixels are those of an earlier one
    bad: dict[str, int]  # by reason
    not_selected: dict[str, int]  # by reason
    vocab_size: int
    prompts_cut: dict[str, int]  # prompts longer than the tokenizer's length

    @classmethod
    def read(cls, folder: Path) -> "Summary | None":
        """Reads a prepared folder's summary; None if the folder is not one."""
        try:
            values = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            return cls(**values)
        except (OSError, ValueError, TypeError):
            return None

    @classmethod
    def require(cls, folder: Path) -> "Summary":
        """Reads a prepared folder's summary; raises UserError if the folder is not one."""
        if (found := cls.read(folder)) is None:
            raise UserError(f"{folder}: not a prepared folder: make one with jaxcxr prepare")
        return found

    def to_json(self) -> str:
        """The content of `summary.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    def __str__(self) -> str:
        kept = ", ".join(f"{split} {count}" for split, count in self.splits.items())
        lines = [f"{sum(self.splits.values())} records: {kept}", f"vocabulary {self.vocab_size}"]
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
