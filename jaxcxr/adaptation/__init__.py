"""What of a pipeline learns, and how the networks' parameters are made of that and of what is frozen.

Parameters of the networks learn as they are (`config.trainable`), and a part adds some of its own: a module and a line
of `PARTS` each. Merging is the same for training, for evaluation and for what is published.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from jaxcxr.adaptation import lora, textual_inversion
from jaxcxr.errors import UserError
from jaxcxr.interop.tensors import Tensor
from jaxcxr.parallel import rules
from jaxcxr.parsing import parse_json, to_json

ADAPTATION = "adaptation.json"
"""The file of a workdir's `model/` that says which parts it has learnt, and with which settings."""

BASE = "base."
"""Before the name of a parameter: as it was before a part changed it."""


class Part(Protocol):
    """Parameters beside the networks' own, which change some of theirs."""

    changes: frozenset[str]
    """The names of the networks' parameters that it changes; they are kept in float32."""

    def start(self, parameters: Mapping[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        """Its parameters before the first step, by name, float32."""

    def merge(self, name: str, learnt: Mapping[str, Any], parameters: Mapping[str, Any]) -> jax.Array:
        """One of the parameters that it changes, as its own change it."""

    def project(self, learnt: Mapping[str, Any]) -> dict[str, Any]:
        """Those of its parameters that have bounds, within them, after an update."""

    def settings(self) -> dict[str, Any]:
        """What `read` makes it of again, as JSON has it."""


PARTS = {"lora": lora, "textual_inversion": textual_inversion}
"""Each module has `of(config, parameters)`, which gives None where the part is off, `read(settings, parameters)`, and
`owns(name)`, whether a parameter of that name is one of the part's own."""


def union(learnt: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """The networks' parameters, of which some have learnt as they are."""
    return {**frozen, **learnt}


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """What learns.

    Attributes:
      names: the networks' own parameters that learn as they are.
      parts: what learns beside them, by the keys of `PARTS`.
      of_base: whether what parts change is there as it was too, under `BASE` and its name.
    """

    names: frozenset[str]
    parts: Mapping[str, Part]
    of_base: bool = False

    @property
    def exact(self) -> set[str]:
        """Frozen parameters that stay in float32: small changes are added to them before they are rounded."""
        return {name for part in self.parts.values() for name in part.changes}

    def start(self, parameters: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
        """What learns, before the first step; a pure function of the networks' parameters and `key`."""
        learnt = {name: value for name, value in parameters.items() if name in self.names}
        for name, part in self.parts.items():
            learnt |= part.start(parameters, jax.random.fold_in(key, list(PARTS).index(name)))
        return learnt

    def frozen(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Of the networks' parameters those that do not learn."""
        return {name: value for name, value in parameters.items() if name not in self.names}

    def expand(self, learnt: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
        """The networks' parameters by full name."""
        parameters = union({name: value for name, value in learnt.items() if name in self.names}, frozen)
        if self.of_base:
            parameters |= {BASE + name: frozen[name] for name in sorted(self.exact)}
        for part in self.parts.values():
            parameters |= {name: part.merge(name, learnt, parameters) for name in sorted(part.changes)}
        return parameters

    def project(self, learnt: Mapping[str, Any]) -> dict[str, Any]:
        """What learns, after an update, within the bounds that it has."""
        learnt = dict(learnt)
        for part in self.parts.values():
            learnt |= part.project(learnt)
        return learnt

    def file(self) -> dict[str, bytes]:
        """The file that `merged` makes the parts of again; none without parts."""
        settings = {name: part.settings() for name, part in self.parts.items()}
        return {ADAPTATION: to_json(settings)} if settings else {}


def of(config: Any, parameters: Mapping[str, Any]) -> Adaptation:
    """What learns in a run of `config` on networks with such parameters, arrays or shapes.

    Raises:
      UserError: `config.trainable` is no pattern or selects nothing and no part is on, or a part does not fit.
    """
    made = {name: module.of(config, parameters) for name, module in PARTS.items()}
    parts = {name: part for name, part in made.items() if part is not None}
    if config.trainable or not parts:
        names = frozenset(rules.select(parameters, config.trainable))
    else:
        names = frozenset()
    for part, each in parts.items():
        if twice := sorted(names & each.changes):
            raise UserError(
                f"config.trainable={config.trainable!r}: selects {twice[0]}, which config.{part} changes;"
                " leave config.trainable empty, or name other parameters"
            )
    return Adaptation(names, parts)


def changed(config: Any, parameters: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """What the parts of a run change among the parameters of some of its networks, by part.

    A part that finds nothing of its own there is left out; whether it fits the run, `of` says with all of them.
    """
    found: dict[str, frozenset[str]] = {}
    for name, module in PARTS.items():
        with contextlib.suppress(UserError):
            if part := module.of(config, parameters):
                found[name] = part.changes
    return found


def settings_in(files: Mapping[str, bytes]) -> dict[str, Any]:
    """The settings of the parts of a pipeline, by their names in `PARTS`; none for one without parts.

    Raises:
      UserError: the file is damaged, or has a part that is not known.
    """
    written: dict[str, Any] = parse_json(files.get(ADAPTATION, b"{}"), dict[str, Any], ADAPTATION)
    if unknown := [name for name in written if name not in PARTS]:
        raise UserError(f"{ADAPTATION}: has {unknown[0]!r:.100}; it may have {', '.join(PARTS)}")
    return written


def merged(files: Mapping[str, bytes], tensors: Mapping[str, Tensor]) -> tuple[dict[str, bytes], dict[str, Tensor]]:
    """The files and parameters of a pipeline without parts, from those of one with them; they are merged when read."""
    files, tensors = dict(files), dict(tensors)
    for name, settings in settings_in(files).items():
        own = {each: tensor for each, tensor in tensors.items() if PARTS[name].owns(each)}
        rest = {each: tensor for each, tensor in tensors.items() if each not in own}
        part = PARTS[name].read(settings, rest)
        tensors = rest | {each: _merging(part, each, own, rest) for each in part.changes}
    files.pop(ADAPTATION, None)
    return files, tensors


def _merging(part: Part, name: str, own: Mapping[str, Tensor], rest: Mapping[str, Tensor]) -> Tensor:
    """A parameter that is merged when it is read."""
    return Tensor(rest[name].shape, np.dtype(np.float32), lambda: np.asarray(part.merge(name, _Read(own), _Read(rest))))


class _Read(Mapping[str, np.ndarray]):
    """Tensors that are read when they are looked up."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
