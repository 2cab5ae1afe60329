"""What few steps, a ControlNet and a U-Net of inpainting do on drawn radiographs, beside the base that they begin with.

    python benchmarks/conditions.py --run runs/conditions [--base phantom] [--studies "controlnet; inpainting"]

Few steps: pictures of 4 steps of a consistency model, distilled from the base, beside 25 and 4 steps of DDIM.
ControlNet: a prompt names a finding and not its side; the masks of a phantom that no training has seen say where it
lies. Inpainting: a finding is painted into such a phantom without one, by the base and by a U-Net that sees mask and
image. The classifier that comes with the package says what pictures show. What is done is not done again. Writes
benchmarks/results/conditions-DATE.json.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import record
from PIL import Image
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

import jaxcxr  # noqa: E402
from jaxcxr import bases  # noqa: E402
from jaxcxr import config as configs  # noqa: E402
from jaxcxr.cache import cache  # noqa: E402
from jaxcxr.data.prepare import prepare  # noqa: E402
from jaxcxr.data.settings import of_pictures  # noqa: E402
from jaxcxr.phantoms.classifier import read, see  # noqa: E402
from jaxcxr.phantoms.generator import Finding  # noqa: E402
from jaxcxr.phantoms.prompts import ask, parse_asked, prompt_rows, singles  # noqa: E402
from jaxcxr.phantoms.scores import Rate  # noqa: E402
from jaxcxr.phantoms.studies import Phantom, phantom  # noqa: E402
from jaxcxr.phantoms.tree import write_tree  # noqa: E402
from jaxcxr.phantoms.truth import CLASSES, SIDES, classes_of, name_of  # noqa: E402
from jaxcxr.training.train import train  # noqa: E402

SIZE, PATIENTS, SEED, HELD_OUT = 64, 4000, 8_000_003, 8_000_009
PREVALENCE = {"cardiomegaly": 0.2, "pneumothorax": 0.25, "consolidation": 0.25, "nodule": 0.3, "edema": 0.1}
PREVALENCE |= {"left effusion": 0.12, "right effusion": 0.12, "bilateral effusion": 0.05, "device": 0.5}
DRAWN = {"steps": 25, "sampler": "ddim", "guidance": 3.0}
QUIET = {"eval_every": 0, "sample_every": 0, "checkpoint_every": 500, "dtype": "float32"}
SIDED = "effusion, pneumothorax, consolidation, nodule"
NEAR = 4.0
"""Pixels: a nodule lies where its mask says if its centre is as near as this."""


def prepared(run: Path, base: str) -> Path:
    """Drawn patients with pictures of where things are, prepared."""
    write_tree(run / "phantoms", PATIENTS, SIZE, SEED, masks=True, prevalence=PREVALENCE)
    data = of_pictures(SIZE, str(bases.find(base) / "tokenizer"))
    prepare(data, run / "phantoms", run / "data")
    return run / "data"


def trained(run: Path, base: str, name: str, changes: Mapping[str, Any], cached: bool) -> Path:
    """The workdir of `configs/NAME.py` from the base, trained if it is not yet."""
    config = configs.load(ROOT / "configs" / f"{name}.py")
    common = {"model.base": base, "data.path": str(prepared(run, base)), "data.size": SIZE, "data.views": ()}
    config.update_from_flattened_dict({**common, **QUIET, **changes})
    if cached:
        cache(config, run / "cache")
        config.data.cache = str(run / "cache")
    began = time.perf_counter()
    train(config, run / name)
    print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return run / name


def drawn(pipe: Any, rows: list[dict[str, Any]], **how: Any) -> np.ndarray:
    """Pictures, uint8 (N, H, W), the same noise for the same row."""
    return np.round(pipe(rows, output_type="np", batch_size=70, **DRAWN | how).mean(-1) * 255).astype(np.uint8)


def shown(pictures: np.ndarray, findings: list[Finding]) -> np.ndarray:
    """Whether each picture shows its finding, bool (N,)."""
    seen = see(read("first"), pictures).present
    wanted = [[CLASSES.index(name) for name in classes_of(finding)] for finding in findings]
    return np.array([seen[place, each].all() for place, each in enumerate(wanted)])


def by_name(right: np.ndarray, findings: list[Finding]) -> dict[str, Any]:
    """The rates of all findings and of each kind of them."""
    names = np.array([name_of(finding) for finding in findings])
    rates = {"all": Rate(int(right.sum()), len(right)).as_dict()}
    return rates | {name: Rate(int(right[names == name].sum()), int((names == name).sum())).as_dict() for name in names}


def few_steps(run: Path, base: str, count: int) -> dict[str, Any]:
    """A consistency model of 4 steps, and its teacher."""
    # The teacher draws with the scale that its pictures are compared at.
    changes = {"steps": 2000, "optimizer.learning_rate": 1e-3, "batch_size": 32, "distillation.guidance": (2.0, 4.0)}
    workdir = trained(run, base, "lcm_lora", changes, cached=True)
    rows = prompt_rows(count, HELD_OUT, parse_asked("all"))
    findings = [Finding(**row["asked"][0]) for row in rows]
    teacher, student = jaxcxr.load(base), jaxcxr.load(base, adapter=workdir)
    quick = {"steps": 4, "sampler": "lcm", "guidance": 1.0}
    return {
        "25 steps of DDIM": by_name(shown(drawn(teacher, rows), findings), findings),
        "4 steps of DDIM": by_name(shown(drawn(teacher, rows, steps=4), findings), findings),
        "4 steps of the consistency model": by_name(shown(drawn(student, rows, **quick), findings), findings),
    }


def held_out(count: int) -> list[tuple[Phantom, Finding]]:
    """Phantoms that no training has seen, each with one finding on a side."""
    rng = np.random.default_rng(HELD_OUT)
    sided = [some for some in parse_asked(SIDED) if some.side in SIDES]
    found = []
    for index, (finding,) in enumerate(singles(sided, count, rng)):
        if finding.kind in ("effusion", "pneumothorax") and not finding.size:
            finding = Finding(finding.kind, finding.side, size=("moderate", "large")[index % 2])
        found.append((phantom(HELD_OUT, index, SIZE, kinds=()).with_findings([finding]), finding))
    return found


def controlnet(run: Path, base: str, count: int) -> dict[str, Any]:
    """How often a finding lies where the mask says, under a prompt that does not say where."""
    changes = {"steps": 2000, "optimizer.learning_rate": 1e-3}
    changes["data.conditions"] = str(run / "phantoms" / "conditions")
    pipe = jaxcxr.load(trained(run, base, "controlnet", changes, cached=True))
    cases = held_out(count)
    findings = [finding for _, finding in cases]
    rows = [
        {"prompt": f"{finding.kind.capitalize()}.", "control": Image.fromarray(one.drawing.condition([finding]))}
        for one, finding in cases
    ]
    pictures = drawn(pipe, rows)
    seen = see(read("first"), pictures).present
    bare = [Image.fromarray(one.with_findings([]).drawing.condition([])) for one, _ in cases]
    without = drawn(pipe, [row | {"control": lungs} for row, lungs in zip(rows, bare, strict=True)])
    right = []
    for place, (one, finding) in enumerate(cases):
        if finding.kind == "nodule":
            right.append(_distance(pictures[place], without[place], one.masks[0]) <= NEAR)
            continue
        own, other = (CLASSES.index(f"{side} {finding.kind}") for side in sorted(SIDES, key=finding.side.__ne__))
        right.append(seen[place, own] and not seen[place, other])
    return {"where the mask says": by_name(np.array(right), findings)}


def _distance(picture: np.ndarray, without: np.ndarray, mask: np.ndarray) -> float:
    """Pixels from the middle of a mask to where a picture is brightest beside the same one without the finding."""
    brighter = gaussian_filter(picture.astype(float) - without, 1.5)
    peak = np.unravel_index(brighter.argmax(), brighter.shape)
    return float(np.linalg.norm(np.array(peak) - np.argwhere(mask).mean(axis=0)))


def inpainting(run: Path, base: str, count: int) -> dict[str, Any]:
    """How often what was asked for is painted into a box around where it would lie."""
    changes = {"steps": 2000, "optimizer.learning_rate": 5e-4}
    tuned = jaxcxr.load(trained(run, base, "inpainting", changes, cached=False))
    cases, rng = held_out(count), np.random.default_rng(HELD_OUT)
    findings = [finding for _, finding in cases]
    rows = []
    for one, finding in cases:
        box = np.zeros((SIZE, SIZE), bool)
        x0, y0, x1, y1 = one.drawing.boxes[0]
        box[max(0, y0 - 4) : y1 + 4, max(0, x0 - 4) : x1 + 4] = True
        rows.append({"prompt": ask([finding], rng)["prompt"], "image": one.with_findings([]).image, "mask": box})
    return {
        f"{channels} channels": by_name(shown(drawn(pipe, rows), findings), findings)
        for channels, pipe in (("4", jaxcxr.load(base)), ("9", tuned))
    }


STUDIES: dict[str, Callable[[Path, str, int], dict[str, Any]]] = {
    "few steps": few_steps,
    "controlnet": controlnet,
    "inpainting": inpainting,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder for what is trained")
    parser.add_argument("--base", default="phantom", help="checkpoint to begin with; default: %(default)s")
    parser.add_argument("--studies", default="; ".join(STUDIES), help="names with semicolons between; default: all")
    parser.add_argument("--count", type=int, default=280, help="pictures of each kind")
    args = parser.parse_args()
    wanted = [name.strip() for name in args.studies.split(";")]
    if unknown := [name for name in wanted if name not in STUDIES]:
        sys.exit(f"--studies: no study {unknown[0]!r}; there are {'; '.join(STUDIES)}")
    jax.config.update("jax_compilation_cache_dir", str(args.run.absolute() / "compiled"))
    for name in wanted:
        found = STUDIES[name](args.run, args.base, args.count)
        record.write("conditions", ["jax", "flax"], {f"{name}, {args.count} pictures": found})


if __name__ == "__main__":
    main()
