"""The labels of records as numbers, for a classifier."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcxr.data.loader import as_text

UNCERTAIN = ("negative", "positive", "ignore")
"""What a label may be taken as that is neither: CheXpert's U-Zeros, U-Ones and U-Ignore (arXiv 1901.07031)."""


class Classes(NamedTuple):
    """How labels become fields of a batch.

    Attributes:
      names: of the classes, which are labels.
      weights: of a positive beside a negative, by class.
      uncertain: one of `UNCERTAIN`.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    uncertain: str

    def fields(self, records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """The labels of N records: `labels`, 0 or 1, and `label_weights`, both float32 (N, K).

        A weight of 0 is of a label that is not known.
        """
        present, unsure = (
            np.array([self._among(record.get(field, ())) for record in records], bool).reshape(-1, len(self.names))
            for field in ("labels", "uncertain")
        )
        if self.uncertain == "positive":
            present |= unsure
        weights = np.where(present, np.array(self.weights, np.float32), np.float32(1))
        if self.uncertain == "ignore":
            weights[unsure & ~present] = 0
        return {"labels": present.astype(np.float32), "label_weights": weights}

    def _among(self, labels: Sequence[str | bytes]) -> list[bool]:
        own = set(map(as_text, labels))
        return [name in own for name in self.names]
