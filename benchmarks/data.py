"""From radiographs on disk to batches: the speed of preparing and loading, against Pillow and a PyTorch DataLoader.

    python benchmarks/data.py [prepare stream cache scale wait] [--scratch DIR]

Needs PyTorch, 2 GB of disk and ten minutes on two idle cores. What is compared takes turns, and the best turn of each
counts. `load_average` tells how idle the machine was before a section. Writes benchmarks/results/data-DATE.json;
sections that are not run keep what that file says of them.
"""

import argparse
import contextlib
import datetime
import io
import itertools
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "configs")]

from jaxcxr.data import images, shards, tokens  # noqa: E402
from jaxcxr.data.loader import Batches, open_split  # noqa: E402
from jaxcxr.data.phantom_reports import write_report  # noqa: E402
from jaxcxr.data.phantom_tree import sample_findings, write_tree  # noqa: E402
from jaxcxr.data.prepare import prepare  # noqa: E402
from jaxcxr.data.settings import defaults  # noqa: E402
from jaxcxr.data.summary import Summary  # noqa: E402

FILM = (2544, 3056)
SIZES = (512, 256)
MIMIC = 377_110
WORKERS = 2
BATCH = 16
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


def films(scratch: Path) -> list[Path]:
    """A few dozen radiographs of real size and weight, 1.7 MB each."""
    return sorted(write_tree(scratch / "films", 24, 512, film=FILM).out.rglob("*.jpg"))


def impressions(count: int) -> Iterator[str]:
    """Texts as they are in reports, all different."""
    rng = np.random.default_rng(0)
    drawn = [write_report(sample_findings(rng), rng).impression for _ in range(min(count, 2000))]
    for number in range(count):
        yield f"{drawn[number % len(drawn)]} Compared with the study of {number} days ago."


def tokenizer_folder(scratch: Path) -> Path:
    folder = scratch / "tokenizer"
    if not folder.exists():
        tokens.train(impressions(2000), 4096, folder)
    return folder


def prepared(scratch: Path, name: str, size: int, pictures: list[Path], count: int) -> Path:
    """A prepared folder of `count` records, made of these pictures over and over, each with a text of its own."""
    folder, out = scratch / f"{name}-raw", scratch / name
    if not out.exists():
        folder.mkdir(exist_ok=True)
        with (folder / "metadata.jsonl").open("w") as file:
            for number, text in enumerate(impressions(count)):
                picture = pictures[number % len(pictures)]
                link = folder / f"{number}{picture.suffix}"
                link.unlink(missing_ok=True)
                os.link(picture, link)
                file.write(json.dumps({"file_name": link.name, "text": text, "view": "PA"}) + "\n")
        quietly(folder, out, size, scratch)
    return out


def quietly(folder: Path, out: Path, size: int, scratch: Path, workers: int | None = None) -> None:
    config = defaults()
    config.size, config.tokenizer = size, str(tokenizer_folder(scratch))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepare(config, folder, out, workers=workers)


# --- prepare -------------------------------------------------------------------------------------------------


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


def measure_prepare(scratch: Path) -> dict[str, Any]:
    few, many, short = 32, 160, {}
    paths = films(scratch)
    shards.PER_SHARD = 16  # so that there is work for two with few images
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
    numbers = itertools.count()
    runs = {
        f"{workers} {count}": lambda workers=workers, count=count: quietly(
            scratch / f"whole-{size}-{count}-raw", scratch / f"again-{size}-{next(numbers)}", size, scratch, workers
        )
        for workers in (1, 2)
        for count in (few, many)
    }
    seconds = best(runs, 2)
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


# --- stream --------------------------------------------------------------------------------------------------


class Pictures:
    """A dataset as diffusers' train_text_to_image.py makes one, with torchvision's transforms written out."""

    def __init__(self, files: list[Path], texts: list[str], tokenizer: Any):
        self.files, self.texts, self.tokenizer = files, texts, tokenizer

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        with Image.open(self.files[index]) as file:
            image = file.convert("RGB")
        # Resize returns a picture of the right size as it is; CenterCrop cuts all of it.
        image = image.crop((0, 0, *image.size))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)  # ToTensor
        pixels = pixels.clone().sub_(torch.tensor([0.5])[:, None, None]).div_(torch.tensor([0.5])[:, None, None])
        coded = self.tokenizer(
            self.texts[index], max_length=77, padding="max_length", truncation=True, return_tensors="pt"
        )
        return {"pixel_values": pixels, "input_ids": coded.input_ids[0]}


