"""Small studies of drawn squares, which are of nobody."""

import json

import numpy as np
from PIL import Image

from jaxcxr.evaluation.sets import open_set
from jaxcxr.readers import make
from jaxcxr.readers.design import Settings
from jaxcxr.readers.key import read

SIZE = 48
FINDINGS = ("edema", "effusion", "nodule")


def pixels(draw, side=(SIZE, SIZE)):
    """A smooth picture with noise, uint8."""
    across = np.linspace(0, 3, side[1])[None] + np.linspace(0, 2, side[0])[:, None]
    return (120 + 80 * np.sin(across + draw.uniform(0, 6)) + draw.normal(0, 8, side)).clip(0, 255).astype(np.uint8)


def write_images(folder, count=24, seed=0, suffix=".png", table=True, side=(SIZE, SIZE), **more):
    """A folder of images with texts and labels; every third is healthy. `more` are columns of its table."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        name = f"PLANTED-{folder.name}-{number}{suffix}"
        Image.fromarray(pixels(draw, side)).save(folder / name)
        label = FINDINGS[number % 3] if number % 3 < 2 or number % 2 else ""
        rows.append(
            {"file_name": name, "text": f"Shows {label or 'nothing'} {number}.", "labels": [label] if label else []}
        )
        rows[-1] |= {key: value(number) for key, value in more.items()}
    if table:
        (folder / "metadata.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def settings(**changed):
    usual = {"tasks": ("real",), "count": 12, "repeats": 4, "readers": 2, "size": SIZE, "fit": "pad", "jpeg": 0}
    return Settings(**{**usual, "seed": 0, "title": "Reader study", **changed})


def make_study(folder, real=None, generated=(), out="study", one_file=False, **changed):
    """Makes a study in a folder; returns its place and its key."""
    real = real or (folder / "hospital" if (folder / "hospital").exists() else write_images(folder / "hospital"))
    generated = generated or [
        folder / "model" if (folder / "model").exists() else write_images(folder / "model", seed=1)
    ]
    sets = {real.name: (open_set(real), "real")} | {each.name: (open_set(each), "synthetic") for each in generated}
    make.make(sets, settings(**changed), folder / out, folder / f"{out}.key.json", one_file)
    return folder / out, read(folder / f"{out}.key.json")


def study_data(place):
    """What the page knows."""
    page = (place / "index.html").read_text("utf-8")
    return json.loads(page.split("const STUDY = ", 1)[1].split(";\n", 1)[0])
