"""The model card that goes with an exported folder."""

import json
from pathlib import Path

from jaxcxr.interop.checkpoint import Checkpoint

CARD = "README.md"


def with_card(checkpoint: Checkpoint, source: Path, license: str) -> Checkpoint:
    """The checkpoint with a `README.md` that tells what it is, in the hub's format.

    Args:
      checkpoint: to be written as a diffusers folder.
      source: where it was read: a workdir's config and metrics are told.
      license: for the card's licence field.
    """
    card = "\n".join([*_header(license), *_body(checkpoint, _json(source / "config.json"), _metrics(source)), ""])
    return Checkpoint(checkpoint.files | {CARD: card.encode()}, checkpoint.tensors)


def _header(license: str) -> list[str]:
    return [
        "---",
        f"license: {license}",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "tags: [stable-diffusion, chest-x-ray, jaxcxr]",
        "---",
    ]


def _body(checkpoint: Checkpoint, config: dict, metrics: dict) -> list[str]:
    model, data = config.get("model", {}), config.get("data", {})
    lines = [
        "# Chest X-rays from text",
        "",
        "**Draws synthetic medical images, not for diagnosis.**",
        "",
        f"Networks: {', '.join(checkpoint.networks)}. Written by jaxcxr as a diffusers folder.",
        "",
    ]
    if not config:
        return [*lines, "Converted without training; see the source checkpoint for its data, licence and use."]
    views = ", ".join(data.get("views", ())) or "all"
    lines += [
        "| | |",
        "|---|---|",
        f"| base model | {model.get('base') or 'none: trained from scratch'} |",
        f"| objective | {config['objective']['name']}, {config['objective']['error']} |",
        f"| parameters that learnt | `{config['trainable']}` |",
        f"| images | {data.get('size')} × {data.get('size')} pixels, grayscale, views: {views} |",
        f"| text | report sections: {', '.join(data.get('sections', ()))} |",
        f"| steps | {metrics.get('step', config['steps'])} of {config['steps']}, batches of {config['batch_size']} |",
    ]
    lines += [
        f"| {name.replace('_', ' ')} | {metrics[name]:.4g} |" for name in ("loss", "validation_loss") if name in metrics
    ]
    lines += [
        "",
        "Data: state here which images and reports it learnt from, and under which agreement they were used.",
        "",
        "<details><summary>Config</summary>",
        "",
        "```json",
        # Prompts may be a patient's report.
        json.dumps({key: value for key, value in config.items() if key != "samples"}, indent=2),
        "```",
        "",
        "</details>",
    ]
    return lines


def _json(file: Path) -> dict:
    """A workdir's config; empty for any other source, whose config.json is a network's."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and "objective" in content else {}


def _metrics(source: Path) -> dict[str, float]:
    """The last value of every metric of a workdir."""
    file = source / "metrics.jsonl"
    last: dict[str, float] = {}
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else ():
        if line.endswith("\n"):  # a run that goes on may be writing its last one
            last |= json.loads(line)
    return last
