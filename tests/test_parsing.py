import dataclasses
import json
import math
import os
import threading
import tracemalloc
from typing import Annotated

import msgspec
import pytest

from jaxcxr import parsing
from jaxcxr.errors import UserError


@dataclasses.dataclass(frozen=True)
class Format:
    count: Annotated[int, msgspec.Meta(ge=1, le=10)] = 1
    widths: tuple[int, ...] | int = 8
    rate: float = 0.5


def test_values_of_the_right_type_are_read():
    assert parsing.parse_json(b'{"count": 3, "widths": [1, 2], "rate": 2}', Format) == Format(3, (1, 2), 2.0)
    assert parsing.convert({"widths": [4]}, Format, "x") == Format(1, (4,), 0.5)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b'{"count": "3"}', ("Expected `int`, got `str`", "`count`")),
        (b'{"count": 11}', ("<= 10", "`count`")),
        (b'{"count": true}', ("`count`",)),
        (b'{"widths": [1, "a"]}', ("`widths[1]`",)),
        (b'{"rate": NaN}', ("malformed",)),
        (b'{"rate": 1e999}', ("out of range",)),
        (b"[" * 100_000, ("Expected",)),
        (b'{"count": ' + b"9" * 10_000 + b"}", ("out of range",)),
        (b"\xff\xfe", ("malformed",)),
        (b"", ("truncated",)),
    ],
)
def test_other_values_are_refused_in_one_line(data, parts):
    with pytest.raises(UserError) as error:
        parsing.parse_json(data, Format, "thing.json", remedy="write it again")
    message = str(error.value)
    assert message.startswith("thing.json: ")
    assert message.endswith("; write it again")
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_deep_json_of_any_kind_is_refused():
    with pytest.raises(UserError, match="nested too deeply"):
        parsing.parse_json(b"[" * 100_000)


def test_lines_end_at_line_feeds_alone(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes('\ufeff{"a": "x\u2028y\x0c"}\n\n{"a": "z"}'.replace("\x0c", "\\f").encode())
    assert [row["a"] for row in parsing.read_lines(file)] == ["x\u2028y\f", "z"]
    file.write_bytes(b'{"a": 1}\n{')
    with pytest.raises(UserError, match="line 2"):
        list(parsing.read_lines(file))


def test_a_file_that_cannot_be_read_or_is_too_large_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        parsing.read_json(tmp_path / "absent.json")
    (tmp_path / "big").write_bytes(b"1" * 100)
    with pytest.raises(UserError, match="larger than"):
        parsing.read_bytes(tmp_path / "big", most=99)


def test_a_small_file_does_not_take_the_memory_that_a_large_one_may(tmp_path):
    (tmp_path / "x.json").write_text("[1]")
    tracemalloc.start()
    try:
        assert parsing.read_json(tmp_path / "x.json", list[int], most=2**31) == [1]
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()
    (tmp_path / "x.json").write_text(json.dumps([0] * 2**20))
    with pytest.raises(UserError, match="is larger than 2 MiB"):
        parsing.read_json(tmp_path / "x.json", most=2**21)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("[2]",))
    writer.start()
    assert parsing.read_json(tmp_path / "pipe") == [2]
    writer.join()


def test_a_large_file_is_in_memory_once(tmp_path):
    (tmp_path / "x").write_bytes(bytes(2**25))
    tracemalloc.start()
    try:
        assert len(parsing.read_bytes(tmp_path / "x")) == 2**25
        assert tracemalloc.get_traced_memory()[1] < 1.5 * 2**25
    finally:
        tracemalloc.stop()


def test_nan_is_read_where_it_may_be(tmp_path):
    (tmp_path / "x.json").write_text('{"a": NaN}')
    with pytest.raises(UserError, match=r"x\.json: "):
        parsing.read_json(tmp_path / "x.json", dict[str, float])
    assert math.isnan(parsing.read_json(tmp_path / "x.json", dict[str, float], nan=True)["a"])
    (tmp_path / "x.json").write_text('{"a": "NaN"}')
    with pytest.raises(UserError, match="Expected `float`, got `str`"):
        parsing.read_json(tmp_path / "x.json", dict[str, float], nan=True)
