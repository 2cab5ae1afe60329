"""Small runs of a classifier, on the phantoms of `runs.data` or on pictures drawn for it alone."""

import functools
import json
import tempfile
from pathlib import Path

from ml_collections import ConfigDict
from PIL import Image

from jaxcxr import config as configs
from jaxcxr.data.prepare import prepare
from jaxcxr.phantoms.generator import KINDS
from jaxcxr.phantoms.studies import Phantom, phantom
from tests.training import runs

CLASSES = ("Cardiomegaly", "Effusion")
SIDE = 64

MESHES = [
    ((2, 1, 1), "replicated", {}),
    ((4, 1, 1), "replicated", {}),
    ((1, 2, 1), "fsdp", {}),
    ((2, 1, 2), "fsdp+tensor", {}),
]


def config_of(architecture: str, **changes) -> ConfigDict:
    """A run of six steps on `runs.data`."""
    config = configs.load(runs.ROOT / "configs" / "classifier.py")
    own = {
        "model.classifier.architecture": architecture,
        "model.classifier.image_size": 0,
        "augment.rotation": 0.0,
        "augment.translation": 0.0,
        "ema_decay": 0.5,
        "stopping.patience": 0,
        "optimizer.learning_rate": 1e-2,
        # Adam's first updates are of the gradient's sign, which rounding turns where it is next to nothing.
        "optimizer.eps": 1e-3,
    }
    return runs.small(config, own | changes)


def meshes_of(architecture: str):
    """As `tests.parallel.meshes` takes it."""
    changes = {"batch_size": 8, "optimizer.warmup_steps": 0}
    if architecture == "small":
        return config_of(architecture, **changes), [*MESHES, ((2, 1, 1), "replicated", {"accumulation": 2})]
    # Batch norms of few pixels magnify rounding; so do Adam's first updates where gradients are larger than epsilon.
    changes |= {"model.classifier.image_size": 32, "optimizer.eps": 1.0}
    return config_of(architecture, **changes), MESHES


def labels_of(one: Phantom) -> list[str]:
    kinds = {finding.kind.capitalize() for finding in one.findings}
    return [name for name in CLASSES if name in kinds]


def drawn(seed: int, count: int) -> list[Phantom]:
    return [phantom(seed, number, SIDE, KINDS) for number in range(count)]


def write_folder(folder: Path, rows: list[tuple[Phantom, str, list[str]]]) -> Path:
    """An image folder of phantoms, with a split and labels each."""
    folder.mkdir(parents=True)
    lines = []
    for number, (one, split, labels) in enumerate(rows):
        Image.fromarray(one.image).save(folder / f"{number}.png")
        row = {"file_name": f"{number}.png", "text": "A chest radiograph.", "split": split, "view": "PA"}
        lines.append(json.dumps(row | {"labels": labels}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


def prepared(folder: Path, out: Path) -> Path:
    data = configs.load(runs.ROOT / "configs" / "classifier.py").data
    data.size, data.tokenizer_vocab = SIDE, 600
    prepare(data, folder, out)
    return out


@functools.cache
def pictures() -> Path:
    """480 prepared phantoms with findings of every kind, 80 of them for validation, made once."""
    folder = Path(tempfile.mkdtemp(prefix="jaxcxr-data-"))
    splits = ["validate" if number % 6 == 0 else "train" for number in range(480)]
    rows = [(one, split, labels_of(one)) for one, split in zip(drawn(11, 480), splits, strict=True)]
    return prepared(write_folder(folder / "pictures", rows), folder / "data")
