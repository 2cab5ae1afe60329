"""Who the patients of MIMIC-CXR are, of MIMIC-IV's tables (physionet.org/content/mimiciv, module hosp)."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Self

from jaxcxr.data.tables import read_table

TABLES = ("patients", "admissions")
_SEX = {"F": "female", "M": "male"}
# By how the hospital's entries begin; what is declined, unknown or several is left out.
_RACE = {
    "WHITE": "white",
    "PORTUGUESE": "white",
    "BLACK": "black",
    "ASIAN": "asian",
    "HISPANIC": "hispanic",
    "SOUTH AMERICAN": "hispanic",
    "AMERICAN INDIAN": "american indian",
    "NATIVE HAWAIIAN": "pacific islander",
}


class _Patient(NamedTuple):
    sex: str
    anchor_age: int  # in the anchor year; ages above 89 are 91 there
    anchor_year: int


class Patients:
    """Age at a study, sex and race by `subject_id`.

    Attributes:
      fields: of these, those that the tables tell.
    """

    def __init__(self, patients: dict[str, _Patient], races: dict[str, str] | None):
        self._patients, self._races = patients, races or {}
        self.fields = ("age", "sex") if races is None else ("age", "sex", "race")

    @classmethod
    def read(cls, tables: Mapping[str, Path]) -> Self | None:
        """Reads the `TABLES` that there are; None without `patients`.

        Raises:
          UserError: a table cannot be read or lacks a column.
        """
        if "patients" not in tables:
            return None
        patients = {
            row["subject_id"]: _Patient(_SEX.get(row["gender"], ""), int(row["anchor_age"]), int(row["anchor_year"]))
            for row in read_table(tables["patients"], ("subject_id", "gender", "anchor_age", "anchor_year"))
            if re.fullmatch(r"\d{1,3}", row["anchor_age"]) and re.fullmatch(r"\d{4}", row["anchor_year"])
        }
        if "admissions" not in tables:
            return cls(patients, None)
        said: dict[str, Counter[str]] = {}
        for row in read_table(tables["admissions"], ("subject_id", "race")):
            race = next((name for start, name in _RACE.items() if row["race"].startswith(start)), "")
            if race:
                said.setdefault(row["subject_id"], Counter())[race] += 1
        # Admissions of one patient may differ; the entry made most often is taken.
        return cls(patients, {subject: counts.most_common(1)[0][0] for subject, counts in said.items()})

    def at(self, subject: str, study_date: str) -> dict[str, str]:
        """The values of `fields` at `study_date`, YYYYMMDD; empty where unknown.

        Both dates are shifted by the same span for one patient, so that their difference is true.
        """
        patient, race = self._patients.get(subject), self._races.get(subject, "")
        if patient is None:
            return dict(zip(self.fields, ("", "", race), strict=False))
        year = int(study_date[:4]) if study_date[:4].isdecimal() and len(study_date) == 8 else None
        age = "" if year is None else str(patient.anchor_age + year - patient.anchor_year)
        return dict(zip(self.fields, (age, patient.sex, race), strict=False))
