"""Metrics of sets of images: pure functions of arrays, and the table of those that compare sets of features."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from jaxcxr.evaluation.metrics import diversity, frechet, kernel, neighbours

Compute = Callable[[np.ndarray, np.ndarray, int], Mapping[str, float]]
"""(real features (N, D), generated ones (M, D), seed) -> values by name."""


class Metric(NamedTuple):
    """An entry of `METRICS`.

    Attributes:
      least: images that it needs of each set.
      better: where good values lie, by name: low, high, or real, which is near the value of real images.
      compute: its values, by the same names.
    """

    least: int
    better: Mapping[str, str]
    compute: Compute


METRICS: dict[str, Metric] = {
    "fd": Metric(2, {"fd": "low"}, lambda real, generated, seed: {"fd": frechet.frechet(real, generated)}),
    "fd_infinity": Metric(
        20,
        {"fd_infinity": "low"},
        lambda real, generated, seed: {"fd_infinity": frechet.frechet_infinity(real, generated, seed)},
    ),
    "kid": Metric(2, {"kid": "low"}, lambda real, generated, seed: {"kid": kernel.kid(real, generated)}),
    "kid_of_subsets": Metric(
        1000,
        {"kid_of_subsets": "low"},
        lambda real, generated, seed: {"kid_of_subsets": kernel.kid_of_subsets(real, generated, seed=2020 + seed)[0]},
    ),
    "prdc": Metric(
        6,
        dict.fromkeys(("precision", "recall", "density", "coverage"), "high"),
        lambda real, generated, seed: neighbours.prdc(real, generated)._asdict(),
    ),
    "authenticity": Metric(
        2,
        {"authenticity": "real"},
        lambda real, generated, seed: {"authenticity": neighbours.authenticity(real, generated)},
    ),
    "vendi": Metric(1, {"vendi": "real"}, lambda real, generated, seed: {"vendi": diversity.vendi(generated)}),
}
BETTER: dict[str, str] = {
    **{name: where for metric in METRICS.values() for name, where in metric.better.items()},
    **dict.fromkeys(("ssim_within", "ms_ssim_within"), "real"),
    **dict.fromkeys(("clip_score", "alignment", "recall_at_1", "recall_at_5", "recall_at_10"), "high"),
    "median_rank": "low",
    **dict.fromkeys(
        ("shows_what_was_asked", "sensitivity", "specificity", "grade", "findings_kept", "pearson_kept"), "high"
    ),
    **dict.fromkeys(("auroc", "average_precision", "accuracy", "f1", "pearson"), "high"),
    **dict.fromkeys(("expected_calibration_error", "brier"), "low"),
    **dict.fromkeys(("pearson_pooled", "probe_auroc", "probe_gain", "auroc_gain", "pearson_kept"), "high"),
    **dict.fromkeys(("validation_auroc", "validation_average_precision"), "high"),
    **dict.fromkeys(("vocabulary_cosine", "vocabulary_cosine_centred"), "high"),
    "underdiagnosis_gap": "low",
    **dict.fromkeys(("rmse", "rmse_share", "lpips_alex", "lpips_vgg"), "low"),
    **dict.fromkeys(("psnr", "ssim", "ms_ssim"), "high"),
}
"""Where good values lie, by the value's name, or the part of it before a stroke."""
