"""The rows of a job: any number of them, in bounded memory."""

import contextlib
import gc
import json
import os
import threading
import tracemalloc
from pathlib import Path

import pytest

from jaxcxr.draw import batches
from jaxcxr.errors import UserError
from jaxcxr.manifest import MANIFEST, Settings, file_name, is_whole, write_tables
from jaxcxr.rows import MOST_PICTURES, Lines, Rows

COUNT = 8_000


@pytest.fixture
def many(tmp_path):
    text = "Small left pleural effusion. The heart is enlarged. Comparison is made with study {}. " * 3
    with (tmp_path / "many.jsonl").open("w") as file:
        for number in range(COUNT):
            row = {"prompt": text.format(number, number, number), "view": "PA"}
            if number % 1000 == 999:
                row |= {"count": 2, "seed": number}
            file.write(json.dumps(row) + "\n")
    return tmp_path / "many.jsonl"


def test_memory_does_not_hold_the_rows(many, tmp_path, monkeypatch):
    settings = Settings("base", size=16)
    tracemalloc.start()
    rows = Rows(Lines(many))
    write_tables(tmp_path, (settings.row(number, row) for number, (row, _) in enumerate(rows)))
    monkeypatch.setattr("jaxcxr.manifest.is_whole", lambda file: True)
    assert settings.already_done(tmp_path, rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == COUNT + COUNT // 1000
    assert peak < many.stat().st_size / 4
    assert peak < 120 * COUNT


def test_a_row_is_the_same_wherever_it_is_read(many):
    rows = Rows(Lines(many))
    assert [rows[number] for number in (0, 999, 1000, 1001, len(rows) - 1)] == [
        pair for number, pair in enumerate(rows) if number in (0, 999, 1000, 1001, len(rows) - 1)
    ]
    assert (rows[999][1].seed, rows[1000][1].seed, rows[1001][1].seed) == (999, 1000, None)
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_each_form_is_looked_at_once():
    prompts = [{"prompt": "a", "count": 3}, {"prompt": "b", "negative_prompt": "c"}, {"prompt": "d"}] * 2
    asked = []
    kinds = Rows(prompts).each(lambda request: asked.append(request) or bool(request.negative_prompt))
    assert batches(kinds, 4) == [[0, 1, 2, 4], [5, 6, 7, 9], [3, 8]]
    assert len(asked) == 2


def test_other_rows_have_another_digest():
    digests = {Rows(rows).digest for rows in ([{"prompt": "a"}], [{"prompt": "b"}], [{"prompt": "a", "count": 2}])}
    assert len(digests) == 3


def test_what_a_row_says_goes_before_what_is_given_for_all():
    rows = Rows([{"prompt": "a", "seed": 1}, {"prompt": "b", "seed": None}], {"seed": 2, "negative_prompt": "c"})
    assert [(request.seed, request.negative_prompt) for _, request in rows] == [(1, "c"), (2, "c")]


def test_more_pictures_than_have_keys_are_refused():
    with pytest.raises(UserError, match=f"a job may have {MOST_PICTURES:,}"):
        Rows([{"prompt": "a", "count": 1_000_000}] * 2148)


def test_prompts_may_come_through_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "p.jsonl")
    writer = threading.Thread(target=(tmp_path / "p.jsonl").write_text, args=('{"prompt": "a"}\n\n{"prompt": "b"}\n',))
    writer.start()
    assert [request.prompt for _, request in Rows(Lines(tmp_path / "p.jsonl"))] == ["a", "b"]
    writer.join()


def test_a_manifest_of_other_rows_is_found_out_at_its_end(tmp_path):
    settings = Settings("base", size=16)
    write_tables(tmp_path, [settings.row(0, {"prompt": "a"})])
    for prompts in ([{"prompt": "a"}, {"prompt": "b"}], [{"prompt": "b"}]):
        with pytest.raises(UserError, match="other prompts or settings"):
            settings.already_done(tmp_path, prompts)
    assert not is_whole(tmp_path / file_name(0))
    with pytest.raises(UserError, match="00000.png was drawn, but is missing"):
        settings.already_done(tmp_path, [{"prompt": "a"}])
    assert (tmp_path / MANIFEST).read_text().count("\n") == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("content", [b'{"prompt": "Clear lungs."}\n', b"", b'{"prompt": "\xff"}\n' + b"x" * 2**21])
def test_no_file_is_left_open(tmp_path, content):
    """An open file that is forgotten warns when it is collected. What other tests left open is theirs."""
    gc.collect()
    (tmp_path / "p.jsonl").write_bytes(content)
    with contextlib.suppress(UserError):
        Lines(tmp_path / "p.jsonl")[0]
    before = opened()
    with contextlib.suppress(UserError):
        Lines(tmp_path / "p.jsonl")[0]
    gc.collect()
    assert opened() <= before


def opened() -> set[str]:
    """The regular files that this process has open, and their numbers."""
    files = Path("/proc/self/fd").iterdir()
    return {f"{file.name} {os.readlink(file)}" for file in files if file.is_symlink() and file.is_file()}
