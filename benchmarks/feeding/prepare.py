"""Preparing, against Pillow; and on two processes, against one."""

import io
import itertools
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from feeding.sets import SIZES, films, prepared, quietly
from jaxcxr.data import images, shards

ROUNDS = 3


def best(runs: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """The seconds of the fastest of each's runs, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: min(each) for name, each in seconds.items()}


def with_pillow(path: Path, size: int) -> Image.Image:
    """What one writes without thinking of speed: decode all pixels, then resize, then pad."""
    with Image.open(path) as image:
        gray = image.convert("L")
    scale = size / max(gray.size)
    inner = gray.resize((round(gray.width * scale), round(gray.height * scale)), Image.Resampling.LANCZOS)
    square = Image.new("L", (size, size))
    square.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
    return square


def png_with_pillow(path: Path, size: int) -> bytes:
    buffer = io.BytesIO()
    with_pillow(path, size).save(buffer, "PNG")
    return buffer.getvalue()


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * math.log10(255**2 / max(1e-9, np.mean((one.astype(float) - other.astype(float)) ** 2)))


def measure(scratch: Path) -> dict[str, Any]:
    few, many, short = 32, 288, {}
    paths = films(scratch)
    for size in SIZES:
        run = best(
            {
                "pillow": lambda size=size: [with_pillow(path, size) for path in paths],
                "load_square": lambda size=size: [images.load_square(path, size) for path in paths],
                "pillow_png": lambda size=size: [png_with_pillow(path, size) for path in paths],
                "png": lambda size=size: [images.encode_png(images.load_square(path, size)) for path in paths],
            }
        )
        alike = [psnr(np.asarray(with_pillow(path, size)), images.load_square(path, size)[..., 0]) for path in paths]
        with mock.patch.object(shards, "PER_SHARD", 16):  # so that there is work for two with few images
            whole = _whole_prepare(scratch, paths, size, few, many)
        short[str(size)] = {
            "images_per_s_per_core": {name: round(len(paths) / seconds, 1) for name, seconds in run.items()},
            "load_ratio": round(run["pillow"] / run["load_square"], 2),
            "psnr_db": {"least": round(min(alike), 1), "mean": round(statistics.mean(alike), 1)},
            "whole_prepare": {
                "images_per_s": {f"{n}_workers": round(rate, 1) for n, rate in whole.items()},
                "ratio_to_pillow_png": round(whole[1] * run["pillow_png"] / len(paths), 2),
                "scaling_to_2": round(whole[2] / whole[1] / 2, 3),
            },
        }
    short["scaling_of_pillow_alone_to_2"] = round(_ceiling(paths), 3)
    return short | {
        "images": len(paths),
        "megabytes": round(sum(p.stat().st_size for p in paths) / len(paths) / 1e6, 2),
    }


def _whole_prepare(scratch: Path, paths: list[Path], size: int, few: int, many: int) -> dict[int, float]:
    """Images per second by the number of workers, from the time that more images take, so without starting up."""
    for count in (few, many):
        prepared(scratch, f"whole-{size}-{count}", size, paths, count)
    numbers, again = itertools.count(), Path(tempfile.mkdtemp(dir=scratch))
    runs = {
        f"{workers} {count}": lambda workers=workers, count=count: quietly(
            scratch / f"whole-{size}-{count}-raw", again / str(next(numbers)), size, scratch, workers
        )
        for workers in (1, 2)
        for count in (few, many)
    }
    seconds = best(runs)
    shutil.rmtree(again)
    return {n: (many - few) / (seconds[f"{n} {many}"] - seconds[f"{n} {few}"]) for n in (1, 2)}


def _ceiling(paths: list[Path]) -> float:
    """What two cores can do of two: the share of twice one's speed that two processes of plain Pillow reach."""
    half = len(paths) // 2
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        list(pool.map(_decode_all, [paths[:1], paths[1:2]]))
        run = best(
            {
                "one": lambda: list(pool.map(_decode_all, [paths[:half]])),
                "two": lambda: list(pool.map(_decode_all, [paths[:half], paths[half : 2 * half]])),
            }
        )
    return run["one"] / run["two"]


def _decode_all(paths: list[Path]) -> None:
    for path in paths:
        png_with_pillow(path, 512)
