"""Converting a whole Stable Diffusion 1.5, diffusers folder to Orbax and back: time and memory, in one run.

    python benchmarks/convert.py [--scratch DIR]

Needs PyTorch, diffusers, 14 GB of disk and 8 GB of memory. Random weights of the real size. Each conversion is a
process of its own, so that its peak memory is its own; the yardsticks are copying the same bytes with safetensors'
own load and save, and diffusers' reading of a single file of the same weights. Writes
benchmarks/results/convert-DATE.json.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record

ROOT = Path(__file__).parents[1]
ROUNDS = 2

CONVERT = "import sys; from jaxcxr.__main__ import main; sys.exit(main(sys.argv[1:]))"
COPY = """
import sys
from pathlib import Path
from safetensors.numpy import load_file, save_file
for file in Path(sys.argv[1]).rglob("*.safetensors"):
    target = Path(sys.argv[2]) / file.relative_to(sys.argv[1])
    target.parent.mkdir(parents=True)
    save_file(load_file(file), target)
"""
DIFFUSERS = """
import sys
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_single_file(sys.argv[1], config=sys.argv[3], safety_checker=None)
pipeline.save_pretrained(sys.argv[2])
"""


def write_pipeline(folder: Path) -> None:
    """A Stable Diffusion 1.5 of random weights, 4.3 GB in float32, written by diffusers."""
    sys.path.insert(0, str(ROOT))
    from tests import pipelines
    from tests.models.test_names import SD15_TEXT, SD15_UNET, SD_VAE

    pipelines.write(folder, unet=SD15_UNET, vae=SD_VAE, text=SD15_TEXT | {"vocab_size": 49408})


def measure(code: str, *args: Path | str) -> tuple[float, float]:
    """Seconds and peak memory in GB of a Python process."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)], stdout=errors, stderr=errors, cwd=ROOT
        )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            errors.seek(0)
            raise SystemExit(errors.read().decode())
    return time.perf_counter() - started, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    scratch = parser.parse_args().scratch / "jaxcxr-benchmark"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    source = scratch / "sd15"
    # In a process of its own: what this one holds would count as its children's.
    measure(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import convert; from pathlib import Path; "
        "convert.write_pipeline(Path(sys.argv[1]))",
        source,
    )
    size = sum(file.stat().st_size for file in source.rglob("*.safetensors")) / 1e9
    steps = {
        "copy with safetensors": (COPY, source, "{}"),
        "folder to Orbax": (CONVERT, "convert", source, "{}", "--to", "orbax"),
        "Orbax to folder": (CONVERT, "convert", scratch / "orbax", "{}", "--to", "diffusers"),
        "folder to single file": (CONVERT, "convert", source, "{}.safetensors", "--to", "single-file"),
        "single file to folder": (
            CONVERT,
            *("convert", scratch / "single.safetensors", "{}", "--to", "diffusers", "--config", source),
        ),
        "single file to folder, diffusers": (DIFFUSERS, scratch / "single.safetensors", "{}", source),
    }
    measure(CONVERT, "convert", source, scratch / "orbax", "--to", "orbax")
    measure(CONVERT, "convert", source, scratch / "single.safetensors", "--to", "single-file")
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, (code, *args) in steps.items():
            target = scratch / "target"
            results[name].append(measure(code, *(str(arg).replace("{}", str(target)) for arg in args)))
            shutil.rmtree(target, ignore_errors=True)
            target.with_suffix(".safetensors").unlink(missing_ok=True)
            print(f"{name}: {results[name][-1][0]:.1f} s, {results[name][-1][1]:.2f} GB", flush=True)
    copy = min(seconds for seconds, _ in results["copy with safetensors"])
    table = {
        name: {
            "seconds": round(min(seconds for seconds, _ in runs), 2),
            "times_the_copy": round(min(seconds for seconds, _ in runs) / copy, 2),
            "peak_memory_gb": round(max(memory for _, memory in runs), 2),
            "peak_memory_by_size": round(max(memory for _, memory in runs) / size, 2),
        }
        for name, runs in results.items()
    }
    table["checkpoint"] = {"size_gb": round(size, 2), "rounds": ROUNDS}
    record.write("convert", ("jax", "orbax-checkpoint"), table)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
