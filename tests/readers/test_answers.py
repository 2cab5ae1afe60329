import json

import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.readers import answers, key
from jaxcxr.readers.key import Key, Truth

HEAD = "study,reader,position,item,task,answer,confidence,ms"
ITEMS = {
    "aaaa": Truth("real", ("hospital",), expected="real"),
    "bbbb": Truth("real", ("model",), expected="synthetic"),
    "cccc": Truth("match", ("model",)),
    "dddd": Truth("match", ("model",), repeat_of="cccc"),
}
KEY = Key(key.FORMAT, "study", {"hospital": "real", "model": "synthetic"}, ("RRRR", "QQQQ"), ITEMS)


def _read(tmp_path, *files, head=HEAD):
    places = []
    for number, lines in enumerate(files):
        places.append(tmp_path / f"{number}.csv")
        places[-1].write_text("\n".join([head, *lines]) + "\n")
    return answers.read(places, KEY)


def _line(reader="RRRR", item="aaaa", answer="real", confidence="3", ms="1200", study="study", task="real"):
    return f"{study},{reader},1,{item},{task},{answer},{confidence},{ms}"


def _match(item="cccc", answer="-2", **more):
    return _line(item=item, answer=answer, task="match", confidence="", **more)


def test_answers_become_tables(tmp_path):
    found = _read(
        tmp_path, [_line(), _line(item="bbbb", confidence="5"), _match()], [_line("QQQQ", "bbbb", "synthetic")]
    )
    np.testing.assert_array_equal(found.table(["aaaa", "bbbb"]), [[0, 0], [np.nan, 1]])
    np.testing.assert_array_equal(found.table(["aaaa", "bbbb"], "confidence"), [[3, 5], [np.nan, 3]])
    np.testing.assert_array_equal(found.table(["cccc"]), [[-2], [np.nan]])
    np.testing.assert_array_equal(found.table(["cccc"], "ms"), [[1200], [np.nan]])
    assert found.left_out == {}
    assert found.missing == {"RRRR": 1, "QQQQ": 3}
    assert list(answers.lines(found)) == [
        "reader RRRR has not answered 1 items",
        "reader QQQQ has not answered 3 items",
    ]


def test_a_spreadsheets_file_is_read(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b"\xef\xbb\xbf" + f"{HEAD}\r\n{_line()}\r\n\r\n".encode())
    assert answers.read([file], KEY).table(["aaaa"]) == [[0]]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (_line("XXXX"), "no reader of the study"),
        (_line(item="zzzz"), "no item of the study"),
        (_line(task="realism"), "no item of the study"),
        (_line(answer="maybe"), "no answer of the task"),
        (_match(answer="3"), "no answer of the task"),
        (_line(confidence="6"), "no confidence from 1 to 5"),
        (_line(confidence="2.5"), "no confidence from 1 to 5"),
        (_line(confidence=""), "no confidence from 1 to 5"),
        (_line(ms="soon"), "no time in milliseconds"),
        (_line(ms="-1"), "no time in milliseconds"),
        (_line(ms="nan"), "no time in milliseconds"),
        (_line() + ",more", "too many or too few fields"),
        ("study,RRRR,1,aaaa", "too many or too few fields"),
    ],
)
def test_lines_that_do_not_count_are_counted(tmp_path, line, why):
    found = _read(tmp_path, [line, _line(item="bbbb")])
    assert found.left_out == {why: 1}
    assert list(found.of["RRRR"]) == ["bbbb"]
    assert f"1 line does not count: {why}" in answers.lines(found)


def test_doubled_lines_count_once_or_not_at_all(tmp_path):
    found = _read(tmp_path, [_line()], [_line(), _line(), _line(item="bbbb"), _line(item="bbbb", answer="synthetic")])
    assert list(found.of["RRRR"]) == ["aaaa"]
    assert found.left_out == {"there already": 2, "more than one answer of a reader to an item": 2}


def test_an_item_that_was_looked_at_again_after_an_export_counts(tmp_path):
    found = _read(tmp_path, [_line(ms="1200")], [_line(ms="1900")])
    assert found.of["RRRR"]["aaaa"] == answers.Answer(0, 3, 1900)
    assert found.left_out == {"there already": 1}


def test_a_reader_without_answers_is_named(tmp_path):
    found = _read(tmp_path, [_line()])
    assert list(found.of) == ["RRRR"]
    assert found.silent == ["QQQQ"]
    assert "reader QQQQ has no answers" in answers.lines(found)


def test_answers_of_another_study_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"0.csv: line 3 is of the study 'other', the key of 'study'"):
        _read(tmp_path, [_line(), _line(study="other")])


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(UserError, match="no column confidence"):
        _read(tmp_path, [], head="study,reader,item,task,answer,ms")
    with pytest.raises(UserError, match="no answer that counts .no item of the study: 1"):
        _read(tmp_path, [_line(item="zzzz")])
    with pytest.raises(UserError, match="no answer that counts .no lines"):
        _read(tmp_path, [])
    with pytest.raises(UserError, match=r"none\.csv: not a readable table"):
        answers.read([tmp_path / "none.csv"], KEY)


def test_a_key_comes_back(tmp_path):
    (tmp_path / "key.json").write_bytes(key.to_json(KEY))
    assert key.read(tmp_path / "key.json") == KEY


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "jaxcxr readers 9"}, "'jaxcxr readers 9'"),
        ({"sets": {"hospital": "genuine", "model": "synthetic"}}, "'hospital' is neither real nor synthetic"),
        ({"items": {"aaaa": {"task": "reel", "sets": ["model"]}}}, "task 'reel'"),
        ({"items": {"aaaa": {"task": "real", "sets": ["model"], "expected": "yes"}}}, "expects 'yes'"),
        ({"items": {"aaaa": {"task": "match", "sets": ["model"], "expected": "real"}}}, "expects 'real'"),
        ({"items": {"aaaa": {"task": "match", "sets": ["nobody"]}}}, "sets that the key does not have"),
        ({"items": {"aaaa": {"task": "better", "sets": ["model"]}}}, "sets that the key does not have"),
        ({"items": {"aaaa": {"task": "match", "sets": ["model"], "repeat_of": "eeee"}}}, "repeats 'eeee'"),
        ({"items": {"aaaa": {"task": "match", "sets": []}}}, "length >= 1"),
        ({"readers": "RRRR"}, "Expected `array`"),
    ],
)
def test_a_damaged_key_is_refused(tmp_path, change, words):
    (tmp_path / "key.json").write_text(json.dumps(json.loads(key.to_json(KEY)) | change))
    with pytest.raises(UserError) as error:
        key.read(tmp_path / "key.json")
    assert words in str(error.value)
    assert "`jaxcxr readers make`" in str(error.value)
