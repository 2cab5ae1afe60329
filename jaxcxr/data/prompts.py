"""Prompts made of templates: `"{age} year old {sex}. {impression}"`."""

import string
from collections.abc import Iterable, Mapping, Sequence

from jaxcxr.errors import UserError


def check_templates(templates: Sequence[str], offered: Iterable[str], source: str) -> None:
    """Raises UserError if a template is malformed or asks for a field that is none of those `offered`."""
    offered = sorted(offered)
    for template in templates:
        for name in fields(template):
            if name not in offered:
                raise UserError(
                    f"data.prompts: {template!r} asks for {{{name}}}, which {source} does not give; it gives "
                    + ", ".join(f"{{{field}}}" for field in offered)
                )


def fields(template: str) -> list[str]:
    """The names of a template's fields; raises UserError if it is malformed."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"data.prompts: {template!r}: {error}") from error
    found = [(name, spec, conversion) for _, name, spec, conversion in parsed if name is not None]
    if not found or any(not name.isidentifier() or spec or conversion for name, spec, conversion in found):
        raise UserError(f"data.prompts: {template!r}: give fields such as {{report}}, by plain names")
    return [name for name, _, _ in found]


def fill(templates: Sequence[str], values: Mapping[str, str]) -> tuple[list[str], str]:
    """The prompts of those templates whose every field has a value, and the first field that had none."""
    prompts, absent = [], ""
    for template in templates:
        empty = [name for name in fields(template) if not values.get(name)]
        if not empty:
            prompts.append(template.format_map(values))
        absent = absent or next(iter(empty), "")
    return prompts, absent
