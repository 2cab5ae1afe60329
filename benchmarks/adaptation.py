"""What each way to adapt a base learns from a few drawn radiographs, and what the base forgets over it.

    python benchmarks/adaptation.py --run runs/adaptation [--arms "u-net; lora"] [--seeds 3] [--count 200]

From `phantom-no-effusion`, on 5 normal radiographs and 5 with an effusion: the U-Net, the same with prior preservation,
and LoRA. From `phantom-unnamed` and from `phantom`, textual inversion with 1, 8 and 64 vectors on 10, 50 and 100
radiographs with an effusion. The classifier that comes with the package says what the pictures show. What is done is
not done again: run it again to resume, or name another --run after a change here. Writes
benchmarks/results/adaptation-DATE.json.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import record
from ml_collections import ConfigDict
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

import jaxcxr  # noqa: E402
from jaxcxr import bases, files  # noqa: E402
from jaxcxr import config as configs  # noqa: E402
from jaxcxr.data.prepare import prepare  # noqa: E402
from jaxcxr.data.settings import of_pictures  # noqa: E402
from jaxcxr.interop.orbax import read_learnt  # noqa: E402
from jaxcxr.phantoms.classifier import Classifier, read, see  # noqa: E402
from jaxcxr.phantoms.generator import Finding  # noqa: E402
from jaxcxr.phantoms.prompts import parse_asked, prompt_rows  # noqa: E402
from jaxcxr.phantoms.scores import Rate  # noqa: E402
from jaxcxr.phantoms.studies import phantom  # noqa: E402
from jaxcxr.phantoms.truth import CLASSES, classes_of  # noqa: E402
from jaxcxr.training.train import train  # noqa: E402

SIZE = 64
SEED = 7_000_003  # of the radiographs that are learnt, none of which a base has seen
NORMAL, EFFUSION = "Frontal chest radiograph.", "Frontal chest radiograph with a pleural effusion."
WORD = "<effusion>"
OTHERS = "severe cardiomegaly, large pneumothorax, mid consolidation, severe edema, pacemaker"
DRAWN = {"steps": 12, "sampler": "dpm++", "guidance": 3.0}
TUNED = {"batch_size": 8, "steps": 300, "ema_decay": 0.98, "optimizer.warmup_steps": 20, "dtype": "float32"}
PRIOR = {"prior.prompt": NORMAL, "prior.count": 100, "samples.steps": 25, "samples.guidance": 3.0}


class Arm(NamedTuple):
    """One way to adapt a base.

    Attributes:
      base: the base.
      config: of `configs/`; empty: the base is left as it is.
      changes: of the config.
      normal: how many normal radiographs are learnt.
      effusions: how many with an effusion.
      prompt: what the latter are learnt by, and asked for.
    """

    base: str
    config: str = ""
    changes: Mapping[str, Any] = {}
    normal: int = 5
    effusions: int = 5
    prompt: str = EFFUSION


def arms() -> dict[str, Arm]:
    """All of them, by name."""
    unet = {**TUNED, "optimizer.learning_rate": 3e-4, "trainable": r"unet\..*", "objective.caption_dropout": 0.0}
    found = {
        "untouched": Arm("phantom-no-effusion"),
        "u-net": Arm("phantom-no-effusion", "finetune", unet),
        "u-net, prior": Arm("phantom-no-effusion", "dreambooth", unet | PRIOR),
        "lora": Arm("phantom-no-effusion", "lora", TUNED | {"optimizer.learning_rate": 3e-3}),
    }
    for base in ("phantom", "phantom-unnamed"):
        found[f"{base}, untouched"] = Arm(base, prompt=NORMAL)
        for images in (10, 50, 100):
            for vectors in (1, 8, 64):
                words = {"textual_inversion.tokens": ((WORD, vectors),), "steps": 400}
                prompt = f"Frontal chest radiograph with {WORD}."
                found[f"{base}, {vectors} vectors, {images} images"] = Arm(
                    base, "textual_inversion", words, 0, images, prompt
                )
    return found


def write_images(folder: Path, arm: Arm, seed: int) -> Path:
    """The arm's few radiographs, prepared."""
    if (folder / "data").is_dir():
        return folder / "data"
    shutil.rmtree(folder / "images", ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    rows = []
    for index in range(arm.normal + arm.effusions):
        one = phantom(SEED + seed, index, SIZE, kinds=())
        if index >= arm.normal:
            side, size = ("left", "right", "bilateral")[index % 3], ("moderate", "large")[index % 2]
            one = one.with_findings([Finding("effusion", side, size=size)])
        Image.fromarray(one.image).save(folder / "images" / f"{index:03}.png")
        rows.append({"file_name": f"{index:03}.png", "text": arm.prompt if index >= arm.normal else NORMAL})
    with files.new_file(folder / "images" / "metadata.jsonl") as file:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(of_pictures(SIZE, str(bases.find(arm.base) / "tokenizer")), folder / "images", folder / "data")
    return folder / "data"


def trained(folder: Path, arm: Arm, seed: int) -> dict[str, Any]:
    """Trains the arm; the seconds that it took, and the bytes of what has learnt."""
    data, began = write_images(folder, arm, seed), time.perf_counter()
    config: ConfigDict = configs.load(ROOT / "configs" / f"{arm.config}.py")
    common = {"model.base": arm.base, "data.path": str(data), "data.size": SIZE, "seed": seed}
    plain = {"data.views": (), "data.labels": (), "data.prompts": ("{report}",)}
    quiet = {"eval_every": 0, "sample_every": 0, "checkpoint_every": 0}
    config.update_from_flattened_dict({**common, **plain, **quiet, **arm.changes})
    if config.prior.prompt:
        config.prior.path = str(folder / "prior")
    train(config, folder / "run")
    learnt = read_learnt(folder / "run")[1]
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "bytes": sum(tensor.nbytes for tensor in learnt.values()),
    }


