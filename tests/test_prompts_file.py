"""Prompts files, before anything is drawn."""

import json

import pytest

from jaxcxr.errors import UserError
from jaxcxr.rows import Lines, Rows


@pytest.mark.parametrize(
    ("data", "prompts"),
    [
        ("a\u2028b\x0cc\x85d\n\ne\rf\n", ["a\u2028b\x0cc\x85d", "e\rf"]),
        ("\ufeffa\r\nb\r\n", ["a", "b"]),
        (" a \n\t\n", ["a"]),
    ],
)
def test_prompts_of_a_text_file_end_at_line_feeds_alone(tmp_path, data, prompts):
    (tmp_path / "p.txt").write_bytes(data.encode())
    assert list(Lines(tmp_path / "p.txt")) == [{"prompt": text} for text in prompts]


def test_prompts_of_json_lines_keep_their_fields(tmp_path):
    rows = [{"prompt": "a\u2028b", "effusion": "left"}, {"prompt": "", "n": 1}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert list(Lines(tmp_path / "p.jsonl")) == rows


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.txt", b"\xff", "is not UTF-8"),
        ("p.txt", b" \n", "has no prompts"),
        ("p.jsonl", b"", "has no prompts"),
        ("p.jsonl", b'{"prompt": 3}', "line 1: .* at `prompt`"),
        ("p.jsonl", b'{"prompt": "a"}\n["b"]', "line 2"),
        ("p.jsonl", b"[" * 10_000, "line 1"),
    ],
)
def test_prompts_that_cannot_be_read(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        Rows(Lines(tmp_path / name))
