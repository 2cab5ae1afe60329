"""The classes of a classifier's run: which labels they are, and what their positives weigh."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from jaxcxr.data.classes import UNCERTAIN, Classes
from jaxcxr.errors import UserError
from jaxcxr.training.prepared import describe
from jaxcxr.workdir import Prepared

CLASS_WEIGHTS = ("none", "balanced")
_WANTED = "config.model.classifier.classes"


def all_labels(config: ConfigDict) -> tuple[str, ...]:
    """The labels of the training records of `config.data`, in alphabetical order.

    Raises:
      UserError: there are none, or nobody has counted them.
    """
    found = sorted({label for folder in describe(config) for label in folder.labels.get("train", ())})
    if not found:
        raise UserError(
            f"{_WANTED}=(): {config.data.path} lists no label of a training record; prepare data that have labels"
        )
    return tuple(found)


def classes_of(config: ConfigDict, names: tuple[str, ...], data: Sequence[Prepared]) -> Classes:
    """The classes of a run.

    Args:
      config: of the run.
      names: of the classes.
      data: what the run's folders were prepared with.

    Raises:
      UserError: no training record has one of them, or an option of `config.objective` is unknown or cannot be had.
    """
    objective = config.objective
    for key, known in (("uncertain", UNCERTAIN), ("class_weights", CLASS_WEIGHTS)):
        if objective[key] not in known:
            raise UserError(f"config.objective.{key}={objective[key]!r}: may be {', '.join(known)}")
    shares = _shares(names, data)
    if objective.class_weights == "none":
        return Classes(names, (1.0,) * len(names), objective.uncertain)
    if not shares:
        raise UserError(f"config.objective.class_weights='balanced': {config.data.path} is not prepared, to be counted")
    for name, share in zip(names, shares, strict=True):
        if share == 1:
            raise UserError(f"config.objective.class_weights='balanced': every training record has {name!r}; use none")
    return Classes(names, tuple((1 - share) / share for share in shares), objective.uncertain)


def _shares(names: Sequence[str], data: Sequence[Prepared]) -> list[float]:
    """How many of the images that a run draws have each label, 0 to 1; empty where a folder's are not counted."""
    if any(not folder.splits for folder in data):
        return []
    whole = sum(folder.weight for folder in data)
    shares = []
    for name in names:
        counts = [folder.labels.get("train", {}).get(name, 0) for folder in data]
        if not any(counts):
            known = sorted({label for folder in data for label in folder.labels.get("train", ())})
            raise UserError(
                f"{_WANTED}: no training record of {data[0].path} has the label {name!r}; there are"
                f" {', '.join(known) or 'none'}"
            )
        parts = zip(data, counts, strict=True)
        shares.append(sum(each.weight * count / max(each.splits.get("train", 0), 1) for each, count in parts) / whole)
    return shares
