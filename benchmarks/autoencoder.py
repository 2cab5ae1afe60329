"""What the further terms of an autoencoder's loss are worth: reconstructions with and without them, at equal time.

    python benchmarks/autoencoder.py --run runs/autoencoders [--data runs/cxr/data] [--seconds 480]

The autoencoder of configs/cxr_small.py learns with L1 for `--first` steps. From there it continues with L1 alone, with
SSIM besides, and with SSIM and a discriminator, for as many steps as cores compute in `--seconds`. The data are
radiographs that were prepared at 128², or, where none are given, drawn ones. Reconstructions of the test split are
measured by error, by similarity, and by their Fréchet distance from the images. What is done is not done again. Writes
benchmarks/results/autoencoder-DATE.json.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import record
from ml_collections import ConfigDict

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from jaxcxr import config as configs  # noqa: E402
from jaxcxr import interop  # noqa: E402
from jaxcxr.data.prepare import prepare  # noqa: E402
from jaxcxr.evaluation.extractors import choose_all  # noqa: E402
from jaxcxr.evaluation.features import Network  # noqa: E402
from jaxcxr.evaluation.metrics.frechet import frechet  # noqa: E402
from jaxcxr.evaluation.pictures import read_pictures  # noqa: E402
from jaxcxr.evaluation.reconstructions import measure, reconstruct  # noqa: E402
from jaxcxr.evaluation.sets import open_set  # noqa: E402
from jaxcxr.parallel.mesh import own_mesh  # noqa: E402
from jaxcxr.phantoms.tree import write_tree  # noqa: E402
from jaxcxr.training.train import train  # noqa: E402

CONFIG = ROOT / "configs" / "cxr_small.py"
PATIENTS, SIZE, SEED = 1500, 128, 8_100_001
QUIET = {"eval_every": 0, "sample_every": 0, "checkpoint_every": 0, "log_every": 5}
ARMS: dict[str, Mapping[str, float]] = {
    "L1": {},
    "L1, SSIM": {"ssim": 1.0},
    "L1, SSIM, discriminator": {"ssim": 1.0, "adversarial": 0.1},
}
PROBES = (2, 4, 24)
"""Steps of trainings that tell what a step takes: the first compiles, the others differ in steps alone."""


def prepared(run: Path) -> Path:
    """Drawn radiographs, prepared."""
    config = configs.load(Path(f"{CONFIG}:autoencoder"))
    write_tree(run / "phantoms", PATIENTS, SIZE, SEED)
    prepare(config.data, run / "phantoms", run / "data")
    return run / "data"


def stage(data: Path, changes: Mapping[str, Any]) -> ConfigDict:
    """The config of one training."""
    config = configs.load(Path(f"{CONFIG}:autoencoder"))
    config.update_from_flattened_dict({"data.path": str(data), **QUIET, **changes})
    config.objective.perceptual = ConfigDict()
    return config


def continued(data: Path, first: Path, terms: Mapping[str, float], steps: int) -> ConfigDict:
    """The config of an arm: from the first stage, half of its rate, and the terms."""
    changes = {"model.base": str(first), "steps": steps, "optimizer.learning_rate": 1e-3}
    config = stage(data, changes)
    config.model.vae = ConfigDict()
    config.objective.perceptual = ConfigDict(dict(terms))
    if "adversarial" in terms:
        config.trainable = r"(vae|discriminator)\..*"
        config.model.discriminator = ConfigDict({"width": 16})
    return config


def probed(run: Path, data: Path, first: Path) -> dict[str, float]:
    """Seconds that both cores work on a step of each arm: of the process's time, which other work does not lengthen."""
    kept = run / "seconds.json"
    if not kept.is_file():
        found = {}
        for name, terms in ARMS.items():
            spent = []
            for steps in PROBES:
                workdir = run / f"{_folder(name)}-{steps}"
                began = time.process_time()
                train(continued(data, first, terms, steps), workdir)
                spent.append(time.process_time() - began)
                shutil.rmtree(workdir)
            found[name] = (spent[2] - spent[1]) / (PROBES[2] - PROBES[1])
        kept.write_text(json.dumps(found))
    return json.loads(kept.read_text())


def _folder(name: str) -> str:
    return name.replace(", ", "-").lower()


def measured(workdir: Path, data: Path, network: Network, prepared: Any) -> dict[str, float]:
    """What the autoencoder of a workdir loses of the test split."""
    images = open_set(f"{data}:test")
    pixels = np.stack([picture.pixels for picture in read_pictures(images, SIZE)])
    made = reconstruct(interop.load(workdir, only=("vae",)), pixels)
    patients = [item.patient for item in images.items]
    rows = measure(pixels, made, patients, worst=0).rows
    found = {
        row.metric: round(row.value, 4) for row in rows if not row.group and row.metric in ("rmse", "psnr", "ssim")
    }
    features = [network.features(map(prepared, each)) for each in (pixels, made)]
    return found | {"frechet_distance": round(frechet(*features), 3), "n": len(pixels)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder for what is trained")
    parser.add_argument("--data", type=Path, help="prepared folder of 128²; default: drawn radiographs")
    parser.add_argument("--first", type=int, default=500, help="steps before the arms; default: %(default)s")
    parser.add_argument("--seconds", type=float, default=480, help="that cores work on each arm; default: %(default)s")
    args = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(args.run.absolute() / "compiled"))
    data = args.data or prepared(args.run)
    train(stage(data, {"steps": args.first}), args.run / "first")
    chosen = choose_all(["efficientnet-lite0"])[0]
    network = Network(chosen, 32, own_mesh())
    of = "radiographs" if args.data else "phantoms"
    record.write(
        "autoencoder", ["jax", "flax"], {f"{of}, before": measured(args.run / "first", data, network, chosen.prepared)}
    )
    for name, seconds in probed(args.run, data, args.run / "first").items():
        config = continued(data, args.run / "first", ARMS[name], round(args.seconds / seconds))
        train(config, args.run / _folder(name))
        cost = {"steps": config.steps, "core_seconds_a_step": round(seconds, 3)}
        found = cost | measured(args.run / _folder(name), data, network, chosen.prepared)
        record.write("autoencoder", ["jax", "flax"], {f"{of}, {name}": found})


if __name__ == "__main__":
    main()
