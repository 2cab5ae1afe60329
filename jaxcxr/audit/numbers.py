"""An audit's numbers as JSON values; nothing in them is of a patient: no text, no name of a real file, no picture."""

import math
from typing import Any

import numpy as np

from jaxcxr.audit.audit import Audit, Prompts
from jaxcxr.audit.calibrate import CONFIDENCE, Share
from jaxcxr.audit.membership import Attack
from jaxcxr.audit.similarity import PERCENTILES, Similarity
from jaxcxr.audit.verdict import CRITERIA
from jaxcxr.evaluation.tables import in_words


def as_values(found: Audit) -> dict[str, Any]:
    """What audit.json holds of an audit; a number that is not finite is null."""
    values = {
        "verdict": found.verdict.verdict,
        "reasons": found.verdict.reasons,
        "criteria": list(CRITERIA),
        "counts": found.counts,
        "size": found.size,
        "similarity": [_similarity(one) for one in found.similarities],
        "membership": [_attack(one) for one in found.attacks],
        "prompts": None if found.prompts is None else _prompts(found.prompts),
        "left_out": found.left_out,
    }
    return finite(values)


def finite(value: Any) -> Any:
    """The value with null for every number in it that is not finite."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _similarity(one: Similarity) -> dict[str, Any]:
    threshold = one.threshold
    return {
        "extractor": one.extractor,
        "digest": one.digest,
        "threshold": {
            "similarity": threshold.value,
            "rate": threshold.rate,
            "confidence": CONFIDENCE,
            "expected_rate": threshold.expected,
            "rate_interval_95": threshold.interval,
            "n": threshold.n,
        },
        "recall": {name: rate.as_dict() for name, rate in one.recalls.items()},
        "recall_mean": one.recall,
        "flagged": one.flagged.as_dict(),
        "share_of_copies": {"value": one.share.value, "interval_95": [one.share.low, one.share.high]},
        "nearer_to_training": one.exchange._asdict(),
        "nearer_to_training_as_near_as_a_copy": one.exchange_flagged._asdict(),
        "z_u": one.z_u,
        "c_t": one.c_t,
        "authenticity": one.authenticity,
        "similarity_percentiles": {"percentiles": list(PERCENTILES), **one.percentiles},
        "d1_over_d2_median": one.ratio,
        "d1_over_d2_low": one.low_ratio.as_dict(),
        "flagged_images": one.places,
        "nearest": [{"generated": place, "similarity": similarity} for place, _, similarity in one.pairs],
    }


def _attack(one: Attack) -> dict[str, Any]:
    return {
        "error": one.name,
        "auc": one.auc,
        "interval_95": [one.low, one.high],
        "true_positives_at": {f"{rate:g}": share for rate, share in one.found.items()},
        "members": one.members,
        "others": one.others,
    }


def _prompts(one: Prompts) -> dict[str, Any]:
    def summary(norms: np.ndarray) -> dict[str, Any]:
        if not len(norms):
            return {"n": 0}
        low, median, high = np.percentile(norms, [5, 50, 95]).tolist()
        return {"n": len(norms), "median": median, "percentile_5": low, "percentile_95": high}

    difference = one.difference or (None, None, None)
    return {
        "train": summary(one.train),
        "held_out": summary(one.held_out),
        "auc": one.auc,
        "interval_95": [one.low, one.high],
        "different_texts": one.texts,
        "with_marker": one.marked,
        "norm_with_marker": summary(one.with_marker),
        "norm_without_marker": summary(one.without_marker),
        "marker_adds": {"mean": difference[0], "interval_95": list(difference[1:])},
    }


def lines(found: Audit) -> list[str]:
    """The main numbers in words, a line each."""
    said = []
    for name, counts in found.counts.items():
        said.append(f"{name}: {', '.join(f'{count:,} {what}' for what, count in counts.items() if count)}")
    for one in found.similarities:
        said += _similarity_lines(one)
    for attack in found.attacks:
        at = [f", {_percent(share)} found at {100 * rate:g} % false positives" for rate, share in attack.found.items()]
        area = in_words(attack.auc, attack.low, attack.high)
        said.append(f"membership by {attack.name}: AUC {area}{''.join(at)}")
    if (about := found.prompts) is not None:
        others = f", {np.median(about.held_out):.3g} of others" if len(about.held_out) else ""
        said.append(
            f"prompts: {about.marked} of {about.texts} have ___; conditional noise {np.median(about.train):.3g} of"
            f" training prompts{others}"
        )
    said += [f"left out: {line}" for line in found.left_out]
    return [*said, f"verdict: {found.verdict.verdict}", *(f"  {reason}" for reason in found.verdict.reasons)]


def _similarity_lines(one: Similarity) -> list[str]:
    threshold, (low, high) = one.threshold, one.threshold.interval
    recalls = ", ".join(f"{name} {_percent(rate.share)}" for name, rate in one.recalls.items())
    return [
        f"{one.extractor}: threshold {threshold.value:.4g}, false alarms {_percent(threshold.expected)}"
        f" ({_percent(low)} to {_percent(high)}), by {threshold.n} held-out patients",
        f"{one.extractor}: planted copies found: {recalls}",
        f"{one.extractor}: {one.flagged.hits} of {one.flagged.total} generated images flagged; share of copies"
        f" {_estimate(one.share)}; nearer to training images p = {one.exchange_flagged.p:.2g}; C_T {one.c_t:.2f}",
    ]


def _estimate(share: Share) -> str:
    if math.isnan(share.value):
        return "cannot be estimated, as too few planted copies are found"
    return f"{_percent(share.value)} ({_percent(share.low)} to {_percent(share.high)})"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
