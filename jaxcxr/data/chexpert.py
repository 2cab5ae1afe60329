"""CheXpert's csv trees (Irvin et al. 2019, arXiv 1901.07031): labels, view, age and sex; no reports."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from jaxcxr.data.prompts import check_templates
from jaxcxr.data.records import Candidate, Rejected, Where, check_ids, joined_below
from jaxcxr.data.source import Source
from jaxcxr.data.tables import find_table, in_words, positive, read_rows, uncertain

FIELDS = ("labels", "view", "age", "sex")
"""What a prompt may ask for."""

_SPLITS = {"train": "train", "valid": "validate", "test": "test"}
_PATH = r"[\w.-]{1,64}/(train|valid|test)/patient\d{1,9}/study\d{1,9}/[\w-]{1,64}\.\w{3,4}"
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


class CheXpert(Source):
    """Chest radiographs of CheXpert with prompts made of labels, view, age and sex."""

    signs = "train.csv beside train/ (here or in CheXpert-v1.0*/)"
    licence = "Stanford University's research use agreement for CheXpert: no redistribution, no commercial use."

    @classmethod
    def tables(cls, folder: Path) -> list[Path]:
        """The tables of the splits there are."""
        return list(find(folder))

    def rows(self) -> Iterator[tuple[Where, tuple[Path, str, dict[str, str]] | Rejected]]:
        """The rows of the tables, each with its table and split; see the base class."""
        check_templates(self.settings.prompts, FIELDS, str(self.folder))
        for table, split in find(self.folder).items():
            for line, row in read_rows(table, _COLUMNS):
                yield self.where(table, line), (table, split, row) if row else Rejected("row_of_another_length")

    def candidate(self, row: tuple[Path, str, dict[str, str]]) -> Candidate:
        """See the base class."""
        table, split, values = row
        check_ids(_PATH, values["Path"])
        # A path begins with the folder's name as it was published, whatever it is called here.
        parts = PurePosixPath(values["Path"]).parts
        labels = positive(values, _COLUMNS)
        view = values["AP/PA"] if values["Frontal/Lateral"] == "Frontal" else values["Frontal/Lateral"].upper()
        image = joined_below(table.parent, "/".join(parts[1:]))
        return Candidate(
            id="/".join(parts[1:]),
            split=self.split_of(parts[2], split),
            patient=parts[2],
            study=str(image.parent),
            view=view,
            labels=labels,
            image=str(image),
            uncertain=uncertain(values, _COLUMNS),
            known={
                "labels": in_words(labels),
                "view": view,
                "age": values["Age"].removesuffix(".0"),
                "sex": values["Sex"].lower() if values["Sex"] in ("Female", "Male") else "",
            },
        )
