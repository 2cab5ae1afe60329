"""Condition images of records, for a ControlNet: a folder with a picture for each, by the record's id."""

from pathlib import Path

import numpy as np

from jaxcxr.data import images
from jaxcxr.errors import UserError
from jaxcxr.files import inside


class Conditions:
    """The pictures `ID.png` of a folder, in colour or gray."""

    def __init__(self, folder: str | Path, side: int):
        """Raises UserError where there is no such folder, or no picture in it; `side` is what they have to measure."""
        self._folder, self._side = Path(folder), side
        if not self._folder.is_dir():
            raise UserError(
                f"config.data.conditions={str(folder)!r}: no such folder; give one with a picture ID.png a record"
            )
        self._names = {file.stem for file in self._folder.glob("*.png")}
        if not self._names:
            raise UserError(f"{folder}: has no PNG files; config.data.conditions wants a picture ID.png a record")

    def __contains__(self, record: str) -> bool:
        return record in self._names

    def __getitem__(self, record: str) -> np.ndarray:
        """The picture of the record of this id, uint8 (side, side, 3); a gray one is the same in each channel.

        Raises:
          KeyError: there is none.
          UserError: it cannot be decoded, or is of another size. The id is not told.
        """
        if record not in self:
            raise KeyError(record)
        try:
            pixels = images.load_colour(inside(self._folder, f"{record}.png"))
        except (OSError, images.UnreadableImage) as error:
            raise UserError(f"{self._folder}: a picture cannot be read ({type(error).__name__})") from error
        if pixels.shape[:2] != (self._side, self._side):
            height, width = pixels.shape[:2]
            raise UserError(
                f"{self._folder}: a picture is of {width} x {height} pixels, config.data.size is {self._side}"
            )
        return pixels
