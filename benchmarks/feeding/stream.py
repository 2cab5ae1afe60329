"""Batches of prepared images, against a PyTorch DataLoader."""

import itertools
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from feeding.prepare import png_with_pillow
from feeding.sets import SIZES, films, prepared, tokenizer_folder
from jaxcxr.data import tokens
from jaxcxr.data.loader import Batches, open_split

WORKERS, BATCH, ROUNDS = 2, 16, 3


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


def measure(scratch: Path) -> dict[str, Any]:
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
