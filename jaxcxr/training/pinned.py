"""The repositories of the hub that a config names, each with the commit that a run begins with."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from jaxcxr import hub
from jaxcxr.parallel.processes import text_from_first
from jaxcxr.workdir import read_config

_KEYS = (
    *("model.base", "model.text_encoder_base"),
    *("model.classifier.pretrained", "model.lpips.backbone", "model.lpips.heads"),
)


def pinned(config: ConfigDict, workdir: Path | None = None) -> ConfigDict:
    """The config with `ORG/NAME@COMMIT` where it names a repository of the hub; all processes get the same commits.

    A run that is resumed keeps the commits that it began with, wherever the branches are now, unless the config names
    another revision: that is another config.

    Args:
      config: of a run, or of what is made for one.
      workdir: of the run; None if there is none.

    Raises:
      UserError: as `hub.pinned`, or the config in the workdir is damaged.
    """
    given = {key: value for key in _KEYS if isinstance(value := _value(config, key), str) and hub.parse(value)}
    if not given:
        return config

    def make() -> str:
        before = ConfigDict((workdir and read_config(workdir)) or {})
        return json.dumps({key: hub.pinned(text, str(_value(before, key) or "")) for key, text in given.items()})

    found = ConfigDict(config.to_dict())
    found.update_from_flattened_dict(json.loads(text_from_first(make)))
    return found.lock()


def _value(config: ConfigDict, key: str) -> object:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, ConfigDict) else None
    return config
