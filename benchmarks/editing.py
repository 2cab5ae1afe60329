"""What editing does to drawn radiographs, whose truth is known: a share of pictures for each way of editing.

    python benchmarks/editing.py --checkpoint runs/phantom/diffusion [--count 50]

Inpainting and masked editing paint an effusion at the base of the left lung into phantoms without findings; a
composition asks for two findings; an interpolation goes from no effusion to a large one. The classifier that comes with
the package says what the pictures show. Writes benchmarks/results/editing-DATE.json, and with --picture FILE.png a
sheet with rows of three: the phantom, inpainted, and edited.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import record
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

import jaxcxr  # noqa: E402
from jaxcxr.models.vae import normalize, split_moments  # noqa: E402
from jaxcxr.phantoms.classifier import fit_input, predict, read, see  # noqa: E402
from jaxcxr.phantoms.generator import Finding  # noqa: E402
from jaxcxr.phantoms.scores import Rate  # noqa: E402
from jaxcxr.phantoms.studies import Phantom, phantom  # noqa: E402
from jaxcxr.phantoms.truth import CLASSES  # noqa: E402

EFFUSION = Finding("effusion", "left", size="large")
PROMPT = "Large left pleural effusion."
SEED = 8_000_009
BOTH = {"left effusion": "Large left pleural effusion.", "cardiomegaly": "Severe cardiomegaly."}
STEPS_ON_THE_WAY = 7


def masked(one: Phantom) -> np.ndarray:
    """Where a large effusion would lie in this patient, as a box; bool (H, W)."""
    rows, columns = np.nonzero(one.with_findings([EFFUSION]).masks[0])
    mask = np.zeros(one.image.shape, bool)
    mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return mask


def reconstructed(pipe, images: np.ndarray) -> np.ndarray:
    """What the autoencoder alone makes of images, float32 (N, H, W) in [0, 255]."""
    vae = pipe.networks.vae
    mean, _ = split_moments(vae.encode(normalize(images[..., None], vae.config.in_channels)))
    return np.clip(np.asarray(vae.decode(mean))[..., 0] / 2 + 0.5, 0, 1) * 255


def outside(edited: np.ndarray, images: np.ndarray, masks: np.ndarray, pipe) -> float:
    """The share of pixels outside the masks, less a margin of two latents, within 4 gray levels of reconstruction."""
    factor = pipe.networks.vae.config.vae_scale_factor
    margin = 2 * factor
    padded = np.pad(masks, ((0, 0), (margin, margin), (margin, margin)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * margin + 1, 2 * margin + 1), axis=(1, 2))
    kept = ~windows.any((-1, -2))
    return float((np.abs(edited - reconstructed(pipe, images)) <= 4)[kept].mean())


def shows(classifier, pictures: np.ndarray, *names: str) -> list[bool]:
    """Whether each picture, float32 (N, H, W) in [0, 255], shows all of these classes."""
    seen = see(classifier, np.round(pictures).astype(np.uint8)).present
    return [all(row[CLASSES.index(name)] for name in names) for row in seen]


def rate(found: list[bool]) -> dict:
    return Rate(sum(found), len(found)).as_dict()


def edits(pipe, classifier, count: int) -> tuple[dict, np.ndarray]:
    """Inpainting and masked editing, and a sheet of both."""
    size = pipe.networks.vae.config.sample_size
    normal = [phantom(SEED, index, size, kinds=()) for index in range(count)]
    images, masks = np.stack([one.image for one in normal]), np.stack([masked(one) for one in normal])
    results, sheet = {}, [images[:8].astype(np.float32)]
    for name, how, options in (
        ("inpainting", "mask", {"guidance": 4.0, "steps": 25}),
        ("masked_editing", "edit_mask", {"guidance": 7.0, "steps": 50, "strength": 0.8, "sampler": "ddim"}),
    ):
        rows = [{"prompt": PROMPT, "image": i, how: m} for i, m in zip(images, masks, strict=True)]
        drawn = pipe(rows, output_type="np", seed=1, **options)[..., 0] * 255
        sheet.append(drawn[:8])
        results[name] = {
            "shown": rate(shows(classifier, drawn, "left effusion")),
            "right_effusion": rate(shows(classifier, drawn, "right effusion")),
            "kept_outside": outside(drawn, images, masks, pipe),
            **options,
        }
    sheet = np.concatenate([np.concatenate(list(row), 1) for row in sheet])
    return results, np.round(sheet).astype(np.uint8)


def composition(pipe, classifier, count: int) -> dict:
    rows = [{"compose": [{"prompt": prompt} for prompt in BOTH.values()]}] * count
    drawn = pipe(rows, output_type="np", seed=2, guidance=3.0, steps=25)[..., 0] * 255
    return {"shown": rate(shows(classifier, drawn, *BOTH)), "of": list(BOTH)}


def interpolation(pipe, classifier, count: int) -> dict:
    """How often the classifier's score of the left effusion never falls on the way from none to a large one."""
    way = np.linspace(0, 1, STEPS_ON_THE_WAY)
    monotone, shown = [], []
    for number in range(count):
        rows = [
            {"prompt": "No pleural effusion.", "interpolate": {"prompt": PROMPT, "t": float(t)}, "seed": number}
            for t in way
        ]
        drawn = np.round(pipe(rows, output_type="np", guidance=3.0, steps=25)[..., 0] * 255).astype(np.uint8)
        inputs = fit_input(drawn, classifier.reads_at(drawn.shape[1]))
        logits = predict(classifier.about.network, classifier.parameters, inputs)[:, CLASSES.index("left effusion")]
        score = 1 / (1 + np.exp(-logits))
        monotone.append(bool((np.diff(score) >= -0.01).all()))
        shown.append(shows(classifier, drawn[-1:].astype(np.float32), "left effusion")[0])
    return {"monotone": rate(monotone), "shown_at_the_end": rate(shown), "pictures": STEPS_ON_THE_WAY}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    pipe, classifier = jaxcxr.load(args.checkpoint), read("first")
    results, sheet = edits(pipe, classifier, args.count)
    results["composition"] = composition(pipe, classifier, args.count)
    results["interpolation"] = interpolation(pipe, classifier, args.count)
    if args.picture:
        Image.fromarray(sheet).save(args.picture)
    record.write("editing", ["jax", "flax", "numpy"], {f"{args.checkpoint}, {args.count} each": results})


if __name__ == "__main__":
    main()