def drawn(pipe: Any, rows: list[dict[str, Any]], seed: int) -> np.ndarray:
    """Pictures, uint8 (N, H, W), the same noise for the same row and seed."""
    pictures = pipe(rows, output_type="np", seed=seed, batch_size=50, **DRAWN)
    return np.round(pictures[..., 0] * 255).astype(np.uint8)


def measured(pipe: Any, classifier: Classifier, arm: Arm, seed: int, count: int) -> dict[str, Any]:
    """How many pictures have an effusion, asked for and not; and by row, whether another finding is there."""
    either = [CLASSES.index(f"{side} effusion") for side in ("right", "left")]
    asked, normal = (
        see(classifier, drawn(pipe, [{"prompt": prompt}] * count, seed)).present[:, either].any(1)
        for prompt in (arm.prompt, NORMAL)
    )
    found = {"asked": int(asked.sum()), "normal": int(normal.sum())}
    if arm.base != "phantom-no-effusion":  # a word changes no prompt without it
        return found
    rows = prompt_rows(count, seed, parse_asked(OTHERS))
    seen = see(classifier, drawn(pipe, rows, seed)).present
    wanted = [[CLASSES.index(name) for name in classes_of(Finding(**row["asked"][0]))] for row in rows]
    return found | {"others": [bool(seen[i, w].all()) for i, w in enumerate(wanted)]}


def one(folder: Path, arm: Arm, seed: int, count: int, classifier: Classifier) -> dict[str, Any]:
    """The arm's figures at one seed, from the file that they are kept in where there is one."""
    file = folder / f"found-{count}.json"
    if file.is_file():
        return json.loads(file.read_text())
    found = trained(folder, arm, seed) if arm.config else {"seconds": 0.0, "bytes": 0}
    pipe = jaxcxr.load(folder / "run" if arm.config else arm.base)
    found |= measured(pipe, classifier, arm, seed, count)
    folder.mkdir(parents=True, exist_ok=True)
    with files.new_file(file) as new:
        new.write_text(json.dumps(found))
    return found


def summed(runs: list[dict[str, Any]], before: list[dict[str, Any]] | None, count: int) -> dict[str, Any]:
    """The figures of an arm's seeds together; `before` are those of the base as it was."""
    total = count * len(runs)
    result = {
        "effusion_when_asked": Rate(sum(run["asked"] for run in runs), total).as_dict(),
        "by_seed": [run["asked"] / count for run in runs],
        "effusion_when_not_asked": Rate(sum(run["normal"] for run in runs), total).as_dict(),
        "seconds": float(np.median([run["seconds"] for run in runs])),
        "bytes": runs[0]["bytes"],
    }
    if before and "others" in runs[0]:
        # Of what the base drew as asked, with the same noise, how much is still drawn.
        still = [
            a
            for run, old in zip(runs, before, strict=True)
            for a, b in zip(run["others"], old["others"], strict=True)
            if b
        ]
        result["others_still_drawn"] = Rate(sum(still), len(still)).as_dict()
    return result


def chosen(names: str) -> dict[str, Arm]:
    """The arms of these names; all of them without any."""
    known, wanted = arms(), [name.strip() for name in names.split(";") if name.strip()]
    if unknown := [name for name in wanted if name not in known]:
        sys.exit(f"--arms: no arm {unknown[0]!r}; there are {'; '.join(known)}")
    return {name: known[name] for name in wanted or known}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder for what is trained")
    parser.add_argument("--arms", default="", help="names with semicolons between them; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=200, help="pictures of each kind, for each arm and seed")
    args = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(args.run.absolute() / "compiled"))
    classifier = read("first")

    def runs_of(name: str, arm: Arm) -> list[dict[str, Any]]:
        folders = [args.run / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}" for seed in range(args.seeds)]
        return [one(folder, arm, seed, args.count, classifier) for seed, folder in enumerate(folders)]

    for name, arm in chosen(args.arms).items():
        before = runs_of("untouched", arms()["untouched"]) if arm.base == "phantom-no-effusion" else None
        found = summed(runs_of(name, arm), before, args.count)
        record.write("adaptation", ["jax", "flax"], {f"{name}, {args.seeds} seeds, {args.count} pictures": found})


if __name__ == "__main__":
    main()
