"""How many different images there are in a set, by features."""

import numpy as np
from numpy.typing import ArrayLike

from jaxcxr.errors import UserError
from jaxcxr.evaluation.metrics.features import as_features


def vendi(features: ArrayLike) -> float:
    """The exponential of the entropy of the eigenvalues of K / n, where K has the cosines between features (N, D)
    (Friedman and Dieng 2023, arXiv 2210.02410): 1 for n equal images, n for n without anything in common.

    Compare it at equal n alone.

    Raises:
      UserError: there is no row, or one is zero or has a number that is not finite.
    """
    rows = as_features("", features)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not len(rows) or not lengths.all():
        raise UserError("features: give one image or more, and none whose features are all zero")
    rows = rows / lengths
    # The products of rows and those of columns have the same eigenvalues but for zeros.
    products = rows.T @ rows if len(rows) > rows.shape[1] else rows @ rows.T
    shares = np.linalg.eigvalsh(products / len(rows))
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))
