"""Patients to splits, by a hash of the patient: the same in every order and process, whoever else is there."""

import hashlib
from collections.abc import Sequence

from jaxcxr.data.records import Candidate


def by_hash(patient: str) -> str:
    """The split of a patient under `data.split=hash`: 90 % train, 5 % validate, 5 % test."""
    place = _place(patient)
    return "train" if place < 0.9 else "validate" if place < 0.95 else "test"


def carve(candidates: Sequence[Candidate], share: float) -> tuple[list[Candidate], float]:
    """Makes a share of train's patients the split `validate`; at least one patient of two or more, and never all.

    Returns:
      The candidates in their order, and the share of train's patients that it came to.
    """
    places = {
        each.patient: (_place(each.patient, b"validate"), each.patient) for each in candidates if each.split == "train"
    }
    if not share or len(places) < 2:
        return list(candidates), 0.0
    in_order = sorted(places, key=places.__getitem__)
    count = sum(place < share for place, _ in places.values())
    chosen = set(in_order[: min(max(count, 1), len(places) - 1)])
    carved = [
        each._replace(split="validate") if each.split == "train" and each.patient in chosen else each
        for each in candidates
    ]
    return carved, len(chosen) / len(places)


def _place(patient: str, use: bytes = b"") -> float:
    """A number from 0 to 1; those of two uses have nothing to do with each other."""
    return int.from_bytes(hashlib.blake2b(patient.encode(), digest_size=4, person=use).digest()) / 2**32