def collate(examples: list[dict[str, Any]]) -> dict[str, Any]:
    import torch

    pixels = torch.stack([example["pixel_values"] for example in examples]).contiguous().float()
    return {"pixel_values": pixels, "input_ids": torch.stack([example["input_ids"] for example in examples])}


def measure_stream(scratch: Path) -> dict[str, Any]:
    import torch

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as one sets it where a DataLoader forks
    tokenizer, found, count = tokens.load(tokenizer_folder(scratch)), {}, 1024
    for size in SIZES:
        squares = []
        for number, path in enumerate(films(scratch)):
            squares.append(scratch / f"square-{size}-{number}.png")
            squares[-1].write_bytes(png_with_pillow(path, size))
        folder = prepared(scratch, f"stream-{size}", size, squares, count)
        source = open_split(folder, "train", size)
        pictures = [scratch / f"stream-{size}-raw" / record["id"].decode() for record in source]
        texts = [record["prompts"][0].decode() for record in source]
        dataset = Pictures(pictures, texts, tokenizer)
        rates: dict[str, list[float]] = {"jaxcxr": [], "jaxcxr_later_epochs": [], "dataloader": []}
        for _ in range(ROUNDS):
            # One that has seen no text yet. Its pictures leave as uint8: the device normalizes them.
            stream = Batches(source, tokenizer=tokenizer, seed=0, batch_size=BATCH).iterate(workers=WORKERS)
            epoch = len(source) // BATCH
            rates["jaxcxr"].append(rate(itertools.islice(stream, epoch)))
            rates["jaxcxr_later_epochs"].append(rate(itertools.islice(stream, epoch)))
            stream.close()
            loader = torch.utils.data.DataLoader(
                dataset,
                BATCH,
                shuffle=True,
                drop_last=True,
                collate_fn=collate,
                num_workers=WORKERS,
                multiprocessing_context="spawn",
            )
            rates["dataloader"].append(rate(loader))
        top = {name: max(each) for name, each in rates.items()}
        found[str(size)] = {
            "records_per_s": {name: round(each, 1) for name, each in top.items()},
            "ratio": round(top["jaxcxr"] / top["dataloader"], 2),
            "ratio_later_epochs": round(top["jaxcxr_later_epochs"] / top["dataloader"], 2),
        }
    return found | {"workers": WORKERS, "batch_size": BATCH}


def rate(batches: Iterable[Any]) -> float:
    """Records per second after the first batches, which wait for processes to start and fill queues."""
    stream = iter(batches)
    for _ in range(8):
        next(stream)
    started = time.perf_counter()
    count = sum(len(batch["input_ids"]) for batch in stream)
    return count / (time.perf_counter() - started)


# --- cache ---------------------------------------------------------------------------------------------------


def write_cache(folder: Path, count: int, shape: tuple[int, ...], tokenizer: Any) -> Path:
    """A cache of random moments in bfloat16, each record with a text of its own."""
    import ml_dtypes

    from jaxcxr.data.moments import PER_SHARD, Card, Origin, pack, write_shard

    if not folder.exists():
        rng = np.random.default_rng(0)
        card = Card(Origin(*[""] * 7), "bfloat16", shape, (), tokens.digest(tokenizer), {"train": count})
        texts = enumerate(impressions(count))
        for shard in card.shards(folder, "train"):
            part = itertools.islice(texts, PER_SHARD)
            write_shard(
                shard,
                (
                    pack(
                        rng.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16),
                        {"prompts": [text], "id": str(number)},
                        tokens.encode(tokenizer, [text], 77),
                    )
                    for number, text in part
                ),
            )
        card.write(folder)  # last: a folder without it is no cache
    return folder


