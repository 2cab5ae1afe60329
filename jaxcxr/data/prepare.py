"""Raw data to a prepared folder: records, tokenizer, quarantine list, contact sheet and summary."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxcxr import hub
from jaxcxr.data import card, shards, sheet, tokens
from jaxcxr.data.ledger import Ledger
from jaxcxr.data.loader import Records
from jaxcxr.data.records import SPLITS
from jaxcxr.data.settings import LIMITS, Settings
from jaxcxr.data.shards import Account
from jaxcxr.data.source import Source, open_source
from jaxcxr.data.summary import LABELS, Summary
from jaxcxr.errors import UserError
from jaxcxr.files import begun_folder, replace_file


def prepare(
    config_data: ConfigDict, folder: str | Path, out: Path, *, workers: int | None = None, beam: Sequence[str] = ()
) -> Summary:
    """Prepares `folder`, raw data of any kind that `source.kinds` lists, into the new folder `out`.

    A second call with the same settings and the same tables returns the summary of the first, or resumes where the
    first was interrupted. What was begun with other settings is moved to `.OUT.partial.old`. `out` appears only when
    everything in it is written.

    Args:
      config_data: the `data` section of a config.
      folder: the raw data, or the name of a data set of the Hugging Face Hub.
      out: the folder to write.
      workers: processes, and `beam`: options of an Apache Beam pipeline in their place; see `shards.make`.

    Raises:
      UserError: a wrong setting, an unknown source, tables without the needed columns, patients in two
        splits, nothing left, too many bad rows (then listed in `out`.quarantine.jsonl), or `out` holds
        something else.
    """
    if not out.name:
        raise UserError(f"{out}: is no name of a new folder; give one")
    settings = Settings.from_config(config_data)
    settings = dataclasses.replace(settings, tokenizer=hub.pinned(settings.tokenizer))
    source = open_source(folder, settings)
    if (done := Summary.read(out)) is not None:
        if not _is_same(done, source):
            raise UserError(
                f"{out}: holds data prepared with other settings or from another source, or by an earlier version that"
                " made no split 'validate' where the source has none; give another --out"
            )
        print(f"{out}: already prepared from the same tables with the same settings")
        return done
    if settings.tokenizer:
        tokens.load(settings.tokenizer)  # before the long work, not after it

    ledger = Ledger()
    # In the order of a hash, so that neighbours in the listing, such as a patient's images, do not stay together.
    listed = sorted(source.candidates(ledger), key=lambda candidate: _digest(candidate.id.encode()))
    if listed and not settings.tokenizer and not any(candidate.split == "train" for candidate in listed):
        raise UserError("the train split is empty, so no tokenizer can be trained: give data.tokenizer a folder")
    fingerprint = _fingerprint(source, carved=bool(ledger.carved))
    failed = out.with_name(f"{out.name}.quarantine.jsonl")
    started = time.perf_counter()
    with begun_folder(out, f"{fingerprint}-{shards.VERSION}", private=True, anew=True) as partial:
        work, maker = shards.cut(listed), shards.Maker(source, partial)
        summary = Summary.read(partial)  # of a job that was interrupted while it cleared up
        if summary is None:
            shards.make(maker, work, workers=workers, beam=beam)
            counts = _book(maker, work, ledger)
            _check(maker, work, ledger, failed)
            shards.describe(partial / shards.RECORDS, work, counts, settings.size, settings.channels)
            summary = _finish(partial, source, fingerprint, ledger, maker, work)
        for shard in work:
            maker.account(shard).unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    print(f"{out}: {summary}\n{time.perf_counter() - started:.0f} s")
    return summary


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _is_same(done: Summary, source: Source) -> bool:
    """Whether preparing the source would give what is in a prepared folder, which an earlier version may have made."""
    if done.fingerprint != _fingerprint(source, carved=bool(done.carved)):
        return False
    if done.carved or done.splits.get("validate"):
        return True
    return source.settings.validate_share == done.settings.get("validate_share", 0)  # 0: before there was such a key


def _fingerprint(source: Source, *, carved: bool) -> str:
    """Hashes what the output follows from, short of the images and reports themselves.

    `validate_share` counts only where the split `validate` is carved out of train. Elsewhere it changes nothing.
    Folders of gray images are older than `channels`.
    """
    free = LIMITS if carved else (*LIMITS, "validate_share")
    free = free if source.settings.channels == 3 else (*free, "channels")
    chosen = {key: value for key, value in dataclasses.asdict(source.settings).items() if key not in free}
    digest = hashlib.sha256(json.dumps([source.name, chosen], sort_keys=True).encode())
    for path in [*source.tables(source.folder), *source.settings.lists(), *_given_tokenizer(source.settings)]:
        digest.update(hashlib.sha256(_listing(path, source)).digest() if path.is_dir() else _digest_of(path))
    return digest.hexdigest()[:16]


def _digest_of(file: Path) -> bytes:
    with file.open("rb") as opened:  # a table may be larger than memory
        return hashlib.file_digest(opened, "sha256").digest()


def _listing(folder: Path, source: Source) -> bytes:
    return json.dumps([str(folder.relative_to(source.folder)), sorted(os.listdir(folder))]).encode()


def _book(maker: shards.Maker, work: list[shards.Shard], ledger: Ledger) -> list[int]:
    """Takes the shards' accounts into the ledger and returns their numbers of records."""
    counts = []
    for account in shards.accounts(maker, work):
        ledger.add(account.ledger)
        counts.append(account.ledger.kept.total())
    return counts


