import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tokenizers import Tokenizer

from jaxcxr.data import tokens
from jaxcxr.errors import UserError

PROMPTS = [
    "No acute cardiopulmonary process.",
    "Small left pleural effusion; the heart's size is normal.",
    "Right-sided pneumothorax measuring 2.5 cm, new since 10/12.",
    "Moderate cardiomegaly with mild interstitial edema.",
] * 5
STRANGE = [
    "",
    "   ",
    "38°C naïve Ω 肺",
    "it's they'll WE'VE 1234",
    "a" * 500,
    "tab\tnew\nline",
    "<|endoftext|> x",
    "e\u0301",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    tokens.train(PROMPTS, 600, path)
    return path


def test_vocabulary_is_contiguous_and_ends_with_start_and_end(folder):
    vocab = json.loads((folder / "vocab.json").read_text())
    assert sorted(vocab.values()) == list(range(600))
    assert vocab[tokens.BOS] == 598
    assert vocab[tokens.EOS] == 599
    tokenizer = tokens.load(folder)
    assert len(tokenizer) == 600
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (598, 599)
    assert tokenizer.pad_token_id == tokenizer.unk_token_id == 599
    assert tokenizer.model_max_length == tokens.length(tokenizer) == 77


@pytest.mark.parametrize("pair_only", [False, True])
def test_clip_tokenizer_gives_the_ids_of_the_trained_tokenizer(folder, tmp_path, pair_only):
    from transformers import CLIPTokenizer

    trained = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if pair_only:
        for path in folder.iterdir():
            if path.name != "tokenizer.json":
                (tmp_path / path.name).write_bytes(path.read_bytes())
    loaded = CLIPTokenizer.from_pretrained(str(tmp_path if pair_only else folder))
    for text in PROMPTS[:4] + STRANGE:
        assert loaded(text)["input_ids"] == trained.encode(text).ids, text
    assert loaded.eos_token_id == 599


def test_training_learns_words_and_is_repeatable(folder, tmp_path):
    tokens.train(PROMPTS, 600, tmp_path)
    assert (tmp_path / "vocab.json").read_bytes() == (folder / "vocab.json").read_bytes()
    tokens.train(PROMPTS, 1000, tmp_path)
    pieces = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("No EFFUSION").tokens
    assert pieces == [tokens.BOS, "no</w>", "effusion</w>", tokens.EOS]


def test_any_text_is_coded_without_unknowns_and_comes_back(folder):
    tokenizer = tokens.load(folder)
    for text in STRANGE[2:5]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.eos_token_id not in ids[1:-1]
    assert tokenizer.decode(tokenizer("Small effusion, 38 C")["input_ids"], skip_special_tokens=True) == (
        "small effusion , 3 8 c"
    )


def test_encode_pads_with_end_and_cuts_before_it(folder):
    tokenizer = tokens.load(folder)
    ids = tokens.encode(tokenizer, ["no", "no " * 100, ""], 77)
    assert ids.shape == (3, 77)
    assert ids.dtype == np.int32
    no = tokenizer.convert_tokens_to_ids("no</w>")
    assert ids[0].tolist() == [598, no] + [599] * 75
    assert ids[1].tolist() == [598] + [no] * 75 + [599]
    assert ids[2].tolist() == [598] + [599] * 76
    assert tokens.encode(tokenizer, ["no"], 8).tolist() == [[598, no, 599, 599, 599, 599, 599, 599]]
    assert tokens.encode(tokenizer, [], 77).shape == (0, 77)


def test_encode_from_threads_does_not_mix_lengths(folder):
    tokenizer = tokens.load(folder)
    lengths = [8, 16, 32, 77] * 30
    expected = {length: tokens.encode(tokenizer, PROMPTS, length).tolist() for length in set(lengths)}
    with ThreadPoolExecutor(4) as pool:
        coded = pool.map(lambda length: tokens.encode(tokenizer, PROMPTS, length).tolist(), lengths)
        assert all(ids == expected[length] for length, ids in zip(lengths, coded, strict=True))


def test_small_corpus_has_a_smaller_vocabulary(tmp_path):
    assert tokens.train(["ab ab"], 5000, tmp_path) == 512 + 1 + 2


def test_vocabulary_without_room_for_the_bytes_is_refused(tmp_path):
    with pytest.raises(UserError, match="tokenizer_vocab is 513"):
        tokens.train(PROMPTS, 513, tmp_path)


def test_wrong_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        tokens.load(tmp_path)
    with pytest.raises(UserError, match="absent"):
        tokens.load(tmp_path / "absent")
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        (tmp_path / name).write_text("{ damaged")
    with pytest.raises(UserError, match="damaged"):
        tokens.load(tmp_path)


@pytest.mark.parametrize("key", ["padding_side", "truncation_side"])
def test_a_tokenizer_that_works_from_the_left_is_refused_by_the_key(tmp_path, key):
    tokens.train(["No pleural effusion."] * 3, 600, tmp_path / "tokenizer")
    file = tmp_path / "tokenizer" / "tokenizer_config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(config | {key: "left"}))
    with pytest.raises(UserError, match=key):
        tokens.load(tmp_path / "tokenizer")
    file.write_text(json.dumps(config | {key: "right"}))
    assert getattr(tokens.load(tmp_path / "tokenizer"), key) == "right"
