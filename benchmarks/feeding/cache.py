"""Batches of cached moments."""

import itertools
import time
from pathlib import Path
from typing import Any

from feeding.sets import tokenizer_folder, write_cache
from jaxcxr.data import tokens
from jaxcxr.data.loader import Batches
from jaxcxr.data.moments import Moments

WORKERS, BATCH, ROUNDS = 2, 64, 3


def measure(scratch: Path) -> dict[str, Any]:
    count = 4096
    tokenizer = tokens.load(tokenizer_folder(scratch))
    folder = write_cache(scratch / "cache", count, (64, 64, 8), tokenizer)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for name, digest in (("with_ids", tokens.digest(tokenizer)), ("another_tokenizers", "")):
            source = Moments(folder, "train", digest)
            stream = Batches(source, tokenizer=tokenizer, seed=0, batch_size=BATCH).iterate(workers=WORKERS)
            for epoch in ("first_epoch", "later_epochs"):
                started, used = time.perf_counter(), time.process_time()
                seen = sum(len(each["input_ids"]) for each in itertools.islice(stream, count // BATCH))
                speed = seen / (time.perf_counter() - started), seen / (time.process_time() - used)
                found.setdefault(f"{name}_{epoch}", []).append(speed)
            stream.close()
    return {
        name: {
            "records_per_s": round(max(wall for wall, _ in epoch)),
            "records_per_s_per_core": round(max(core for _, core in epoch)),
        }
        for name, epoch in found.items()
    } | {"record": "64 x 64 x 8 bfloat16", "batch_size": BATCH, "workers": WORKERS}
