"""Prepared records to batches, each a function of (seed, step), whatever the number of hosts."""

import itertools
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from jaxcxr.data import array_record, images, tokens
from jaxcxr.data.mixture import Order, Part
from jaxcxr.data.records import FIELDS, LISTS, EmptySplit
from jaxcxr.data.summary import Summary
from jaxcxr.errors import UserError

if TYPE_CHECKING:
    from jaxcxr.data.classes import Classes
    from jaxcxr.data.conditions import Conditions

_READERS = 16  # threads
_REMEMBERED = 400_000  # prompts, each of some 500 bytes with its ids


class Records(Sequence[dict[str, Any]]):
    """A split of a TFDS folder of radiographs, for random access.

    Records are dicts by the fields of `records.features`, texts and the encoded image as bytes. TFDS decodes any
    feature; that takes ten times as long as reading the protocol buffer, of which it keeps these fields plainly.
    """

    def __init__(self, folder: Path, split: str):
        """Raises EmptySplit if the split is empty, UserError if the folder is damaged."""
        import tensorflow_datasets as tfds
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            splits = tfds.builder_from_directory(str(folder)).info.splits
        except Exception as error:  # whatever TFDS raises on damaged descriptions
            raise UserError(f"{folder}: is damaged ({type(error).__name__}): prepare again") from error
        if split not in splits:
            raise EmptySplit(f"{folder}: no records in split {split!r}: it has {', '.join(sorted(splits))}")
        self._parse = tf_example_pb2.Example.FromString
        self._records = array_record.Files(splits[split].file_instructions)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:  # type: ignore[override]
        example = self._parse(self._records[index]).features.feature
        values = {name: example[name].bytes_list.value for name in FIELDS}
        return {name: list(value) if name in LISTS else value[0] for name, value in values.items()}


def open_split(
    path: str | Path, split: str, size: int | None = None, channels: int | None = None
) -> Sequence[dict[str, Any]]:
    """Opens one split of a folder that `jaxcxr prepare` wrote, for random access.

    Records are dicts with `image` (encoded PNG, bytes), `prompts`, `id`, `patient`, `view` (bytes, UTF-8),
    `labels`, `uncertain` ones, and of the `person` what is known of sex, age and race; `Batches` decodes them.

    Raises:
      UserError: `path` is not a prepared folder, its images are not of `size` pixels and `channels`, or it has
        nothing in this split.
    """
    path = Path(path)
    summary = Summary.require(path)
    folder, side = path / summary.records, summary.settings["size"]
    if not (folder / "dataset_info.json").is_file():
        raise UserError(f"{path}: not a prepared folder: make one with jaxcxr prepare")
    if size not in (None, side):
        raise UserError(f"{path}: holds images of {side} pixels, config.data.size is {size}; prepare again")
    has = summary.settings.get("channels", 1)
    if channels not in (None, has):
        raise UserError(f"{path}: holds images of {has} channels, config.data.channels is {channels}; set it to {has}")
    return Records(folder, split)


