"""What a source of radiographs is: a class that lists its images and reads their texts; a module each."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from PIL import Image
from tqdm.auto import tqdm

from jaxcxr import hub
from jaxcxr.data.ledger import Ledger
from jaxcxr.data.records import SPLITS, Candidate, NotSelected, Rejected, Where, check_patients
from jaxcxr.data.selection import Selection
from jaxcxr.data.settings import Settings
from jaxcxr.data.splits import by_hash, carve
from jaxcxr.errors import UserError


class Source:
    """A folder of raw data. A subclass reads its tables and, where it has any, its reports.

    It is pickled as its folder and settings, so that every process opens files of its own.

    Attributes:
      signs: what a folder of this source has, for the error about one of none.
      licence: what may be done with its data, for the data card.
      splits: the values that `data.split` may have.
    """

    signs: ClassVar[str]
    licence: ClassVar[str]
    splits: ClassVar[tuple[str, ...]] = ("official", "hash")

    def __init__(self, folder: Path, settings: Settings):
        self.folder, self.settings = folder, settings
        if settings.split not in self.splits:
            known = " or ".join(self.splits)
            raise UserError(
                f"data.split is {settings.split!r}: may be {known} for {type(self).__name__}: "
                f"set data.split={self.splits[-1]}"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.settings)

    @property
    def name(self) -> str:
        """What the summary calls this source: its kind, and its form where that decides what the records are."""
        return type(self).__name__

    @classmethod
    def tables(cls, folder: Path) -> list[Path]:
        """The tables that define a source of this kind, or the folders whose listing does; none if it is of another."""
        raise NotImplementedError

    def where(self, path: Path, row: int) -> Where:
        """The place of a row of a table, or of a name in a folder."""
        return Where(path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else path.name, row)

    def rows(self) -> Iterator[tuple[Where, Any]]:
        """Yields the place of each row and the row, or a Rejected in its place.

        Raises:
          UserError: a table cannot be read or lacks a column, or a prompt asks for what the source does not have.
        """
        raise NotImplementedError

    def candidate(self, row: Any) -> Candidate:
        """What the tables say of a row; raises Rejected if that is nothing useful, or ids are of another form."""
        raise NotImplementedError

    def fields(self, candidate: Candidate) -> Mapping[str, str]:
        """The values for prompts, those of its report too; raises Rejected if that cannot be read."""
        return candidate.known

    def picture(self, candidate: Candidate) -> Path | Image.Image:
        """The file of its picture, or the picture; raises Rejected if there is none, or UnreadableImage."""
        return Path(candidate.image)

    def candidates(self, ledger: Ledger) -> list[Candidate]:
        """Lists the selected images and books the others; raises UserError on bad tables.

        Where no row of the source is in the split `validate`, it is carved out of `train`.
        """
        found: list[Candidate] = []
        seen: set[str] = set()
        splits: set[str] = set()
        pairs: set[tuple[str, str]] = set()
        selection = Selection(self.settings)
        for where, row in tqdm(self.rows(), desc="list", unit="row", disable=None):
            try:
                if isinstance(row, Rejected):
                    raise row
                candidate = self.candidate(row)._replace(where=where)
                candidate.check_words()
                splits.add(candidate.split)
                if candidate.id in seen:
                    raise Rejected("duplicate_id")
                seen.add(candidate.id)
                selection.check(candidate)
                if candidate.split not in SPLITS:
                    raise Rejected("unknown_split" if candidate.split else "no_split")
                pairs.add((candidate.patient, candidate.split))
                found.append(candidate)
            except (Rejected, NotSelected) as refusal:
                ledger.refuse(where, refusal)
        selection.finish()
        check_patients(pairs, self.folder)
        if "validate" not in splits:
            found, ledger.carved = carve(found, self.settings.validate_share)
        return found

    def split_of(self, patient: str, official: str) -> str:
        """A patient's split by `data.split`; `official` is the source's own word for it."""
        return by_hash(patient) if self.settings.split == "hash" else official


@functools.cache
def kinds() -> tuple[type[Source], ...]:
    """The sources there are."""
    from jaxcxr.data.chexpert import CheXpert
    from jaxcxr.data.class_folder import ClassFolder
    from jaxcxr.data.folder import ImageFolder
    from jaxcxr.data.mimic_cxr import MimicCxr
    from jaxcxr.data.openi import OpenI
    from jaxcxr.data.parquet import ParquetFolder

    return (
        ImageFolder,
        MimicCxr,
        CheXpert,
        OpenI,
        ParquetFolder,
        ClassFolder,
    )  # the one with the vaguest signs comes last


def is_source(folder: Path) -> bool:
    """Whether a folder holds raw data of a known kind."""
    return folder.is_dir() and any(kind.tables(folder) for kind in kinds())


def wanted(files: Sequence[str]) -> list[str]:
    """Chooses the files of a data set of the hub: an image folder's tables and pictures, or shards in Parquet."""
    from jaxcxr.data import class_folder, folder, parquet

    pictures = [file for file in files if PurePosixPath(file).suffix.lower() in class_folder.SUFFIXES]
    tops = {"", *(f"{split}/" for split in folder.SPLIT_NAMES)}
    if tables := [file for file in files if file in {top + name for top in tops for name in folder.NAMES}]:
        return [*tables, *pictures]
    if found := [file for file in files if parquet.split_of(file)] or pictures:
        return found
    if inner := [file for file in files if file.endswith(".parquet")]:
        raise hub.Absent(f"has Parquet in other folders; name one: append :{inner[0].split('/')[0]}")
    if packed := [file for file in files if file.endswith((".zip", ".tar", ".tar.gz", ".tgz"))]:
        raise hub.Absent(f"has its pictures in archives, such as {packed[0]}; unpack them and give their folder")
    raise hub.Absent("has neither pictures nor Parquet files of a data set")


def open_source(folder: str | Path, settings: Settings) -> Source:
    """Opens a folder of raw data of any kind, here or of the hub.

    Raises:
      UserError: there is no such folder, it is of no kind, or the settings ask for what its kind does not have.
    """
    folder = hub.find(folder, wanted, kind="dataset")
    signs = ", ".join(kind.signs for kind in kinds())
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder: a source is one that has one of {signs}")
    for kind in kinds():
        if kind.tables(folder):
            return kind(folder, settings)
    raise UserError(f"{folder}: not a source; one of these has {signs}")
