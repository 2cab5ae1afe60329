"""As many records as MIMIC-CXR has: the first batch, any other, memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from feeding.sets import MIMIC, tokenizer_folder, write_cache, write_tiny_records
from jaxcxr.data import tokens

ROOT = Path(__file__).parents[2]

START = """
import json, resource, statistics, sys, time
started = time.perf_counter()
import numpy as np
from jaxcxr.data import tokens
from jaxcxr.data.loader import Batches, open_split
from jaxcxr.data.moments import Moments
kind, folder, tokenizer = sys.argv[1:]
tokenizer = tokens.load(tokenizer)
source = Moments(folder, "train", tokens.digest(tokenizer)) if kind == "cache" else open_split(folder, "train")
batches = Batches(source, tokenizer=tokenizer, seed=0, batch_size=256)
stream = batches.iterate()
next(stream)
first = time.perf_counter() - started
stream.close()
seconds = []
used = time.process_time()
for step in np.random.default_rng(0).integers(1, 10**6, 40).tolist():
    began = time.perf_counter()
    batches.batch(step)
    seconds.append(time.perf_counter() - began)
used = (time.process_time() - used) / len(seconds)
print(json.dumps({
    "records": len(source),
    "first_batch_s": round(first, 2),
    "random_batch_of_256_ms": {"median": round(1e3 * statistics.median(seconds), 1),
                               "most": round(1e3 * max(seconds), 1), "processor": round(1e3 * used, 1)},
    "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
}))
"""


def measure(scratch: Path) -> dict[str, Any]:
    folders = {
        "cache": write_cache(scratch / "cache-of-all", MIMIC, (8, 8, 8), tokens.load(tokenizer_folder(scratch))),
        "prepared": write_tiny_records(scratch / "prepared-of-all", MIMIC),
    }
    found = {}
    for kind, folder in folders.items():
        command = [sys.executable, "-c", START, kind, str(folder), str(tokenizer_folder(scratch))]
        process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if process.returncode:
            raise SystemExit(process.stderr)
        found[kind] = json.loads(process.stdout.splitlines()[-1])
    return found
