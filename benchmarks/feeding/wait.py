"""The share of the time that a training waits for its data."""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from feeding.sets import SIZES, films, prepared, tokenizer_folder, write_cache
from jaxcxr import config as configs
from jaxcxr.data import tokens
from jaxcxr.data.loader import Batches, open_split
from jaxcxr.data.moments import Moments
from jaxcxr.data.prepare import prepare
from jaxcxr.phantoms.tree import write_tree
from jaxcxr.training.train import train

BATCH = 16


def measure(scratch: Path) -> dict[str, Any]:
    return {"training": _wait_of_training(scratch), "beside_steps_of_50_ms": _wait_beside_sleep(scratch)}


def _wait_of_training(scratch: Path) -> dict[str, float]:
    """The metric `data_wait` of the autoencoder of `configs/phantom.py`, without the first steps, which compile."""
    config = configs.load(Path(__file__).parents[2] / "configs" / "phantom.py:autoencoder")
    config.data.path = str(scratch / "phantoms-prepared")
    config.steps, config.log_every, config.eval_every, config.sample_every = 60, 10, 0, 0
    if not Path(config.data.path).exists():
        write_tree(scratch / "phantoms", 200, 64)
        prepare(config.data, scratch / "phantoms", Path(config.data.path))
    with tempfile.TemporaryDirectory(dir=scratch) as workdir:
        train(config, Path(workdir) / "run")
        lines = (Path(workdir) / "run" / "metrics.jsonl").read_text().splitlines()
    shares = [row["data_wait"] for row in map(json.loads, lines) if "data_wait" in row][1:]
    return {"mean": round(statistics.mean(shares), 5), "most": round(max(shares), 5)}


def _wait_beside_sleep(scratch: Path) -> dict[str, float]:
    """The share of the time that a loop waits for batches of 16, whose steps leave the processors alone."""
    tokenizer = tokens.load(tokenizer_folder(scratch))
    sources: dict[str, Any] = {
        "moments": Moments(
            write_cache(scratch / "cache", 4096, (64, 64, 8), tokenizer), "train", tokens.digest(tokenizer)
        )
    }
    for size in SIZES:
        sources[str(size)] = open_split(prepared(scratch, f"wait-{size}", size, films(scratch), 128), "train", size)
    found = {}
    for name, source in sources.items():
        stream = Batches(source, tokenizer=tokenizer, seed=0, batch_size=BATCH).iterate()
        next(stream)
        waited, started = 0.0, time.perf_counter()
        for _ in range(100):
            time.sleep(0.05)
            asked = time.perf_counter()
            next(stream)
            waited += time.perf_counter() - asked
        found[name] = round(waited / (time.perf_counter() - started), 5)
        stream.close()
    return found
