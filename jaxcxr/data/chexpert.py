"""CheXpert's csv trees (Irvin et al. 2019, arXiv 1901.07031): labels, view, age and sex; no reports."""

import functools
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from jaxcxr.data.builder import RadiographBuilder
from jaxcxr.data.prompts import check_templates
from jaxcxr.data.records import Candidate, NotSelected, Rejected, check_patients, inside
from jaxcxr.data.selection import Selection
from jaxcxr.data.tables import find_table, in_words, positive, read_table

FIELDS = ("labels", "view", "age", "sex")
"""What a prompt may ask for."""

_SPLITS = {"train": "train", "valid": "validate", "test": "test"}
_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")


def find(source: Path) -> dict[Path, str]:
    """The tables train.csv, valid.csv and test.csv of `source`, or of its folder CheXpert-v1.0…, with their splits.

    A folder without train.csv is none of CheXpert's.
    """
    for root in [source, *sorted(source.glob("CheXpert-v1.0*"))]:
        tables = {path: split for name, split in _SPLITS.items() if (path := find_table((root,), name))}
        if "train" in tables.values() and (root / "train").is_dir():
            return tables
    return {}


class CheXpert(RadiographBuilder):
    """Chest radiographs of CheXpert with prompts made of labels, view, age and sex."""

    signs = "train.csv beside train/ (here or in CheXpert-v1.0*/)"
    licence = "Stanford University's research use agreement for CheXpert: no redistribution, no commercial use."

    @classmethod
    def tables(cls, source: Path) -> list[Path]:
        """The tables of the splits there are."""
        return list(find(source))

    def candidates(self) -> list[Candidate]:
        """Lists the tables' selected rows; see the base class."""
        check_templates(self.settings.prompts, FIELDS, str(self.source))
        selection, seen = Selection(self.settings), set[str]()
        found: list[Candidate] = []
        pairs: set[tuple[str, str]] = set()
        for table, split in find(self.source).items():
            for row in read_table(table, _COLUMNS):
                try:
                    candidate = _candidate(row, split, table.parent)
                    if candidate.id in seen:
                        raise Rejected("duplicate_id")
                    seen.add(candidate.id)
                    pairs.add((candidate.patient, split))
                    selection.check(candidate, study=str(candidate.image.parent))
                    found.append(candidate)
                except (Rejected, NotSelected) as refusal:
                    self.ledger.refuse(row["Path"], refusal)
        check_patients(pairs, self.source)
        return found


def _candidate(row: Mapping[str, str], split: str, root: Path) -> Candidate:
    # A path begins with the folder's name as it was published, whatever it is called here.
    parts = PurePosixPath(row["Path"]).parts
    if len(parts) != 5 or not parts[2].startswith("patient"):
        raise Rejected("path_of_another_form")
    labels = positive(row, _COLUMNS)
    view = row["AP/PA"] if row["Frontal/Lateral"] == "Frontal" else row["Frontal/Lateral"].upper()
    values = {
        "labels": in_words(labels),
        "view": view,
        "age": row["Age"].removesuffix(".0"),
        "sex": row["Sex"].lower() if row["Sex"] in ("Female", "Male") else "",
    }
    return Candidate(
        id="/".join(parts[1:]),
        split=split,
        patient=parts[2],
        view=view,
        labels=labels,
        image=inside(root, "/".join(parts[1:])),
        read_fields=functools.partial(dict, values),
    )