def _check(maker: shards.Maker, work: list[shards.Shard], ledger: Ledger, failed: Path) -> None:
    """Raises UserError where too much is bad or nothing is left; the list is then in `failed`, and the rest kept."""
    try:
        ledger.check(maker.source.folder, maker.source.settings, failed)
    except UserError:
        if ledger.bad:
            ledger.write_quarantine(failed)
        if ledger.kept.total():
            _forget(maker, work)
        else:
            shutil.rmtree(maker.folder)
        raise


def _forget(maker: shards.Maker, work: list[shards.Shard]) -> None:
    """Has the shards with bad rows made again the next time, when what they lack may be there."""
    for shard in work:
        if Account.read(maker.account(shard)).ledger.bad:
            maker.account(shard).unlink()


def _finish(
    partial: Path, source: Source, fingerprint: str, ledger: Ledger, maker: shards.Maker, work: list[shards.Shard]
) -> Summary:
    """Adds everything but the records to `partial`."""
    settings = source.settings
    by_split = {split: [shard for shard in work if shard.split == split] for split in SPLITS if ledger.kept[split]}
    tokenizer = _tokenizer(settings, _prompts(maker, by_split.get("train", ())), partial / "tokenizer")
    ledger.write_quarantine(partial / "quarantine.jsonl")
    sheet.write(Records(partial / shards.RECORDS, next(iter(by_split))), partial / "contact_sheet.png")
    summary = Summary(
        source=source.name,
        records=shards.RECORDS,
        fingerprint=fingerprint,
        settings=settings.as_json(),
        splits={split: ledger.kept[split] for split in SPLITS},
        views=_sorted(ledger.views),
        labels=_sorted(ledger.labels),
        fields=_sorted(ledger.fields),
        duplicates=ledger.duplicates(),
        bad=ledger.reasons(),
        not_selected=dict(sorted(ledger.not_selected.items())),
        carved=ledger.carved,
        vocab_size=len(tokenizer),
        prompts_cut={
            split: tokens.count_cut(tokenizer, _prompts(maker, members)) for split, members in by_split.items()
        },
    )
    labels = {split: _places(maker, members) for split, members in by_split.items()}
    (partial / LABELS).write_text(json.dumps(labels) + "\n", encoding="utf-8")
    (partial / "README.md").write_text(card.text(summary, source.licence), encoding="utf-8")
    replace_file(partial / "summary.json", summary.to_json().encode())  # the last, for it says that all is there
    return summary


def _given_tokenizer(settings: Settings) -> list[Path]:
    """The files of `data.tokenizer`."""
    if not settings.tokenizer:
        return []
    folder = hub.find(settings.tokenizer, tokens.wanted)
    return [file for name in tokens.FILES if (file := folder / name).is_file()]


def _tokenizer(settings: Settings, prompts: Iterator[str], folder: Path) -> Any:
    """Puts the tokenizer into the prepared folder, trained if none is given, and loads it from there."""
    if settings.tokenizer:
        folder.mkdir(exist_ok=True)
        for given in _given_tokenizer(settings):
            shutil.copyfile(given, folder / given.name)
        return tokens.load(folder)
    tokens.train(prompts, settings.tokenizer_vocab, folder)
    return tokens.load(folder)


def _prompts(maker: shards.Maker, members: Sequence[shards.Shard]) -> Iterator[str]:
    for account in shards.accounts(maker, members):
        for prompts in account.prompts:
            yield from prompts


def _places(maker: shards.Maker, members: Sequence[shards.Shard]) -> dict[str, list[int]]:
    """The records of a split by label, as their places; those without any under the empty name."""
    places: dict[str, list[int]] = {}
    number = itertools.count()
    for account in shards.accounts(maker, members):
        for labels in account.labels:
            place = next(number)
            for label in labels or [""]:
                places.setdefault(label, []).append(place)
    return dict(sorted(places.items()))


def _sorted(counts: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    """Orders counts by split, then by name."""
    return {split: dict(sorted(counts[split].items())) for split in SPLITS if split in counts}
