"""Run configs: Python files with `get_config() -> ml_collections.ConfigDict`, and overrides from the command line."""

import ast
import importlib.util
import json
import sys
import traceback
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxcxr.buckets import check_local
from jaxcxr.errors import UserError, one_line

_PREFIX = "--config."
_PACKAGE = Path(__file__).parent
FOLDER = (_PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent) / "configs"
"""The configs that come with the package: within it where a wheel is installed, beside it in a clone."""


def names() -> tuple[str, ...]:
    """The names of the configs that come with the package, such as `roentgen` and `evaluation/roentgen`."""
    found = (file.relative_to(FOLDER).with_suffix("") for file in FOLDER.rglob("*.py"))
    return tuple(sorted((name.as_posix() for name in found), key=lambda name: ("/" in name, name)))


def find(path: str | Path) -> tuple[Path, str]:
    """The file and the stage ("" for none) of `FILE.py`, `FILE.py:STAGE`, `NAME` or `NAME:STAGE`.

    A file that exists comes first. A name is one of `names`, or its last part if no other config shares that; it may
    also be written as in a clone, `configs/NAME.py`.

    Raises:
      UserError: there is no such file or name, or several configs share the name.
    """
    text = str(path)
    if Path(text).is_file():
        _say_taken(text)
        return Path(text), ""
    name, separator, stage = text.partition(".py:")
    if separator:
        name += ".py"
    elif not text.endswith(".py"):
        name, _, stage = text.partition(":")
    for file in (Path(name), Path(f"{name}.py")):
        if file.is_file():
            _say_taken(name)
            return file, stage
    return FOLDER / f"{_shipped(name)}.py", stage


def _shipped(text: str) -> str:
    """The one of `names` that a text means."""
    known, name = names(), text.removeprefix("./").removeprefix("configs/").removesuffix(".py")
    if name in known:
        return name
    alike = [each for each in known if each.rpartition("/")[2] == name]
    if len(alike) > 1:
        raise UserError(f"{one_line(text)}: several configs have this name; give {' or '.join(alike)}")
    if not alike:
        raise UserError(
            f"{one_line(text)}: no such config file, and no config that comes with jaxcxr; those are {', '.join(known)}"
        )
    return alike[0]


def _say_taken(text: str) -> None:
    """Says that a file of the working directory hides the config of this name that comes with the package."""
    if text in names():
        print(f"{text}: the file here is taken, not the config of this name that comes with jaxcxr", file=sys.stderr)


def _places(path: Path) -> list[str]:
    """Where a config finds what it builds on: beside it, in the folder above, and among those of the package.

    The package's own folder, which is above the configs in a wheel, is none: its modules would hide Python's.
    """
    shipped = [FOLDER, *sorted(each for each in FOLDER.iterdir() if each.is_dir() and each.name != "__pycache__")]
    above = [] if path.resolve().parent == FOLDER.resolve() else [path.parent.parent]
    return [str(folder) for folder in (path.parent, *above, *shipped)]


def load(path: str | Path, overrides: Sequence[str] = (), *, buckets: Collection[str] = ()) -> ConfigDict:
    """Runs `get_config()` of the file that `find` gives and applies overrides such as `--config.data.size=128`.

    `FILE.py:STAGE` and `NAME:STAGE` call `get_config("STAGE")`, for files that describe several stages of one run.
    `buckets` are the keys that may name folders in a bucket.

    Raises:
      UserError: as `find`; has no `get_config` or no such stage, or an override names a key that does not
        exist or gives a value of another type than the key's.
    """
    path, stage = find(path)
    spec = importlib.util.spec_from_file_location(f"jaxcxr_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: is not a Python file; a config is FILE.py, or FILE.py:STAGE for one of its stages")
    module = importlib.util.module_from_spec(spec)
    places = _places(path)
    sys.path[:0] = places
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path}: this config fails: {_in_one_line(error, path)}") from error
    finally:
        del sys.path[: len(places)]
    if not hasattr(module, "get_config"):
        raise UserError(f"{path}: a config file defines get_config() and returns a ConfigDict; this one does not")
    try:
        config = module.get_config(stage) if stage else module.get_config()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if stage and isinstance(error, LookupError | TypeError | ValueError | ArithmeticError):
            raise UserError(f"{path}:{stage}: this config has no such stage") from error
        raise UserError(f"{path}: get_config() fails: {_in_one_line(error, path)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() gives a {type(config).__name__}; a ConfigDict is wanted")
    return changed(config, overrides, buckets=buckets)


