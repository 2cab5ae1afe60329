"""Image folders in the Hugging Face convention without metadata: a folder of pictures for each class."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxcxr.data.folder import SPLIT_NAMES
from jaxcxr.data.prompts import check_templates
from jaxcxr.data.records import ANY_ID, Candidate, Where, check_ids
from jaxcxr.data.source import Source

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm"}
"""Of pictures."""


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def find(source: Path) -> dict[Path, str]:
    """Returns the classes' folders, each with its split: those of the top, all `train`, or of folders named for splits.

    Pictures in a single folder have no classes.
    """
    tops = {path: split for name, split in SPLIT_NAMES.items() if (path := source / name).is_dir()} or {source: "train"}
    found = {
        folder: split
        for top, split in tops.items()
        for folder in sorted(top.iterdir())
        if folder.is_dir() and next(_pictures(folder), None)
    }
    return found if len({folder.name for folder in found}) > 1 else {}


class _Row(NamedTuple):
    image: Path
    split: str


class ClassFolder(Source):
    """Pictures whose folder's name is their `label`; each is its own patient."""

    signs = "a folder of pictures for each class (here or in train/)"
    licence = "That of the images it was made of."

    @classmethod
    def tables(cls, folder: Path) -> list[Path]:
        """The classes' folders."""
        return list(find(folder))

    def rows(self) -> Iterator[tuple[Where, _Row]]:
        """The pictures; see the base class."""
        check_templates(self.settings.prompts, ("label",), str(self.folder))
        for folder, split in find(self.folder).items():
            for number, image in enumerate(sorted(_pictures(folder)), 1):
                yield self.where(folder, number), _Row(image, split)

    def candidate(self, row: _Row) -> Candidate:
        """See the base class."""
        name, label = row.image.relative_to(self.folder).as_posix(), row.image.parent.name
        check_ids(ANY_ID, name)
        split, known = self.split_of(name, row.split), {"label": label}
        return Candidate(name, split, name, name, "", (label,), str(row.image), known)
