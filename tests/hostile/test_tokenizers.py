"""Damaged or hostile files of a tokenizer are read or refused in one line; what is read encodes."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcxr.data import tokens
from jaxcxr.errors import UserError
from tests.hostile.mutations import HOSTILE, byte_variants, json_variants, one_line_or_fine

EXAMPLES = settings(max_examples=settings.default.max_examples // 4)
TEXTS = ["Small left pleural effusion.", ""]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tokens.train(TEXTS * 5, 520, folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


BERT = {
    "vocab.txt": "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "small", "left", "##s", "."]).encode(),
    "tokenizer_config.json": json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 16}).encode(),
}


def load(folder, files):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    tokenizer = tokens.load(folder)
    length = tokens.length(tokenizer)
    assert length >= 2
    ids = tokens.encode(tokenizer, TEXTS, min(length, 64))
    assert (ids >= 0).all()
    tokens.count(tokenizer, TEXTS[0])
    return ids


@EXAMPLES
@given(data=st.data())
@pytest.mark.parametrize("name", ["vocab.json", "special_tokens_map.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("alone", [True, False])
def test_mutated_json_is_read_or_refused_in_one_line(clip, tmp_path, name, alone, data):
    files = {key: value for key, value in clip.items() if alone is False or key != "tokenizer.json" or name == key}
    value = data.draw(json_variants(json.loads(clip[name])))
    one_line_or_fine(load, tmp_path / "x", files | {name: json.dumps(value).encode()})


@EXAMPLES
@given(data=st.data())
@pytest.mark.parametrize("name", ["merges.txt", "vocab.json", "tokenizer.json"])
def test_mutated_bytes_are_read_or_refused_in_one_line(clip, tmp_path, name, data):
    files = {key: value for key, value in clip.items() if key != "tokenizer.json" or name == key}
    one_line_or_fine(load, tmp_path / "x", files | {name: data.draw(byte_variants(clip[name]))})


@EXAMPLES
@given(words=byte_variants(BERT["vocab.txt"]), config=json_variants(json.loads(BERT["tokenizer_config.json"])))
def test_a_mutated_bert_tokenizer_is_read_or_refused_in_one_line(tmp_path, words, config):
    one_line_or_fine(load, tmp_path / "x", BERT | {"vocab.txt": words})
    one_line_or_fine(load, tmp_path / "x", BERT | {"tokenizer_config.json": json.dumps(config).encode()})


@EXAMPLES
@given(
    value=st.sampled_from(HOSTILE), key=st.sampled_from(["pad_token", "unk_token", "model_max_length", "never_split"])
)
def test_hostile_settings_are_read_or_refused_in_one_line(tmp_path, key, value):
    config = json.loads(BERT["tokenizer_config.json"]) | {key: value}
    one_line_or_fine(load, tmp_path / "x", BERT | {"tokenizer_config.json": json.dumps(config).encode()})


@pytest.mark.parametrize("key", ["vocab_file", "merges_file", "tokenizer_file", "vocab", "merges", "name_or_path"])
def test_files_that_a_config_names_are_not_read(clip, tmp_path, key):
    """What is read is the folder's own."""
    names = {"vocab.json", "merges.txt"}
    files = {name: clip[name] for name in names}
    expected = load(tmp_path / "x", files)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, key: "/etc/passwd"}
    np.testing.assert_array_equal(
        load(tmp_path / "x", files | {"tokenizer_config.json": json.dumps(config).encode()}), expected
    )


def test_ids_beyond_the_text_encoders_table_are_refused(clip):
    from jaxcxr.interop.pipeline import StableDiffusion

    files = {f"tokenizer/{name}": data for name, data in clip.items()}
    config = {"model_type": "clip_text_model", "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 100}
    with pytest.raises(UserError, match="vocab_size is 100"):
        _ = StableDiffusion({}, files | {"text_encoder/config.json": json.dumps(config).encode()}).tokenizer
