"""Which images of a source the settings want."""

import re
import sys
from pathlib import Path

from jaxcxr import parsing
from jaxcxr.data.records import ANY_ID, Candidate, NotSelected
from jaxcxr.data.settings import Settings
from jaxcxr.errors import UserError


class Selection:
    """What decides on an image before its text and pixels are read."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._wanted = _read_list(settings.patients_in) if settings.patients_in else None
        self._unwanted = _read_list(settings.patients_out) if settings.patients_out else set()
        self._studies: set[str] = set()
        self._patients: set[str] = set()
        self._labels: set[str] = set()

    def check(self, candidate: Candidate) -> None:
        """Raises NotSelected with the reason if the settings leave this image out."""
        settings, patient, view = self._settings, candidate.patient, candidate.view
        self._patients.add(patient)
        self._labels.update(candidate.labels)
        if patient in self._unwanted:
            raise NotSelected("patient listed out")
        if self._wanted is not None and patient not in self._wanted:
            raise NotSelected("patient not listed")
        if settings.views and view not in settings.views:
            raise NotSelected(f"view {view}" if view else "view empty")
        if settings.labels and not set(candidate.labels) & set(settings.labels):
            raise NotSelected("no label asked for")
        if settings.one_per_study:
            if candidate.study in self._studies:
                raise NotSelected("another image of its study")
            self._studies.add(candidate.study)

    def finish(self) -> None:
        """Looks, when all images were checked, for what was asked for and is nowhere.

        Raises:
          UserError: no patient of a list is in the tables: its ids must be written as theirs.
        """
        settings = self._settings
        for file, listed in ((settings.patients_in, self._wanted), (settings.patients_out, self._unwanted)):
            if listed and not listed & self._patients:
                raise UserError(f"{file}: none of its {len(listed)} patients is in the tables: write ids as they do")
            if listed and (strangers := len(listed - self._patients)):
                print(f"{file}: {strangers} of its {len(listed)} patients are not in the tables", file=sys.stderr)
        for label in sorted(set(settings.labels) - self._labels):
            print(f"data.labels: no image has {label!r}; there are {sorted(self._labels)}", file=sys.stderr)


def _read_list(file: str) -> set[str]:
    wanted = "give a text file with one id a line"
    try:
        listed = set(parsing.read_bytes(Path(file)).decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not a list of patients: it is not UTF-8; {wanted}") from error
    if not all(re.fullmatch(ANY_ID, patient) for patient in listed):
        wrong = "an id in it is longer than 512 characters or has control characters"
        raise UserError(f"{file}: not a list of patients: {wrong}; {wanted}")
    return listed
