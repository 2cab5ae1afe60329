"""The work of preparing, cut into shards: each is a file of records with its account, made by any process."""

import concurrent.futures
import functools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from jaxcxr import parsing
from jaxcxr.data import array_record, tokens
from jaxcxr.data.ledger import Booked, Ledger
from jaxcxr.data.records import SPLITS, Candidate, NotSelected, Rejected, features, make_record
from jaxcxr.data.source import Source
from jaxcxr.errors import UserError
from jaxcxr.files import new_file, remove_unfinished

PER_SHARD = 256  # images; what a stopped job does again, and what one process works on at a time
RECORDS = "records"  # the folder of the files


class Shard(NamedTuple):
    """A part of a split: the images from which one file is made, and its place among the others."""

    split: str
    number: int
    of: int
    members: Sequence[Candidate]

    @property
    def file_name(self) -> str:
        """The name by which TFDS finds it."""
        return f"radiographs-{self.split}.array_record-{self.number:05}-of-{self.of:05}"


def cut(candidates: Iterable[Candidate]) -> list[Shard]:
    """Cuts a listing into shards of `PER_SHARD` images of one split, neighbours in the listing."""
    by_split: dict[str, list[Candidate]] = {split: [] for split in SPLITS}
    for candidate in candidates:
        by_split[candidate.split].append(candidate)
    shards: list[Shard] = []
    for split, members in by_split.items():
        starts = range(0, len(members), PER_SHARD)
        shards += [
            Shard(split, number, len(starts), members[start : start + PER_SHARD]) for number, start in enumerate(starts)
        ]
    return shards


VERSION = 3  # of the accounts: an interrupted job of another one is not resumed


class Account(NamedTuple):
    """What a finished shard holds."""

    ledger: Ledger
    prompts: list[list[str]]  # by record
    labels: list[list[str]]  # by record

    @classmethod
    def read(cls, file: Path) -> "Account":
        """Reads what `Maker` has written; raises UserError if it is damaged."""
        kind, remedy = tuple[Booked, list[list[str]], list[list[str]]], "remove the file and run it again"
        read: tuple[Booked, list[list[str]], list[list[str]]] = parsing.read_json(file, kind, remedy=remedy, most=2**30)
        return cls(Ledger.from_json(read[0]), *read[1:])


class Maker:
    """Makes shards of a source in a folder; is pickled to every process that shall."""

    def __init__(self, source: Source, folder: Path):
        self.source, self.folder = source, folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Maker, (self.source, self.folder)

    @functools.cached_property
    def _counter(self) -> Any:
        settings = self.source.settings
        return tokens.load(settings.tokenizer) if any(settings.tokens) else None

    @functools.cached_property
    def _features(self) -> Any:
        return features(self.source.settings.size, self.source.settings.channels)

    def account(self, shard: Shard) -> Path:
        """The file that says that a shard is finished, written after its records."""
        return self.folder / f"{shard.file_name}.json"

    def __call__(self, shard: Shard) -> int:
        """Makes a shard and returns the number of images it was made of; memory holds one of them at a time.

        Raises:
          UserError: the folder cannot be written.
        """
        if self.account(shard).is_file():  # by a process of Beam's that had no time to say so
            return len(shard.members)
        account, file = Account(Ledger(), [], []), self.folder / RECORDS / shard.file_name
        file.unlink(missing_ok=True)  # of a process that ended between the records and their account
        array_record.write(file, self._records(shard, account), packed=True)
        with new_file(self.account(shard)) as partial:
            content = (vars(account.ledger), account.prompts, account.labels)
            partial.write_text(json.dumps(content), encoding="utf-8")
        return len(shard.members)

    def _records(self, shard: Shard, account: Account) -> Iterator[bytes]:
        """Yields the records, and books them and what makes none."""
        for candidate in shard.members:
            try:
                fields, picture = self.source.fields(candidate), self.source.picture
                made = make_record(candidate, fields, self.source.settings, picture, self._counter)
            except (Rejected, NotSelected) as refusal:
                account.ledger.refuse(candidate.where, refusal)
                continue
            yield self._features.serialize_example(self._features.encode_example(made.record))
            account.ledger.keep(candidate, made)
            account.prompts.append(made.record["prompts"])
            account.labels.append(made.record["labels"])


