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


def load(path: str | Path, overrides: Sequence[str] = (), *, buckets: Collection[str] = ()) -> ConfigDict:
    """Runs `get_config()` of the file at `path` and applies overrides such as `--config.data.size=128`.

    `FILE.py:STAGE` calls `get_config("STAGE")`, for files that describe several stages of one run. `buckets` are the
    keys that may name folders in a bucket.

    Raises:
      UserError: the file is absent, has no `get_config` or no such stage, or an override names a key that does not
        exist or gives a value of another type than the key's.
    """
    name, _, stage = str(path).partition(".py:")
    path = Path(f"{name}.py" if stage else name)
    if not path.is_file():
        raise UserError(f"{path}: no such config file; the ready ones are in configs/")
    spec = importlib.util.spec_from_file_location(f"jaxcxr_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: is not a Python file; a config is FILE.py, or FILE.py:STAGE for one of its stages")
    module = importlib.util.module_from_spec(spec)
    # So that a config can build on its neighbour, `import base`, or on those of the folder above.
    sys.path[:0] = [str(path.parent), str(path.parent.parent)]
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path}: this config fails: {_in_one_line(error, path)}") from error
    finally:
        del sys.path[:2]
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