class Batches:
    """The batches of a run, or some rows of each, by step.

    Global batch n holds the records at n * batch_size … (n + 1) * batch_size - 1 of an endless order that
    depends on `seed` and `parts` alone (`mixture.Order`); of these, a process of several reads its `rows`. With one
    part, the default, every epoch is another permutation; with `shuffle=False` it is the records' own order, and
    batch 0 holds the first ones.
    """

    def __init__(
        self,
        source: Sequence[dict[str, Any]],
        *,
        tokenizer: Any,
        seed: int,
        batch_size: int,
        rows: Sequence[int] | np.ndarray | None = None,
        shuffle: bool = True,
        parts: Sequence[Part] = (),
        weights: Mapping[str, float] | None = None,
        reads: Collection[str] = ("image", "input_ids"),
        teacher: Any = None,
        classes: "Classes | None" = None,
        conditions: "Conditions | None" = None,
    ):
        """Opens them.

        Args:
          source: the records.
          tokenizer: of the prompts.
          seed: of order and choice.
          batch_size: of a global batch.
          rows: of it, those that are read; all by default.
          shuffle: whether to shuffle, rather than to read in the records' order.
          parts: of the source, with their weights.
          weights: those of the examples in the loss, by record id.
          reads: the fields that a batch is to have: image, input_ids, teacher_ids.
          teacher: the tokenizer of `teacher_ids`.
          classes: what makes `labels` and `label_weights` of a record's labels.
          conditions: the pictures `condition`, by record id.
        """
        self._classes, self._conditions = classes, conditions
        self._weights, self._reads = weights, reads
        self._source, self._seed = source, seed
        self._order = Order(parts or [Part(range(len(source)), 1.0)], seed, shuffle)
        self._coded = {"input_ids": _Coded(tokenizer)} | ({"teacher_ids": _Coded(teacher)} if teacher else {})
        self._readers = ThreadPoolExecutor(_READERS)
        self._batch_size = batch_size
        self._rows = np.arange(batch_size) if rows is None else np.asarray(rows)

    @property
    def images(self) -> int:
        """Those that batches are drawn from."""
        return len(self._source)

    def texts(self) -> Iterator[str]:
        """The prompts of its images, in no order that batches have; images are not decoded."""
        for record in self._source:
            yield from map(as_text, record["prompts"])

    def without_condition(self, most: int) -> int | None:
        """The first place of a record that has no condition image, of the first `most`; None where all have one."""
        if self._conditions is None:
            return None
        looked_at = range(min(most, len(self._source)))
        return next((at for at in looked_at if as_text(self._source[at]["id"]) not in self._conditions), None)

    def _indices(self, step: int) -> np.ndarray:
        """The places of these rows of global batch `step` in the endless order."""
        return step * self._batch_size + self._rows

    def _read(self, step: int) -> list[dict[str, Any]]:
        places = self.places(step)
        # In parallel for disks that are far away. ArrayRecord's own way of it starts a thread for each file at each
        # batch, which costs several times what the reading does.
        parts = [places[first::_READERS] for first in range(min(_READERS, len(places)))]
        read = list(self._readers.map(lambda part: [self._decoded(place) for place in part], parts))
        return [read[number % _READERS][number // _READERS] for number in range(len(places))]

    def _decoded(self, place: int) -> dict[str, Any]:
        record = self._source[place]
        if self._conditions is not None:
            record = {**record, "condition": self._condition(place, as_text(record["id"]))}
        if "moments" in record or "image" not in self._reads:
            return record
        return {**record, "image": images.decode_png(record["image"])}

    def _condition(self, place: int, name: str) -> np.ndarray:
        assert self._conditions is not None
        if name not in self._conditions:
            raise UserError(f"config.data.conditions: has no picture for the record in place {place}, from 0")
        return self._conditions[name]

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns `image`, (rows, S, S, 1) uint8, `input_ids` and `teacher_ids`, (rows, length) int32: what it reads.

        With weights there is `weight`, (rows,) float32; with classes `labels` and `label_weights`, (rows, K) float32;
        with conditions `condition`, (rows, S, S, 3) uint8. From a cache it is `moments`, (rows, h, w, 2 *
        latent_channels) in place of `image`, and if it has them `states`, (rows, length, hidden size), in place of
        `input_ids`.

        Raises:
          UserError: a record has no weight or no condition.
        """
        records = self._read(step)
        weight = {} if self._weights is None else {"weight": self._weight(step, records)}
        return self._stacked(step, records) | weight

    def _weight(self, step: int, records: Sequence[dict[str, Any]]) -> np.ndarray:
        assert self._weights is not None
        found = [self._weights.get(as_text(record["id"])) for record in records]
        if None in found:
            place = self.places(step)[found.index(None)]
            raise UserError(f"config.data.weights: has no weight for the training record in place {place}, from 0")
        return np.array(found, np.float32)

    def _stacked(self, step: int, records: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
        chosen = [self._choose(*pair) for pair in zip(self._indices(step).tolist(), records, strict=True)]

        def of_prompts(field: str) -> list[Any]:
            return [record[field][number] for record, number in zip(records, chosen, strict=True)]

        batch: dict[str, list[Any]] = {}
        if "image" in self._reads:
            image = "moments" if "moments" in records[0] else "image"
            batch[image] = [record[image] for record in records]
        if self._conditions is not None:
            batch["condition"] = [record["condition"] for record in records]
        if "input_ids" in self._reads and "states" in records[0]:
            batch["states"] = of_prompts("states")
        elif "input_ids" in self._reads and all("input_ids" in record for record in records):
            batch["input_ids"] = of_prompts("input_ids")
        for field, coded in self._coded.items():
            if field in self._reads and field not in batch and "states" not in batch:
                batch[field] = coded([as_text(text) for text in of_prompts("prompts")])
        labels = self._classes.fields(records) if self._classes else {}
        return {field: np.stack(rows) for field, rows in batch.items()} | labels

    def _choose(self, index: int, record: dict[str, Any]) -> int:
        """The number of one of a record's prompts, decided by the seed and its place in the order."""
        count = len(record["prompts"])
        return int(np.random.PCG64((self._seed, index)).random_raw()) % count if count > 1 else 0

    def ids(self, step: int) -> list[str]:
        """Returns the record ids of `batch(step)`; not for messages, as an id may be a patient's."""
        return [as_text(self._source[place]["id"]) for place in self.places(step)]

    def places(self, step: int) -> list[int]:
        """Returns where the records of `batch(step)` are in the source, from 0, for messages about it."""
        return self._order[self._indices(step)].tolist()

    def iterate(self, start_step: int = 0, *, workers: int = 4, ahead: int = 4) -> Iterator[dict[str, np.ndarray]]:
        """Yields batch(start_step), batch(start_step + 1), … read on threads up to `ahead` steps early."""
        steps = itertools.count(start_step)
        with ThreadPoolExecutor(workers) as pool:
            waiting = deque(pool.submit(self.batch, next(steps)) for _ in range(ahead))
            try:
                while True:
                    ready = waiting.popleft()
                    waiting.append(pool.submit(self.batch, next(steps)))
                    yield ready.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


class _Coded:
    """Texts as ids, from memory where possible: tokenizing costs more than decoding."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._length = tokenizer, tokens.length(tokenizer)
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        """A row of ids for each text."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self._known]
        rows = dict(zip(fresh, tokens.encode(self._tokenizer, fresh, self._length), strict=True))
        found = [rows[text] if text in rows else self._known[text] for text in texts]
        if len(self._known) < _REMEMBERED:
            self._known.update(rows)
        return found


def as_text(value: str | bytes) -> str:
    """Returns a text field of a record as a string."""
    return value.decode() if isinstance(value, bytes) else value