def make(maker: Maker, shards: Sequence[Shard], *, workers: int | None = None, beam: Sequence[str] = ()) -> None:
    """Makes the shards that are not there yet.

    Args:
      maker: makes one.
      shards: all of them.
      workers: processes; by default one a core, as far as there is work for them.
      beam: options of an Apache Beam pipeline, such as `--runner=FlinkRunner`, that shall do it instead.

    Raises:
      UserError: the folder cannot be written, or a process was killed.
    """
    todo = [shard for shard in shards if not maker.account(shard).is_file()]
    images = sum(len(shard.members) for shard in shards)
    left = sum(len(shard.members) for shard in todo)
    (maker.folder / RECORDS).mkdir(exist_ok=True)
    for folder in (maker.folder, maker.folder / RECORDS):
        remove_unfinished(folder)
    if workers is None:
        workers = min(os.cpu_count() or 1, -(-left // PER_SHARD))
    if beam:
        _on_beam(maker, todo, beam)
        return
    with tqdm(total=images, initial=images - left, unit="img", desc="prepare") as bar:
        for count in _on_processes(maker, todo, workers) if workers > 1 else map(maker, todo):
            bar.update(count)


def _on_processes(maker: Maker, shards: Sequence[Shard], workers: int) -> Iterator[int]:
    # Not forked: the libraries at hand run threads.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _begin, (maker,)) as pool:
        try:
            for future in concurrent.futures.as_completed([pool.submit(_make, shard) for shard in shards]):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError("a process of prepare was killed, for want of memory?; run it again to resume") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


_maker: Maker


def _begin(maker: Maker) -> None:
    """What a process does first."""
    global _maker
    _maker = maker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process tells the others
    first = multiprocessing.parent_process()
    assert first is not None

    def end_with_the_first() -> None:
        first.join()
        os._exit(1)

    threading.Thread(target=end_with_the_first, daemon=True).start()


def _make(shard: Shard) -> int:
    return _maker(shard)


def _on_beam(maker: Maker, shards: Sequence[Shard], options: Sequence[str]) -> None:
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError("apache-beam is not installed: pip install 'jaxcxr[beam]'") from error
    try:
        with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
            _ = pipeline | beam.Create(list(shards)) | beam.Reshuffle() | beam.Map(maker)
    except RuntimeError as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the Beam pipeline failed ({said}); run it again to resume") from error


def accounts(maker: Maker, shards: Iterable[Shard]) -> Iterator[Account]:
    """Yields the accounts of finished shards, one in memory at a time."""
    for shard in shards:
        yield Account.read(maker.account(shard))


def describe(folder: Path, shards: Sequence[Shard], counts: Sequence[int], size: int, channels: int) -> None:
    """Writes what makes a TFDS dataset of the files, read by `tfds.builder_from_directory`.

    Args:
      folder: that of the files.
      shards: all of them.
      counts: their numbers of records.
      size: height and width in pixels.
      channels: 1, gray, or 3, in colour.
    """
    import tensorflow_datasets as tfds

    lengths: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for shard, count in zip(shards, counts, strict=True):
        lengths.setdefault(shard.split, []).append(count)
        size_here = (folder / shard.file_name).stat().st_size if count else 0
        sizes[shard.split] = sizes.get(shard.split, 0) + size_here
    for shard in shards:
        if not sum(lengths[shard.split]):  # TFDS knows no empty split
            (folder / shard.file_name).unlink(missing_ok=True)
    splits = [
        tfds.core.SplitInfo(name=split, shard_lengths=each, num_bytes=sizes[split])
        for split, each in lengths.items()
        if sum(each)
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features(size, channels),
        split_infos=splits,
        version="3.0.0",
        check_data=False,
        description="Images and prompts.",
    )