def measure_cache(scratch: Path) -> dict[str, Any]:
    from jaxcxr.data.moments import Moments

    count, batch = 4096, 64
    tokenizer = tokens.load(tokenizer_folder(scratch))
    folder = write_cache(scratch / "cache", count, (64, 64, 8), tokenizer)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for name, digest in (("with_ids", tokens.digest(tokenizer)), ("another_tokenizers", "")):
            source = Moments(folder, "train", digest)
            stream = Batches(source, tokenizer=tokenizer, seed=0, batch_size=batch).iterate(workers=WORKERS)
            for epoch in ("first_epoch", "later_epochs"):
                started, used = time.perf_counter(), time.process_time()
                seen = sum(len(each["input_ids"]) for each in itertools.islice(stream, count // batch))
                speed = seen / (time.perf_counter() - started), seen / (time.process_time() - used)
                found.setdefault(f"{name}_{epoch}", []).append(speed)
            stream.close()
    return {
        name: {
            "records_per_s": round(max(wall for wall, _ in epoch)),
            "records_per_s_per_core": round(max(core for _, core in epoch)),
        }
        for name, epoch in found.items()
    } | {"record": "64 x 64 x 8 bfloat16", "batch_size": batch, "workers": WORKERS}


# --- scale ---------------------------------------------------------------------------------------------------

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


def write_tiny_records(folder: Path, count: int) -> Path:
    """A prepared folder's records, as many and in as many files as of all of MIMIC-CXR, with pictures of 8 pixels."""
    from array_record.python.array_record_module import ArrayRecordWriter

    from jaxcxr.data.records import Candidate, features

    if (folder / "summary.json").exists():
        return folder
    records = folder / shards.RECORDS
    records.mkdir(parents=True, exist_ok=True)
    side, rng, blank = 8, np.random.default_rng(0), "######"
    form, filled = features(side), []
    for text in impressions(2000):  # to be numbered: TFDS would take minutes for all
        record = {
            "image": images.encode_png(rng.integers(0, 256, (side, side, 1), np.uint8)),
            "prompts": [f"{text} Accession {blank}."],
            "id": blank,
            "patient": blank,
            "view": "PA",
            "labels": [],
        }
        filled.append(form.serialize_example(form.encode_example(record)))
    listed = [Candidate(str(number), "train", str(number), "", "PA", (), "", {}) for number in range(count)]
    work = shards.cut(listed)
    for shard in work:
        writer = ArrayRecordWriter(str(records / shard.file_name), "group_size:1")
        for candidate in shard.members:
            number = int(candidate.id)
            writer.write(filled[number % len(filled)].replace(blank.encode(), b"%06d" % number))
        writer.close()
    shards.describe(records, work, [len(shard.members) for shard in work], side)
    nothing: dict[str, Any] = {key: {} for key in ("views", "labels", "fields", "bad", "not_selected", "prompts_cut")}
    summary = Summary(
        **nothing,
        source="",
        records=shards.RECORDS,
        fingerprint="",
        settings={"size": side},
        splits={"train": count},
        duplicates=0,
        vocab_size=0,
    )
    (folder / "summary.json").write_text(summary.to_json())
    return folder


def measure_scale(scratch: Path) -> dict[str, Any]:
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


# --- wait ----------------------------------------------------------------------------------------------------


def measure_wait(scratch: Path) -> dict[str, Any]:
    return {"training": _wait_of_training(scratch), "beside_steps_of_50_ms": _wait_beside_sleep(scratch)}


def _wait_of_training(scratch: Path) -> dict[str, float]:
    """The metric `data_wait` of the quickstart's autoencoder, without the first steps, which compile."""
    import quickstart

    from jaxcxr.training.train import train

    config = quickstart.get_config("autoencoder")
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
    from jaxcxr.data.moments import Moments

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


SECTIONS = {
    "prepare": measure_prepare,
    "stream": measure_stream,
    "cache": measure_cache,
    "scale": measure_scale,
    "wait": measure_wait,
}


def machine() -> dict[str, Any]:
    about = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", about.read_text()) if about.exists() else []
    return {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; none: all")
    parser.add_argument("--scratch", type=Path, help="folder whose content later runs use again; default: a new one")
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}")
    out = ROOT / "benchmarks" / "results" / f"data-{datetime.date.today()}.json"
    with contextlib.ExitStack() as stack:
        scratch = args.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxcxr-benchmark-")))
        scratch.mkdir(parents=True, exist_ok=True)
        for name in args.sections or SECTIONS:
            load = os.getloadavg()[0]
            found = SECTIONS[name](scratch) | {"load_average": round(load, 2)}
            print(name, json.dumps(found, indent=2), flush=True)
            content = json.loads(out.read_text()) if out.exists() else {"results": {}}
            packages = ("jax", "array_record", "pillow", "torch")
            content = {
                "what": __doc__.split("\n")[0],
                "machine": machine() | {"python": platform.python_version()},
                "versions": {package: version(package) for package in packages},
                "results": content["results"] | {name: found},
            }
            out.write_text(json.dumps(content, indent=2) + "\n")
    print(out)


if __name__ == "__main__":
    main()
