"""Raw data to a prepared folder: records, tokenizer, quarantine list, contact sheet and summary."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxcxr.data import card, sheet, tokens
from jaxcxr.data.loader import as_text, open_records
from jaxcxr.data.records import SPLITS, Ledger, Settings
from jaxcxr.data.summary import Summary
from jaxcxr.errors import UserError
from jaxcxr.files import new_folder


def prepare(config_data: ConfigDict, source: Path, out: Path) -> Summary:
    """Prepares `source`, a tree of MIMIC-CXR-JPG or CheXpert or an image folder, into the new folder `out`.

    A second call with the same settings and the same tables returns the summary of the first. `out` appears
    only when everything in it is written.

    Raises:
      UserError: a wrong setting, an unknown source, tables without the needed columns, patients in two
        splits, nothing left, too many bad rows (then listed in `out`.quarantine.jsonl), or `out` holds
        something else.
    """
    settings = Settings.from_config(config_data)
    if not source.is_dir():
        raise UserError(f"{source}: no such folder: give a tree of MIMIC-CXR-JPG or CheXpert, or an image folder")
    builder_class, tables = _recognise(source)
    if settings.split not in builder_class.splits:
        known = " or ".join(builder_class.splits)
        raise UserError(f"data.split is {settings.split!r}: may be {known} for {builder_class.__name__}")
    lists = [Path(name) for name in (settings.patients_in, settings.patients_out) if name]
    fingerprint = _fingerprint(builder_class.__name__, settings, tables + lists)
    done = Summary.read(out)
    if done is not None:
        if done.fingerprint == fingerprint:
            print(f"{out}: already prepared from the same tables with the same settings")
            return done
        raise UserError(f"{out}: holds data prepared with other settings or from another source: give another --out")
    if settings.tokenizer:
        tokens.load(settings.tokenizer)  # before the long work, not after it

    failed = out.with_name(f"{out.name}.quarantine.jsonl")
    with new_folder(out) as partial:
        ledger = Ledger()
        started = time.perf_counter()
        try:
            records = _write_records(builder_class, source, settings, ledger, partial)
        except UserError:
            if ledger.bad:  # the folder will be gone, and what is to be mended must be known
                ledger.write_quarantine(failed)
            raise
        seconds = time.perf_counter() - started
        ledger.write_quarantine(partial / "quarantine.jsonl")
        summary = _finish(partial, builder_class.__name__, records, fingerprint, settings, ledger)
        (partial / "README.md").write_text(card.text(summary, builder_class.licence), encoding="utf-8")
    failed.unlink(missing_ok=True)
    print(f"{out}: {summary}\n{(len(ledger.bad) + ledger.kept.total()) / seconds:.0f} images/s")
    return summary


def _recognise(source: Path) -> tuple[Any, list[Path]]:
    """Returns the builder for a source and the tables that define it."""
    from jaxcxr.data.chexpert import CheXpert
    from jaxcxr.data.folder import ImageFolder
    from jaxcxr.data.mimic_cxr import MimicCxr

    builders = (ImageFolder, MimicCxr, CheXpert)
    for builder in builders:
        if tables := builder.tables(source):
            return builder, tables
    raise UserError(f"{source}: not a source; one of these has " + ", ".join(builder.signs for builder in builders))


def _fingerprint(builder: str, settings: Settings, tables: list[Path]) -> str:
    """Hashes what the output follows from, short of the images and reports themselves."""
    chosen = dataclasses.asdict(settings)
    del chosen["max_bad_share"]  # decides whether there is an output, not what it is
    digest = hashlib.sha256(json.dumps([builder, chosen], sort_keys=True).encode())
    for path in tables:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _write_records(builder_class: Any, source: Path, settings: Settings, ledger: Ledger, out: Path) -> str:
    """Writes the ArrayRecord files and returns their folder, relative to `out`."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()  # the builder shows one bar over all splits
    workers = os.cpu_count() or 1
    builder = builder_class(source=source, settings=settings, ledger=ledger, data_dir=out, workers=workers)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS speaks of downloads; there are none
        builder.download_and_prepare()
    shutil.rmtree(out / "downloads", ignore_errors=True)
    ledger.check(source, settings.max_bad_share)
    return Path(builder.data_dir).relative_to(out).as_posix()


def _finish(partial: Path, builder: str, records: str, fingerprint: str, settings: Settings, ledger: Ledger) -> Summary:
    """Adds tokenizer, contact sheet and summary to the records in `partial`."""
    sources = {split: open_records(partial / records, split) for split in SPLITS if ledger.kept[split]}
    tokenizer = _tokenizer(settings, sources, partial / "tokenizer")
    sheet.write(next(iter(sources.values())), partial / "contact_sheet.png")
    summary = Summary(
        builder=builder,
        records=records,
        fingerprint=fingerprint,
        settings=json.loads(json.dumps(dataclasses.asdict(settings))),  # as it will be read back
        splits={split: ledger.kept[split] for split in SPLITS},
        views=_sorted(ledger.kept_by["view"]),
        labels=_sorted(ledger.kept_by["label"]),
        fields=_sorted(ledger.kept_by["field"]),
        duplicates=ledger.duplicates,
        bad=ledger.reasons(),
        not_selected=dict(sorted(ledger.not_selected.items())),
        vocab_size=len(tokenizer),
        prompts_cut={split: _cut(tokenizer, source) for split, source in sources.items()},
    )
    written = json.dumps(dataclasses.asdict(summary), indent=2, ensure_ascii=False)
    (partial / "summary.json").write_text(written + "\n", encoding="utf-8")
    return summary


def _tokenizer(settings: Settings, sources: dict[str, Sequence[dict[str, Any]]], folder: Path) -> Any:
    """Puts the tokenizer into the prepared folder, trained if none is given, and loads it from there."""
    if settings.tokenizer:
        folder.mkdir()
        for name in tokens.FILES:
            if (given := Path(settings.tokenizer) / name).is_file():
                shutil.copyfile(given, folder / name)
    elif "train" in sources:
        tokens.train(_prompts(sources["train"]), settings.tokenizer_vocab, folder)
    else:
        raise UserError("the train split is empty, so no tokenizer can be trained: give data.tokenizer a folder")
    return tokens.load(folder)


def _cut(tokenizer: Any, source: Sequence[dict[str, Any]]) -> int:
    """Counts the prompts that do not fit the tokenizer's length."""
    limit = tokens.length(tokenizer)
    return sum(tokens.count(tokenizer, text) > limit for text in _prompts(source))


def _prompts(source: Sequence[dict[str, Any]]) -> Iterator[str]:
    return (as_text(text) for record in source for text in record["prompts"])


def _sorted(counts: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    """Orders counts by split, then by name."""
    return {split: dict(sorted(counts[split].items())) for split in SPLITS if split in counts}
