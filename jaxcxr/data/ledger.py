"""The account of what became a record and what did not."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Self, TypedDict

from jaxcxr.data.records import Candidate, Made, NotSelected, Rejected, Where
from jaxcxr.data.settings import Settings
from jaxcxr.errors import UserError
from jaxcxr.files import replace_file


class Bad(TypedDict):
    """A row that cannot become a record, without a word of it: a line of the quarantine."""

    table: str
    row: int
    reason: str
    detail: str


class Booked(TypedDict):
    """The JSON of a ledger."""

    kept: dict[str, int]
    views: dict[str, dict[str, int]]
    labels: dict[str, dict[str, int]]
    fields: dict[str, dict[str, int]]
    not_selected: dict[str, int]
    bad: list[Bad]
    pixels: list[str]


@dataclasses.dataclass
class Ledger:
    """Counts kept, not selected and bad rows, and lists the bad ones.

    Attributes:
      kept: records by split.
      views: records by split and view; `labels` and `fields` (what was known for prompts) likewise.
      not_selected: rows that the settings leave out or that lack what they ask for, by reason.
      bad: rows that cannot become a record.
      pixels: a digest of each record's picture.
      carved: the share of train's patients that became the split `validate`, as the source has none.
    """

    kept: Counter[str] = dataclasses.field(default_factory=Counter)
    views: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    labels: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    fields: dict[str, Counter[str]] = dataclasses.field(default_factory=dict)
    not_selected: Counter[str] = dataclasses.field(default_factory=Counter)
    bad: list[Bad] = dataclasses.field(default_factory=list)
    pixels: list[str] = dataclasses.field(default_factory=list)
    carved: float = 0.0

    def refuse(self, where: Where, error: Rejected | NotSelected) -> None:
        """Books a row as bad or as not selected."""
        if isinstance(error, NotSelected):
            self.not_selected[str(error)] += 1
        else:
            self.bad.append({**where._asdict(), "reason": error.reason, "detail": error.detail})  # type: ignore[typeddict-item]

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
    def from_json(cls, values: Booked) -> Self:
        """The ledger of which `values` is the `vars`, as JSON gives them back."""

        def by_split(counts: dict[str, dict[str, int]]) -> dict[str, Counter[str]]:
            return {split: Counter(each) for split, each in counts.items()}

        return cls(
            kept=Counter(values["kept"]),
            views=by_split(values["views"]),
            labels=by_split(values["labels"]),
            fields=by_split(values["fields"]),
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

    def check(self, folder: Path, settings: Settings, listed_in: Path) -> None:
        """Raises UserError if nothing of `folder` was kept, or too many of its rows are bad.

        Those that the settings leave out do not count. The message names `listed_in`, which lists the bad rows.
        """
        see = f"; {listed_in} lists the bad rows" if self.bad else ""
        bad = ", ".join(f"{reason} {count}" for reason, count in self.reasons().items()) or "none"
        left = ", ".join(f"{reason} {count}" for reason, count in sorted(self.not_selected.items())) or "none"
        if not self.kept:
            raise UserError(
                f"{folder}: no usable row; bad: {bad}; not selected: {left} (data.views, data.min_words){see}"
            )
        selected = len(self.bad) + self.kept.total()
        if len(self.bad) > settings.max_bad_share * selected:
            raise UserError(
                f"{folder}: {len(self.bad)} of {selected} selected rows are bad, {len(self.bad) / selected:.1%} "
                f"({bad}); data.max_bad_share is {settings.max_bad_share:.1%}{see}: fix the source or raise the limit"
            )

    def write_quarantine(self, path: Path) -> None:
        """Writes one JSON line {table, row, reason, detail} per bad row, in the order of tables and rows."""
        rows = sorted(self.bad, key=lambda row: tuple(row.values()))
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        replace_file(path, lines.encode(), private=True)
