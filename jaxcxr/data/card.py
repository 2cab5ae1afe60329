"""The data card of a prepared folder: what is in it and what may be done with it. No report text, no patient ids."""

from collections.abc import Mapping

from jaxcxr.data.summary import Summary


def text(summary: Summary, licence: str) -> str:
    """The card, as Markdown; `licence` says what may be done with the data."""
    settings = summary.settings
    prompts = ", ".join(f"`{template}`" for template in settings["prompts"])
    colour = "8-bit gray" if settings["channels"] == 1 else "8-bit colour"
    lines = [
        "# Radiographs and prompts",
        "",
        f"Made by `jaxcxr prepare` ({summary.source}, fingerprint {summary.fingerprint}).",
        "",
        f"- **Images**: {settings['size']} × {settings['size']}, {colour}, padded square, never cropped or flipped.",
        f"- **Prompts**: {prompts}.",
        *([f"- **Validation**: the split `validate` was {summary.carving()}."] if summary.carved else []),
        f"- **Use**: {licence}",
        "- **Not for diagnosis.** Labels are those of the source, some of them found by programs in reports.",
        "",
        *_table("", {split: {"records": count} for split, count in summary.splits.items()}),
        *_table("view", summary.views),
        *_table("label", summary.labels),
        *_table("known for prompts", summary.fields),
        f"Left out: {_counts(summary.not_selected)}. Bad, in `quarantine.jsonl`: {_counts(summary.bad)}."
        f" Records with the pixels of an earlier one: {summary.duplicates}.",
        "",
        "The settings are in `summary.json`.",
        "",
    ]
    return "\n".join(lines)


def _table(title: str, by_split: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A row a name, a column a split."""
    splits = list(by_split)
    names = sorted({name for counts in by_split.values() for name in counts})
    rows = [f"| {name or 'unstated'} | {' | '.join(str(by_split[s].get(name, 0)) for s in splits)} |" for name in names]
    return [f"| {title} | {' | '.join(splits)} |", "|---" * (1 + len(splits)) + "|", *rows, ""] if rows else []


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items()) or "none"
