import dataclasses
import json
from typing import Annotated

import msgspec
from hypothesis import given

from jaxcxr import parsing
from tests.hostile.mutations import byte_variants, json_variants, one_line_or_fine


@dataclasses.dataclass(frozen=True)
class Format:
    count: Annotated[int, msgspec.Meta(ge=1, le=10)]
    widths: tuple[int, ...] | int
    names: dict[str, str | None]


VALID = {"count": 3, "widths": [1, 2], "names": {"a": "b", "c": None}}


@given(json_variants(VALID))
def test_mutated_values_are_read_or_refused_in_one_line(value):
    found = one_line_or_fine(parsing.parse_json, json.dumps(value).encode(), Format, "thing.json")
    if isinstance(found, Format):
        assert 1 <= found.count <= 10


@given(byte_variants(json.dumps(VALID).encode()))
def test_mutated_bytes_are_read_or_refused_in_one_line(data):
    one_line_or_fine(parsing.parse_json, data, Format, "thing.json")
