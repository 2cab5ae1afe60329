"""What the data of a run were prepared with: on record in the workdir, and compared with config and restarts."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxcxr.data import settings, weights
from jaxcxr.data.source import is_source, open_source
from jaxcxr.data.summary import Summary
from jaxcxr.errors import UserError
from jaxcxr.training.feed import folders
from jaxcxr.workdir import Prepared, read_data

# Not compared: size and channels always have to be the folder's, the tokenizer is the folder's or the base's,
# `validate_share` has no effect where the source has a split `validate`, and limits decide whether a row or a folder is
# damaged.
_FREE = ("size", "channels", "tokenizer", "tokenizer_vocab", "validate_share", *settings.LIMITS)
_FILES = ("patients_in", "patients_out", "report_exceptions", "report_tables")  # are compared by their names


def describe(config: ConfigDict) -> tuple[Prepared, ...]:
    """What the folders of `config.data` were prepared with.

    Raises:
      UserError: one is neither prepared nor a source, or the table of weights cannot be read.
    """
    table = weights.digest(weights.read(config.data.weights)) if config.data.weights else ""
    described = (_describe(Path(folder.path), folder.weight, config) for folder in folders(config))
    return tuple(dataclasses.replace(each, weights=table) for each in described)


def _describe(path: Path, weight: float, config: ConfigDict) -> Prepared:
    summary = Summary.read(path)
    if summary is None and is_source(path):
        own = settings.Settings.from_config(config.data)
        return Prepared(str(path), weight, open_source(path, own).name, "", own.as_json(), {}, {}, {})
    found = Summary.require(path)
    return Prepared(
        str(path),
        weight,
        found.source,
        found.fingerprint,
        found.settings,
        found.splits,
        found.views,
        found.labels,
    )


def check_settings(config: ConfigDict, found: tuple[Prepared, ...]) -> None:
    """Compares what a config says of preparing with what the folders were prepared with.

    A key counts where its value is not the default: a config that leaves `data` alone fits any folder.

    Raises:
      UserError: a key of `config.data` is neither its default nor what a folder was prepared with.
    """
    for key, default in settings.defaults().items():
        if key in _FREE or key not in config.data or _plain(key, config.data[key]) == _plain(key, default):
            continue
        for folder in found:
            was = folder.settings.get(key, default)
            if _plain(key, config.data[key]) != _plain(key, was):
                raise UserError(
                    f"config.data.{key} is {_said(config.data[key])}, but {folder.path} was prepared with {_said(was)};"
                    f" give --config.data.{key}={_typed(_said(was))}, or prepare a new folder with this config"
                )


def check_there(workdir: Path, config: ConfigDict) -> None:
    """Sees to it that the folders which a run that is resumed reads are there.

    Raises:
      UserError: one is not, with the option that says where it is.
    """
    for number, folder in enumerate(folders(config)):
        for key, path in (("path", folder.path), ("cache", folder.cache)):
            if path and not Path(path).exists():
                option = f"data.mixture={_typed(tuple(config.data.mixture))}" if number else f"data.{key}=FOLDER"
                raise UserError(
                    f"{path}: is not there; if it has moved, give its new place:"
                    f" jaxcxr train --workdir {shlex.quote(str(workdir))} --config.{option}"
                )


def check_same(workdir: Path, found: tuple[Prepared, ...]) -> None:
    """Compares the data with those that a run was started with; folders may have moved.

    Raises:
      UserError: one of them is another than before.
    """
    for before, now in zip(read_data(workdir) or (), found, strict=False):
        same = now.fingerprint == before.fingerprint and (bool(now.fingerprint) or now.path == before.path)
        if not same:
            raise UserError(
                f"{now.path}: holds other data than {workdir} was started with, which were in {before.path}"
                f" (fingerprint {now.fingerprint or 'none'}, was {before.fingerprint or 'none'});"
                " give --config.data.path the folder of before, or name another --workdir"
            )
        if before.weights and now.weights != before.weights:
            raise UserError(
                f"config.data.weights: holds other weights than {workdir} was started with; give the table of before,"
                " or name another --workdir"
            )


def _plain(key: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(key, each) for each in value]
    return Path(value).name if key in _FILES else value


def _said(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _typed(value: Any) -> str:
    """A value as a shell takes it."""
    text = str(value)
    if isinstance(value, tuple) and '"' not in text:  # then no text in it has a quote of either kind
        text = text.replace("'", '"')
    return shlex.quote(text)
