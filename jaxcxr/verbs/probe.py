"""Say what text encoders tell of findings: a linear probe of their states of reports, for each label of the reports.

The first checkpoint is what the others are compared with, such as a base and what was tuned from it. Writes
OUT/probe.json, .csv and .tex: AUROC of a logistic regression by label, learnt from the split `train` and tested on
`test`, or `validate` where that is empty; the gain over the first checkpoint, with an interval by patient of the
difference; and how far the states of the first one's vocabulary have moved, which is what tuning has forgotten.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLE = "jaxcxr probe --checkpoint stable-diffusion-v1-4 runs/tuned --data runs/data --out runs/probe"
_MOST = 4000  # reports of a split, unless --count says more
_WORDS = 1000  # of the vocabulary
_LEAST = 20  # reports with a label, and without it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's options."""
    parser.add_argument(
        "--checkpoint", required=True, nargs="+", type=Path, help="checkpoints that have a text encoder, the base first"
    )
    parser.add_argument("--data", required=True, help="prepared folder whose records have reports and labels")
    parser.add_argument("--out", required=True, type=Path, help="folder for the numbers")
    parser.add_argument("--count", type=int, default=_MOST, help="reports of each split at most; default: %(default)s")


def run(args: argparse.Namespace) -> None:
    """Probes; raises UserError on a user's mistake."""
    from jaxcxr.errors import UserError
    from jaxcxr.evaluation.evaluate import some
    from jaxcxr.evaluation.probe import Texts, probe
    from jaxcxr.evaluation.sets import labelled, open_set
    from jaxcxr.evaluation.tables import check_own

    names = [path.name for path in args.checkpoint]
    if args.count < 2 * _LEAST:
        raise UserError(f"--count {args.count}: may be {2 * _LEAST} or more")
    if len({*names}) < len(names):
        raise UserError(f"--checkpoint: two are called {max(names, key=names.count)}; rename one's folder")
    check_own(args.out, "probe.json")
    splits = [some(open_set(place), args.count, seed=0).items for place in (f"{args.data}:train", args.data)]
    labels = _labels(splits)
    if not labels:
        raise UserError(f"{args.data}: no label is in {_LEAST} reports of each split, and not in {_LEAST} others")
    states: list[dict[str, np.ndarray]] = [{}, {}]
    rows: list[Any] = []
    words: list[str] = []
    first: dict[str, Any] = {}
    for name, path in zip(names, args.checkpoint, strict=True):
        encode, tokenizer = _encoder(path)
        for own, items in zip(states, splits, strict=True):
            own[name] = encode([item.text for item in items])
        words = words or _vocabulary(tokenizer)
        first = first or {"tokenizer": _digest(tokenizer), "states": encode(words)}
        if name != names[0] and _digest(tokenizer) == first["tokenizer"]:
            rows += _forgotten(name, first["states"], encode(words))
    train, test = (
        Texts(own, labelled(items, labels), np.array([item.patient for item in items]))
        for own, items in zip(states, splits, strict=True)
    )
    found, left_out = probe(train, test, labels)
    _write(args, found + rows, left_out)


def _labels(splits: Sequence[Sequence[Any]]) -> list[str]:
    """The labels that reports of each split have, and do not have, often enough."""
    shared: set[str] | None = None
    for items in splits:
        counts: dict[str, int] = {}
        for item in items:
            for label in item.groups.get("label", ()):
                counts[label] = counts.get(label, 0) + 1
        usual = {label for label, count in counts.items() if _LEAST <= count <= len(items) - _LEAST}
        shared = usual if shared is None else shared & usual
    return sorted(shared or ())


def _encoder(path: Path) -> tuple[Any, Any]:
    """What makes states of texts, (N, D): the mean over the places that a text takes; and the tokenizer."""
    import jax.numpy as jnp

    from jaxcxr import interop
    from jaxcxr.data import tokens
    from jaxcxr.errors import UserError
    from jaxcxr.evaluation.batches import InBatches

    pipeline = interop.load(path, only=("text_encoder", "tokenizer"))
    if "text_encoder" not in pipeline.networks:
        raise UserError(f"{path}: has no text_encoder to probe")
    tokenizer, length = pipeline.tokenizer, tokens.length(pipeline.tokenizer)

    def compute(weights: Any, ids: Any, taken: Any) -> Any:
        states = pipeline.with_parameters(weights).text_encoder(ids).astype(jnp.float32)
        there = jnp.arange(ids.shape[1]) < taken[:, None]
        return (states * there[..., None]).sum(axis=1) / taken[:, None]

    compiled = InBatches(compute, pipeline.parameters(), 64)

    def encode(texts: Sequence[str]) -> np.ndarray:
        taken = np.array([min(length, tokens.count(tokenizer, text)) for text in texts], np.int32)
        return np.concatenate([*compiled(tokens.encode(tokenizer, texts, length), taken)])

    return encode, tokenizer


def _digest(tokenizer: Any) -> str:
    from jaxcxr.data import tokens

    return tokens.digest(tokenizer)


def _vocabulary(tokenizer: Any) -> list[str]:
    """Words of the vocabulary, drawn at random: whole ones of letters alone."""
    whole = [name.removesuffix("</w>").lstrip("Ġ") for name in tokenizer.get_vocab()]
    found = sorted({word for word in whole if word.isalpha() and len(word) > 2})
    return [found[place] for place in np.sort(np.random.default_rng(0).permutation(len(found))[:_WORDS])]


def _forgotten(name: str, base: np.ndarray, tuned: np.ndarray) -> list[Any]:
    from jaxcxr.evaluation.comparison import Row
    from jaxcxr.evaluation.probe import vocabulary_kept

    kept, none = vocabulary_kept(base, tuned), (None, None, None, None, None)
    values = {"vocabulary_cosine": kept.cosine, "vocabulary_cosine_centred": kept.centred}
    return [Row(name, metric, "text_encoder", "", value, *none, len(base)) for metric, value in values.items()]


def _write(args: argparse.Namespace, rows: list, left_out: list[str]) -> None:
    from jaxcxr.evaluation import tables

    settings = {"checkpoints": [str(path) for path in args.checkpoint], "data": args.data, "count": args.count}
    tables.write(args.out, "probe", rows, {"left_out": left_out, "settings": settings})
    for row in (row for row in rows if not row.group):
        print(f"{row.set}: {row.metric} {tables.in_words(row.value, row.low, row.high)}, n = {row.n}")
    for line in left_out:
        print(f"left out: {line}")
    print(f"numbers: {args.out / 'probe.json'}")
