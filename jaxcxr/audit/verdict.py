"""What an audit concludes, by stated criteria."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxcxr.audit.membership import Attack
from jaxcxr.audit.similarity import Similarity

P = 0.01
LEAST_RECALL = 0.5
LEAST_AUC = 0.6
CRITERIA = (
    f"Copies: by some extractor, the 95 % interval of the share of copies lies above 0, and the images that are as near"
    f" as a copy lie nearer to training images than to held-out ones (permutation test by patient, p < {P:g}).",
    f"Membership: of the loss or of SecMI, the 95 % interval of the AUC lies above {LEAST_AUC:g}.",
    f"Inconclusive: nothing is flagged, and no extractor finds {100 * LEAST_RECALL:.0f} % of the planted copies.",
)
FLAGGED, CLEAR, INCONCLUSIVE = "flagged", "not flagged", "inconclusive"


class Verdict(NamedTuple):
    """The conclusion and why, a line each."""

    verdict: str
    reasons: list[str]


def conclude(similarities: Sequence[Similarity], attacks: Sequence[Attack] = ()) -> Verdict:
    """The verdict by `CRITERIA`."""
    flagged = [_copies_line(one) for one in similarities if copies_found(one)]
    flagged += [
        f"{one.name}: members differ from others with AUC {one.auc:.3f} ({one.low:.3f} to {one.high:.3f})"
        for one in attacks
        if one.low > LEAST_AUC
    ]
    if flagged:
        return Verdict(FLAGGED, flagged)
    able = [one for one in similarities if one.recall >= LEAST_RECALL]
    if not able:
        lines = [f"{one.extractor}: finds only {100 * one.recall:.0f} % of planted copies" for one in similarities]
        return Verdict(INCONCLUSIVE, lines or ["no extractor was used"])
    lines = [
        f"{one.extractor}: finds {100 * one.recall:.0f} % of planted copies; copies are {_percent(one)}; nearer to"
        f" training images with p = {one.exchange_flagged.p:.2g}"
        for one in able
    ]
    return Verdict(CLEAR, lines)


def copies_found(one: Similarity) -> bool:
    """Whether an extractor finds copies by `CRITERIA`."""
    return one.share.low > 0 and one.exchange_flagged.p < P


def _copies_line(one: Similarity) -> str:
    found = one.exchange_flagged
    return (
        f"{one.extractor}: {one.flagged.hits} of {one.flagged.total} generated images are flagged; copies are"
        f" {_percent(one)}; {found.nearer} of {found.total} that are as near as a copy lie nearer to training images,"
        f" {100 * found.chance:.0f} % of them would by chance (p = {found.p:.2g})"
    )


def _percent(one: Similarity) -> str:
    share = one.share
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f} %)"