def changed(config: ConfigDict, overrides: Sequence[str], *, buckets: Collection[str] = ()) -> ConfigDict:
    """A copy of a config with overrides such as `--config.data.size=128`; `buckets` are keys that may be addresses.

    Raises:
      UserError: as `load`; or a value is an address such as `gs://bucket`, not a local path.
    """
    try:
        config = ConfigDict(config.to_dict())
        for override in overrides:
            _override(config, override)
        for key, value in _leaves(config.to_dict()):
            if key not in buckets:
                check_local(value, f"config.{key}=")
    except RecursionError as error:
        raise UserError("the config is nested too deeply") from error
    return config.lock()


def to_json(config: ConfigDict) -> str:
    """The config as JSON text, stable enough to compare two runs by."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=list) + "\n"


def first_difference(old: dict, new: dict, prefix: str = "") -> str | None:
    """The first key, dotted, at which two nested config dicts differ, with both values; None if they agree.

    What one of them does not have is off in it, as 0 or an empty text: configs of before a key was there are the same.
    """
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if all(isinstance(value, dict) for value in (before, after) if value is not None):
            found = first_difference(before or {}, after or {}, f"{prefix}{key}.")
            if found:
                return found
        elif before != after and (before or after or (key in old and key in new)):
            was, now = (repr(config[key])[:200] if key in config else "absent" for config in (old, new))
            return f"{prefix}{key} was {was}, is {now}"
    return None


def _in_one_line(error: BaseException, path: Path) -> str:
    """An error with the last line of the file at `path` that led to it; a SyntaxError says its line itself."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    return one_line(error) + (f" (line {lines[-1]})" if lines else "")


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values within nested dicts and sequences, with their dotted keys."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, name)
    else:
        yield name, value


def _section(values: dict, name: str) -> ConfigDict:
    """A nested dict as a section of a config; raises UserError for a key that is not a word."""
    for key in values:
        if not isinstance(key, str) or not key or "." in key:
            said = one_line(repr(key))
            raise UserError(f"{_PREFIX}{name}: a key of a section is a text without a dot; this has {said}")
    inner = {
        key: _section(value, f"{name}.{key}") if isinstance(value, dict) else value for key, value in values.items()
    }
    return ConfigDict(inner)


def _override(config: ConfigDict, override: str) -> None:
    name, separator, text = override.removeprefix(_PREFIX).partition("=")
    if override.startswith(_PREFIX) and not separator:
        raise UserError(f"{one_line(override)}: has no value; give {one_line(override)}=VALUE")
    if not override.startswith(_PREFIX):
        remedy = f"a config value is set by {_PREFIX}a.b=value"
        raise UserError(f"{one_line(override)}: not an option of this verb ({remedy})")
    *parents, leaf = name.split(".")
    node = config
    for depth, key in enumerate([*parents, leaf]):
        if not isinstance(node, ConfigDict) or key not in node:
            here = ".".join(parents[:depth]) or "the config"
            known = ", ".join(sorted(node.keys())) if isinstance(node, ConfigDict) else "no keys: it is a value"
            raise UserError(f"{_PREFIX}{one_line(name)}: no such key; {here} has {known}")
        if depth < len(parents):
            node = node[key]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text  # a bare word is a string: --config.data.path=runs/data
    old = node[leaf]
    if isinstance(old, ConfigDict) and not isinstance(value, dict):
        raise UserError(f"{_PREFIX}{name}={one_line(text)}: is a section; set its keys, as {_PREFIX}{name}.KEY=VALUE")
    if isinstance(old, str):
        value = text
    elif isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**1023:
        value = float(value)
    elif isinstance(old, tuple | list) and isinstance(value, list | tuple):
        value = type(old)(value)  # read back from JSON a tuple is a list
    elif isinstance(old, ConfigDict) and isinstance(value, dict):
        value = _section(value, name)
    if old is not None and type(value) is not type(old):
        wanted = f"a {type(old).__name__} is wanted, as in {repr(old)[:200]}"
        raise UserError(f"{_PREFIX}{name}={one_line(text)}: {wanted}")
    node[leaf] = value
