"""What a checkpoint costs a run: how long a save holds it up, how long it takes in all, restoring, and checksums.

    python benchmarks/checkpoint.py [--gb 2] [--scratch DIR]

A state of weights, two moments and average, as AdamW has it, of so many GB. The holdup is what the train loop waits
for; the disk is written to behind its back, with checksums of all files (`checksums_s` of `written_s`). A restart
verifies them (`verified_s`) before it restores. Writes benchmarks/results/checkpoint-DATE.json.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import optax
import record

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from jaxcxr.interop import checksums  # noqa: E402
from jaxcxr.training.checkpoint import Checkpoints  # noqa: E402
from jaxcxr.training.step import init_state  # noqa: E402

ROUNDS = 5


def state_of(gigabytes: float) -> dict:
    """Kernels of 1280 x 1280 x 3 x 3, the commonest large ones of Stable Diffusion's U-Net."""
    count = max(1, round(gigabytes * 1e9 / 4 / (4 * 3 * 3 * 1280 * 1280)))
    rng = np.random.default_rng(0)
    weights = {f"unet.{n}.kernel": rng.standard_normal((3, 3, 1280, 1280), np.float32) for n in range(count)}
    return jax.jit(lambda p: init_state(p, optax.adamw(1e-4)))(weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0, help="size of the state")
    parser.add_argument("--scratch", type=Path, help="folder to write to; a temporary one by default")
    args = parser.parse_args()

    state = state_of(args.gb)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    scratch = Path(tempfile.mkdtemp(dir=args.scratch))
    held, written, summed, verified, restored = [], [], [], [], []
    try:
        for turn in range(ROUNDS):
            checkpoints = Checkpoints(scratch / str(turn), keep=1)
            started = time.perf_counter()
            checkpoints.save(state)
            held.append(time.perf_counter() - started)
            checkpoints.close()
            written.append(time.perf_counter() - started)
            step = next((scratch / str(turn) / "checkpoints").glob("0"))
            for times, do in ((summed, checksums.write), (verified, checksums.damage)):
                started = time.perf_counter()
                assert do(step) is None
                times.append(time.perf_counter() - started)
            checkpoints = Checkpoints(scratch / str(turn), keep=1)
            started = time.perf_counter()
            jax.block_until_ready(checkpoints.restore(shapes))
            restored.append(time.perf_counter() - started)
            checkpoints.close()
            shutil.rmtree(scratch / str(turn))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    result = {
        "state_gb": round(size, 2),
        "held_up_s": round(statistics.median(held), 3),
        "written_s": round(statistics.median(written), 2),
        "checksums_s": round(statistics.median(summed), 2),
        "verified_s": round(statistics.median(verified), 2),
        "restored_s": round(statistics.median(restored), 2),
    }
    record.write("checkpoint", ("jax", "orbax-checkpoint"), {"median of turns": result})


if __name__ == "__main__":
    main()
