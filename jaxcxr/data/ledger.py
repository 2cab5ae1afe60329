"""The account of what became a record and what did not."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from jaxcxr.data.records import Candidate, Made, NotSelected, Rejected
from jaxcxr.data.settings import Settings
from jaxcxr.errors import UserError
from jaxcxr.files import replace_file


@dataclasses.dataclass
class Ledger:
    """Counts kept, not selected and bad rows, and lists the bad ones.

    Attributes:
      kept: records by split.
      views: records by split and view; `labels` and `fields` (what was known for prompts) likewise.
      not_selected: rows that the settings leave out, by reason.
      bad: rows that cannot become a record, as {id, reason, detail}.
      pixels: a digest of each record's picture.
    """

    kept: Counter[str] = dataclasses.field(default_factory=Counter)
    views: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    labels: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    fields: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    not_selected: Counter[str] = dataclasses.field(default_factory=Counter)
    bad: list[dict[str, str]] = dataclasses.field(default_factory=list)
    pixels: list[str] = dataclasses.field(default_factory=list)

    def refuse(self, identity: str, error: Rejected | NotSelected) -> None:
        """Books a row as bad or as not selected."""
        if isinstance(error, NotSelected):
            self.not_selected[str(error)] += 1
        else:
            self.bad.append({"id": identity, "reason": error.reason, "detail": error.detail})

    def keep(self, candidate: Candidate, made: Made) -> None:
        """Books a row that became a record."""
        self.kept[candidate.split] += 1
        self.pixels.append(made.pixels)
        for counts, names in (
            (self.views, (candidate.view,)),
            (self.labels, candidate.labels),
            (self.fields, made.known),
        ):
            counts.setdefault(candidate.split, Counter()).update(names)

    def add(self, other: Self) -> None:
        """Takes over the entries of another ledger."""
        self.kept += other.kept
        self.not_selected += other.not_selected
        self.bad += other.bad
        self.pixels += other.pixels
        for name in ("views", "labels", "fields"):
            for split, counts in getattr(other, name).items():
                getattr(self, name).setdefault(split, Counter()).update(counts)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The ledger of which `values` is the `vars`, as JSON gives them back."""

        def by_split(name: str) -> dict[str, Counter[str]]:
            return {split: Counter(counts) for split, counts in values[name].items()}

        return cls(
            kept=Counter(values["kept"]),
            views=by_split("views"),
            labels=by_split("labels"),
            fields=by_split("fields"),
            not_selected=Counter(values["not_selected"]),
            bad=values["bad"],
            pixels=values["pixels"],
        )

    def duplicates(self) -> int:
        """Returns the number of records whose pixels are those of another before it."""
        return len(self.pixels) - len(set(self.pixels))

    def reasons(self) -> dict[str, int]:
        """Returns the number of bad rows by reason."""
        return dict(sorted(Counter(row["reason"] for row in self.bad).items()))

    def bad_share(self) -> float:
        """Returns bad rows over all rows that the settings did not leave out."""
        return len(self.bad) / max(1, len(self.bad) + self.kept.total())

    def check(self, folder: Path, settings: Settings) -> None:
        """Raises UserError if nothing of `folder` was kept or too large a share of its rows is bad."""
        bad = ", ".join(f"{reason} {count}" for reason, count in self.reasons().items()) or "none"
        left = ", ".join(f"{reason} {count}" for reason, count in sorted(self.not_selected.items())) or "none"
        if not self.kept:
            raise UserError(f"{folder}: no usable row; bad: {bad}; not selected: {left} (data.views, data.min_words)")
        if self.bad_share() > settings.max_bad_share:
            raise UserError(
                f"{folder}: {self.bad_share():.1%} of the rows are bad ({bad}), more than data.max_bad_share "
                f"{settings.max_bad_share:.1%}: mend the source or raise the limit"
            )

    def write_quarantine(self, path: Path) -> None:
        """Writes one JSON line {id, reason, detail} per bad row, in the order of ids."""
        rows = sorted(self.bad, key=lambda row: (row["id"], row["reason"], row["detail"]))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        replace_file(path, lines.encode(), private=True)
