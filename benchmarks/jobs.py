"""A sampling job of many prompts: memory and time to its first picture, from the start and resumed after a kill.

    python benchmarks/jobs.py [--rows 100000] [--pictures 100] [--scratch DIR]

Starts `jaxcxr sample` on the base `phantom` with so many prompts, each another, kills it when so many pictures are
there, and runs it again to as many more. Nothing else is drawn. A run of 16 prompts before it compiles what they need.
Writes benchmarks/results/jobs-DATE.json.
"""

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import record

WORDS = [
    ("Small", "Moderate", "Large"),
    ("left", "right", "bilateral"),
    ("pleural effusion", "consolidation", "pneumothorax", "nodule"),
    ("The heart is enlarged", "The heart is of normal size"),
]


def write_prompts(file: Path, count: int) -> None:
    """Writes prompts that differ, with labels as those of a data set have."""
    findings = list(itertools.product(*WORDS))
    with file.open("w") as lines:
        for number in range(count):
            size, side, finding, heart = findings[number % len(findings)]
            prompt = f"{size} {side} {finding}. {heart}. Comparison is made with study {number}."
            row = {"prompt": prompt, "view": "PA", "labels": [finding], "patient": f"p{number // 3}", "split": "train"}
            lines.write(json.dumps(row) + "\n")


def sample(prompts: Path, out: Path, stop_at: int | None = None) -> dict[str, float]:
    """Seconds from the start to the first new picture, also those that cores were at work, and the peak of memory.

    Args:
      prompts: their file.
      out: the job's folder.
      stop_at: the number of pictures at which it is killed; None lets it end.
    """
    partial = out.with_name(f".{out.name}.partial")
    options = {"--checkpoint": "phantom", "--prompts": prompts, "--out": out, "--steps": 4, "--batch-size": 16}
    words = [str(word) for option in options.items() for word in option]
    before = count(partial)
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "jaxcxr", "sample", *words], stderr=subprocess.DEVNULL)
    first = at_work = peak = 0.0
    while process.poll() is None and (stop_at is None or count(partial) < stop_at):
        if not first and count(partial) > before:
            first, at_work = time.perf_counter() - started, cpu_seconds(process.pid)
        peak = max(peak, peak_mb(process.pid))
        time.sleep(0.05)
    process.kill()
    process.wait()
    return {
        "seconds_to_first_picture": round(first, 1),
        "of_all_cores_at_work": round(at_work, 1),
        "peak_mb": round(peak),
    }


def count(folder: Path) -> int:
    """The pictures in a folder."""
    return sum(name.endswith(".png") for name in os.listdir(folder)) if folder.is_dir() else 0


def cpu_seconds(process: int) -> float:
    """The time that cores have worked for a process; it does not depend on what else a machine does."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, words[11:13])) / os.sysconf("SC_CLK_TCK")


def peak_mb(process: int) -> float:
    """The most memory that a process has held so far, that of mapped files included, in MB."""
    about = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", about)
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--scratch", type=Path, help="folder to write to; a temporary one by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        write_prompts(folder / "few.jsonl", 16)
        sample(folder / "few.jsonl", folder / "few")
        found = {"few": sample(folder / "few.jsonl", folder / "again")}
        write_prompts(folder / "many.jsonl", args.rows)
        found["begun"] = sample(folder / "many.jsonl", folder / "out", args.pictures)
        drawn = count(folder / ".out.partial")
        found["resumed"] = sample(folder / "many.jsonl", folder / "out", drawn + args.pictures)
        total = count(folder / ".out.partial")
    name = f"phantom, {args.rows} prompts"
    record.write("jobs", ("jax", "jaxlib"), {name: found | {"drawn_before_the_kill": drawn, "drawn_in_all": total}})


if __name__ == "__main__":
    main()
