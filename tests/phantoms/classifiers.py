"""Classifiers that know nothing, for tests of what is made of their answers."""

import numpy as np
from flax import nnx

from jaxcxr.models.named import named_parameters
from jaxcxr.phantoms.classifier import About, Classifier, Table
from jaxcxr.phantoms.networks import NETWORKS
from jaxcxr.phantoms.scores import Rate, Score
from jaxcxr.phantoms.truth import CLASSES, GRADES


def untrained(network="pooled", sizes=("64", "128")) -> Classifier:
    """A classifier of first weights, with a table of made-up counts."""
    module = NETWORKS[network](nnx.Rngs(0))
    parameters = {name: np.asarray(value, np.float16) for name, value in named_parameters(module).items()}
    counts = {name: Score(Rate(495 - index, 500), Rate(4990, 5000)) for index, name in enumerate(CLASSES)}
    table = Table(counts, dict.fromkeys(GRADES, Rate(90, 100)))
    thresholds = dict.fromkeys(sizes, (0.0,) * len(CLASSES))
    about = About(network, CLASSES, thresholds, dict.fromkeys(sizes, table), {"network": network, "seed": 1})
    return Classifier("untrained", about, parameters)
