"""The bases that come with the package: small pipelines for drawn radiographs, as diffusers folders.

`configs/bases.py` trained them and docs/phantom.md says what each of them draws.
"""

import sys
from pathlib import Path

from jaxcxr import buckets

FOLDER = Path(__file__).parent
NAMES = ("phantom", "phantom-no-effusion", "phantom-unnamed")


def find(path: str | Path) -> Path:
    """The folder of the base of this name; any other path, and one that exists, as it is."""
    path = buckets.place(path)
    if str(path) not in NAMES:
        return path
    if path.exists():
        print(f"{path}: the folder here is taken, not the base of this name that comes with jaxcxr", file=sys.stderr)
        return path
    return FOLDER / path
