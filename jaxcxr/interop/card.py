"""The model card that goes with an exported folder."""

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxcxr import parsing
from jaxcxr.errors import UserError
from jaxcxr.interop import orbax
from jaxcxr.interop.checkpoint import Checkpoint
from jaxcxr.workdir import CONFIG, Prepared, read_config, read_data, read_metrics

CARD = "README.md"
_LONGEST_LICENCE = 100  # characters
_YAML = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")


@dataclasses.dataclass(frozen=True)
class _Model:
    base: str = ""


@dataclasses.dataclass(frozen=True)
class _Objective:
    error: str
    name: str = ""  # of before `method`


@dataclasses.dataclass(frozen=True)
class _LoRA:
    rank: int = 0
    targets: str = ""


@dataclasses.dataclass(frozen=True)
class _TextualInversion:
    tokens: tuple[tuple[Any, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a card says of a run's config."""

    objective: _Objective
    trainable: str
    steps: int
    batch_size: int
    method: str = ""
    lora: _LoRA = dataclasses.field(default_factory=_LoRA)
    textual_inversion: _TextualInversion = dataclasses.field(default_factory=_TextualInversion)
    model: _Model = dataclasses.field(default_factory=_Model)


def with_card(checkpoint: Checkpoint, source: Path, license: str) -> Checkpoint:
    """The checkpoint with a `README.md` that tells what it is, in the hub's format.

    Args:
      checkpoint: to be written as a diffusers folder.
      source: where it was read: the card has a workdir's config, its metrics and what its data were prepared with.
      license: for the card's licence field.

    Raises:
      UserError: the licence is not one line of text, or a file of the workdir is damaged.
    """
    about = f"Networks: {', '.join(checkpoint.networks)}. Written by jaxcxr as a diffusers folder."
    return Checkpoint(checkpoint.files | {CARD: _card(source, license, about, ())}, checkpoint.tensors)


def of_adapter(source: Path, networks: Iterable[str], license: str) -> bytes:
    """The card of an adapter's folder; arguments and errors as for `with_card`."""
    about = f"An adapter (LoRA) of {' and '.join(networks)}, for diffusers' `load_lora_weights`. Written by jaxcxr."
    return _card(source, license, about, ("lora",))


def _card(source: Path, license: str, about: str, tags: Iterable[str]) -> bytes:
    config = read_config(source) if orbax.is_orbax(source) else None
    body = _converted() if config is None else _trained(source, config)
    return "\n".join([*_header(license, tags), *_title(about), *body, ""]).encode()


def _header(license: str, tags: Iterable[str]) -> list[str]:
    if not license.strip() or not license.isprintable() or len(license) > _LONGEST_LICENCE:
        raise UserError(
            f"--license {license[:_LONGEST_LICENCE]!r}: give one line of at most {_LONGEST_LICENCE} characters, as the"
            " hub's openrail, cc-by-4.0, other"
        )
    # A word that YAML may take for something else than a text is quoted; JSON's quoting is YAML's.
    plain = re.fullmatch(r"[a-z][a-z0-9.-]*", license) and license not in _YAML
    return [
        "---",
        f"license: {license if plain else json.dumps(license, ensure_ascii=False)}",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        f"tags: [{', '.join(['stable-diffusion', 'chest-x-ray', 'jaxcxr', *tags])}]",
        "---",
    ]


def _title(about: str) -> list[str]:
    return [
        "# Chest X-rays from text",
        "",
        "**Draws synthetic medical images, not for diagnosis.**",
        "",
        about,
        "",
    ]


def _converted() -> list[str]:
    return ["Converted without training; see the source checkpoint for its data, licence and use."]


def _trained(source: Path, config: dict[str, Any]) -> list[str]:
    run: _Run = parsing.convert(config, _Run, str(source / CONFIG))
    metrics, words = _last_metrics(source), [word for word in run.textual_inversion.tokens if word]
    rows = [
        ("base model", run.model.base or "none: trained from scratch"),
        ("objective", f"{run.method or run.objective.name}, {run.objective.error}"),
        *([("parameters that learn", f"`{run.trainable}`")] if run.trainable else []),
        *([("LoRA", f"rank {run.lora.rank}, `{run.lora.targets}`")] if run.lora.rank else []),
        *([("words that it learnt", ", ".join(str(word[0]) for word in words))] if words else []),
        *_data(read_data(source)),
        ("steps", f"{metrics.get('step', run.steps):.0f} of {run.steps}, batches of {run.batch_size}"),
        *((name.replace("_", " "), f"{metrics[name]:.4g}") for name in ("loss", "validation_loss") if name in metrics),
    ]
    return [
        "| | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in rows),
        "",
        "Data: state here which images and reports it learnt from, and under which agreement they were used.",
        "",
        "<details><summary>Config</summary>",
        "",
        "```json",
        # Prompts may be a patient's report. What the config says of data is not what they were prepared with.
        json.dumps({key: value for key, value in config.items() if key not in ("samples", "data")}, indent=2),
        "```",
        "",
        "</details>",
    ]


def _data(folders: tuple[Prepared, ...] | None) -> list[tuple[str, str]]:
    """The rows about the data: what they were prepared with, which the run's config need not say."""
    if folders is None:
        return [("images", "how they were prepared is not on record")]
    rows = []
    for number, folder in enumerate(folders, 1):
        of = f" {number} (weight {folder.weight:g})" if len(folders) > 1 else ""
        size, views = folder.settings.get("size"), folder.views.get("train", {})
        colour = "grayscale" if folder.settings.get("channels", 1) == 1 else "colour"
        counted = ", ".join(f"{view or 'not stated'} {count}" for view, count in views.items())
        selected = _listed(folder.settings.get("views")) or "all"
        prompts, sections = (_listed(folder.settings.get(key)) for key in ("prompts", "sections"))
        splits = ", ".join(f"{split} {count}" for split, count in folder.splits.items() if count)
        rows += [
            (f"images{of}", f"{size} × {size} pixels, {colour}, views: {counted or selected}"),
            (f"text{of}", f"{prompts}; sections: {sections}"),
            (f"splits{of}", f"{splits or 'not prepared: read as they are'} (of {folder.source})"),
        ]
    return rows


def _listed(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list) else ""


def _cell(text: str) -> str:
    """A text as one cell of a table, in which nothing of it is markup of the table or HTML."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _last_metrics(source: Path) -> dict[str, float]:
    """The last value of every metric of a workdir that was finite."""
    last: dict[str, float] = {}
    for row in read_metrics(source):
        last |= {name: float(value) for name, value in row.items() if value is not None}
    return last
