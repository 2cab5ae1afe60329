"""Raw data as records, made when they are read: for a quick look, before anything is prepared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, SupportsIndex

from jaxcxr.data.ledger import Ledger
from jaxcxr.data.records import EmptySplit, NotSelected, Rejected, make_record
from jaxcxr.data.settings import Settings
from jaxcxr.data.source import open_source
from jaxcxr.errors import UserError


class RawSplit(Sequence[dict[str, Any]]):
    """A split of a source. A row that turns out bad is stood in for by the next one that is not.

    Records and splits are those of a prepared folder. Prompts are not counted in tokens.
    """

    def __init__(self, folder: Path, settings: Settings, split: str):
        """Lists the source.

        Raises:
          UserError: `folder` is no source, its tables will not do, or it has nothing in this split.
        """
        self._source = open_source(folder, settings)
        self._listed = [each for each in self._source.candidates(Ledger()) if each.split == split]
        if not self._listed:
            raise EmptySplit(f"{folder}: no image in split {split!r} is selected by config.data")

    def __len__(self) -> int:
        return len(self._listed)

    def __getitem__(self, place: SupportsIndex) -> dict[str, Any]:  # type: ignore[override]
        for offset in range(len(self)):
            candidate = self._listed[(place.__index__() + offset) % len(self)]
            try:
                source = self._source
                return make_record(candidate, source.fields(candidate), source.settings, source.picture).record
            except (Rejected, NotSelected):
                continue
        raise UserError(f"{self._source.folder}: no usable row; jaxcxr prepare lists what is wrong with them")
