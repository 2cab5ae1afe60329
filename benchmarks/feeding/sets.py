"""The data that is measured with: films of real size, prepared folders, caches, as many records as MIMIC-CXR has."""

import contextlib
import io
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxcxr.data import array_record, images, shards, tokens
from jaxcxr.data.moments import PER_SHARD, Card, Origin, pack, write_shard
from jaxcxr.data.prepare import prepare
from jaxcxr.data.records import Candidate, features
from jaxcxr.data.settings import defaults
from jaxcxr.data.summary import Summary
from jaxcxr.phantoms.reports import write_report
from jaxcxr.phantoms.studies import sample_findings
from jaxcxr.phantoms.tree import write_tree

FILM = (2544, 3056)
SIZES = (512, 256)
MIMIC = 377_110  # records


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


def write_cache(folder: Path, count: int, shape: tuple[int, ...], tokenizer: Any) -> Path:
    """A cache of random moments in bfloat16, each record with a text of its own."""
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


def write_tiny_records(folder: Path, count: int) -> Path:
    """A prepared folder's records, as many and in as many files as of all of MIMIC-CXR, with pictures of 8 pixels."""
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
        file, numbers = records / shard.file_name, [int(candidate.id) for candidate in shard.members]
        numbered = (filled[number % len(filled)].replace(blank.encode(), b"%06d" % number) for number in numbers)
        if not file.exists():
            array_record.write(file, numbered, packed=True)
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
