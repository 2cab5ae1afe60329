"""New words of the text encoder's: their training against diffusers' algorithm, and what they leave alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxcxr import adaptation, interop
from jaxcxr import config as configs
from jaxcxr.adaptation import textual_inversion
from jaxcxr.data import added_tokens, tokens
from jaxcxr.errors import UserError
from jaxcxr.interop import card, embeddings
from jaxcxr.interop.orbax import latest_step, read_item
from jaxcxr.training.model import assemble, make_model
from jaxcxr.training.optimizer import make_optimizer
from jaxcxr.training.step import init_state, make_step
from jaxcxr.training.train import train
from tests import pipelines
from tests.training import runs

TABLE = "text_encoder.text_model.embeddings.token_embedding.embedding"
ROWS = "text_encoder.text_model.embeddings.token_embedding.vectors"
WORDS = (("<effusion>", 3, "pleural effusion"), ("<left>", 1))
PROMPTS = ["Radiograph with <effusion>.", "<left> lung: <effusion>", "A <left> side.", "No acute process."]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pipelines.write(tmp_path_factory.mktemp("words") / "base")


def config_of(base, **changes) -> ConfigDict:
    config = configs.load(runs.ROOT / "configs" / "base.py")
    config.trainable, config.model.base = "", str(base)
    config.data.size = 16
    config.textual_inversion.tokens = WORDS
    config.update_from_flattened_dict(changes)
    return config


def run_config(base, **changes) -> ConfigDict:
    """A training in which every prompt has a word."""
    folder = runs.worded(("{view} radiograph with <effusion>, <left>. {report}",))
    given = {"textual_inversion.tokens": WORDS, "data.path": str(folder), "trainable": "", "objective.error": "l1"}
    config = runs.diffusion(base, **given, **changes)
    with config.unlocked():
        config.model.unet = config.model.text_encoder = ConfigDict()
    config.model.measure_scaling_factor = False
    config.data.prompts = ("{view} radiograph with <effusion>, <left>. {report}",)
    return config


def test_updates_are_those_of_diffusers(base):
    """Its script updates the whole table with AdamW and puts the other rows back after each step.

    Weight decay shrinks the other rows too before they are put back, and AdamW has no norm over rows, so that decay and
    moments of the new rows are those that they have by themselves.
    """
    import torch
    import transformers

    config = config_of(base, **{"optimizer.weight_decay": 0.3, "optimizer.learning_rate": 1e-2})
    config.optimizer.clip_norm, config.optimizer.warmup_steps = 0.0, 0
    pipeline, parameters = make_model(config, jax.random.key(0))
    learning = adaptation.of(config, parameters)
    learnt, frozen = learning.start(parameters, jax.random.key(0)), learning.frozen(parameters)
    assert learnt.keys() == {ROWS}
    ids = tokens.encode(pipeline.tokenizer, PROMPTS, 77)
    target = np.random.default_rng(0).standard_normal((4, 77, 32), np.float32)

    def loss(parameters, batch, keys):
        states = pipeline.with_parameters(parameters).text_encoder(batch["input_ids"])
        return jnp.square(states - batch["target"]).mean((1, 2)), {}

    tx = make_optimizer(config.optimizer, 100)
    step = jax.jit(make_step(loss, tx, 0.0, 0, expand=learning.expand, project=learning.project))
    state = init_state(learnt, tx)
    for _ in range(3):
        state, _ = step(state, frozen, {"input_ids": ids, "target": target})

    tokenizer = tokens.load(base / "tokenizer")
    new = [name for word, count, *_ in WORDS for name in added_tokens.names(word, count)]
    assert tokenizer.add_tokens(new) == 4
    theirs = transformers.CLIPTextModel.from_pretrained(base / "text_encoder")
    theirs.resize_token_embeddings(len(tokenizer))
    table = theirs.get_input_embeddings().weight
    table.data[-4:] = torch.from_numpy(np.array(learnt[ROWS]))
    before = table.data.clone()
    optimizer = torch.optim.AdamW([table], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.3)
    for _ in range(3):
        states = theirs(torch.from_numpy(ids).long()).last_hidden_state
        torch.nn.functional.mse_loss(states, torch.from_numpy(target)).backward()
        optimizer.step()
        optimizer.zero_grad()
        table.data[:-4] = before[:-4]
    np.testing.assert_allclose(state["learnt"][ROWS], table.data[-4:].numpy(), rtol=1e-4, atol=1e-5)
    moved = np.abs(np.asarray(state["learnt"][ROWS]) - np.asarray(learnt[ROWS]))
    assert moved.max(axis=1).min() > 1e-2, "every row learns"
    merged = learning.expand(state["learnt"], frozen)[TABLE]
    np.testing.assert_array_equal(merged[:-4], before[:-4].numpy())


@pytest.mark.parametrize("word_norm", [0.2, 5.0])
def test_vectors_stay_within_their_bound_and_come_back_from_it(word_norm):
    chosen = textual_inversion.Settings(tokens=(("<a>", 2),), max_norm=1.0)
    part = textual_inversion.TextualInversion(chosen, TABLE)
    start = np.float32([[3, 4], [0.3, 0.4]]) * word_norm / 5
    learnt = part.start({TABLE: np.concatenate([np.ones((7, 2), np.float32), start])}, jax.random.key(0))
    lengths = np.linalg.norm(start, axis=1, keepdims=True)
    np.testing.assert_allclose(learnt[ROWS], start / np.maximum(lengths, 1), rtol=1e-6)
    tx, learning = optax.sgd(0.05), adaptation.Adaptation(frozenset(), {"textual_inversion": part})

    def towards(sign):
        return lambda parameters, batch, keys: (sign * parameters[TABLE][7:].sum()[None], {})

    frozen, batch = {TABLE: jnp.ones((9, 2))}, {"x": jnp.zeros(1)}
    state = init_state(learnt, tx)
    for sign, turns in ((-1, 60), (1, 3)):
        step = make_step(towards(sign), tx, 0.0, 0, expand=learning.expand, project=learning.project)
        for _ in range(turns):
            state, _ = step(state, frozen, batch)
            norms = np.linalg.norm(state["learnt"][ROWS], axis=1)
            assert norms.max() < 1 + 1e-6
        assert (norms < 0.9).all() == (sign == 1), "outwards to the bound, and inwards at once"


def test_first_vectors(base):
    encoder = interop.load(base, only=("text_encoder",)).parameters()[TABLE]
    tokenizer = tokens.load(base / "tokenizer")
    pleural, effusion = tokenizer.convert_tokens_to_ids(["pleural</w>", "effusion</w>"])

    def rows(**changes):
        _, parameters = make_model(config_of(base, **changes), jax.random.key(3))
        np.testing.assert_array_equal(parameters[TABLE][:-4], encoder, err_msg="the vocabulary's own")
        return np.asarray(parameters[TABLE][-4:])

    by_words = rows()
    np.testing.assert_array_equal(by_words[:3], np.asarray(encoder)[[pleural, effusion, pleural]])
    np.testing.assert_allclose(by_words[3], encoder.mean(axis=0), rtol=1e-5, atol=1e-7)
    many = rows(**{"textual_inversion.tokens": (("<x>", 2), ("<y>", 2)), "textual_inversion.initial": "random"})
    assert len(np.unique(many, axis=0)) == 4
    assert 0.5 < (many - np.asarray(encoder.mean(axis=0))).std() / encoder.std(axis=0).mean() < 1.5


def test_prompts_are_expanded_as_diffusers_does(base):
    from diffusers.loaders import TextualInversionLoaderMixin

    pipeline, _ = make_model(config_of(base), jax.random.key(0))
    theirs = tokens.load(base / "tokenizer")
    theirs.add_tokens(["<effusion>", "<effusion>_1", "<effusion>_2", "<left>"])
    prompts = [
        *PROMPTS,
        "<effusion>s<effusion> <left>",
        "<effusion>_1",
        "<EFFUSION>",
        "",
        "<left>" + " <effusion>" * 40,
    ]
    converted = TextualInversionLoaderMixin().maybe_convert_prompt(prompts, theirs)
    wanted = theirs(converted, padding="max_length", truncation=True, max_length=77)["input_ids"]
    np.testing.assert_array_equal(tokens.encode(pipeline.tokenizer, prompts, 77), wanted)
    assert tokens.count(pipeline.tokenizer, "<effusion>") == 5
    assert added_tokens.added(pipeline.tokenizer) == {"<effusion>": [595, 596, 597], "<left>": [598]}
    assert added_tokens.added(theirs) == added_tokens.added(pipeline.tokenizer)


@pytest.mark.parametrize("kind", ["whole", "words", "bare", "decoder", "bert", "roberta"])
def test_every_kind_of_tokenizer_takes_words(tmp_path, kind):
    folder = tmp_path / "tokenizer"
    if kind in ("bert", "roberta"):
        folder.mkdir()
        names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "small", "left", "<", ">", "_", "1", "."]
        if kind == "bert":
            (folder / "vocab.txt").write_text("\n".join(names) + "\n")
        else:
            symbols = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *tokens._byte_symbols()]
            (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(symbols)}))
            (folder / "merges.txt").write_text("#version: 0.2\n")
        config = {
            "tokenizer_class": f"{kind.title() if kind == 'bert' else 'Roberta'}Tokenizer",
            "model_max_length": 40,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    else:
        tokens.train(pipelines.REPORTS * 3, 600, folder)
        listed = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
        if kind != "whole":
            (folder / "tokenizer.json").unlink()
        if kind == "bare":
            (folder / "tokenizer_config.json").unlink()
        if kind == "decoder":
            config = json.loads((folder / "tokenizer_config.json").read_text())
            config["added_tokens_decoder"] = {str(each.pop("id")): each for each in listed}
            (folder / "tokenizer_config.json").write_text(json.dumps(config))
    files = {f"tokenizer/{file.name}": file.read_bytes() for file in folder.iterdir()}
    theirs = tokens.load(folder)
    first, length = added_tokens.first_new_id(theirs), tokens.length(theirs)
    new = [*added_tokens.names("<eff>", 3), "<one>"]
    theirs.add_tokens(new)
    for name, data in added_tokens.with_added(files, new, first).items():
        (tmp_path / name).write_bytes(data)
    ours = tokens.load(folder)
    assert ours.convert_tokens_to_ids(new) == list(range(first, first + 4)) == theirs.convert_tokens_to_ids(new)
    for prompt in ("small <eff> left.", "<eff>s<one>", "<one> <EFF>"):
        np.testing.assert_array_equal(tokens.encode(ours, [prompt], length), tokens.encode(theirs, [prompt], length))
    ids = tokens.encode(ours, ["small <eff> left."], length)[0].tolist()
    assert [number for number in ids if number >= first] == [first, first + 1, first + 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": (("small</w>", 2),)}, r"token 'small</w>': the tokenizer has 'small</w>' already"),
        (
            {"tokens": (("<Eff>", 2),)},
            r"token '<Eff>': the tokenizer reads it as '<eff>'; choose a word of small letters",
        ),
        ({"tokens": (("<a>", 76),)}, r"token '<a>': has 76 vectors; the text encoder takes 1 to 75"),
        ({"tokens": (("two words", 1),)}, r"token 'two words': is a word of 1 to 100 characters without spaces"),
        (
            {"tokens": (("<a>", 1, "pleural effusion"),)},
            r"starts from 'pleural effusion', which is 2 tokens.*1 vectors",
        ),
        ({"tokens": (("<a>", 2, "<|endoftext|>"),)}, r"has a word that the tokenizer does not know"),
        ({"tokens": (("<a>", 2, " "),)}, r"has a word that the tokenizer does not know"),
        ({"tokens": (("<a>", 1), ("x<a>", 1))}, r"'<a>' is in 'x<a>'"),
        ({"tokens": (("<a>", 1), ("<a>", 2))}, r"'<a>' is in '<a>'"),
        ({"tokens": (("<a>", 0),)}, r"config\.textual_inversion\.tokens has \('<a>', 0\)"),
        ({"tokens": ("<a>", 4)}, r"config\.textual_inversion\.tokens has 4"),
        ({"initial": "zero"}, r"config\.textual_inversion.*initial"),
        ({"max_norm": -1.0}, r"config\.textual_inversion.*max_norm"),
        ({"max_norm": float("inf")}, r"config\.textual_inversion\.max_norm=inf"),
    ],
)
def test_settings_that_do_not_fit_are_told(base, changes, message):
    config = config_of(base, **{f"textual_inversion.{key}": value for key, value in changes.items()})
    with pytest.raises(UserError, match=message):
        make_model(config, jax.random.key(0))


def test_what_does_not_go_together_is_told(base):
    config = config_of(base, method="autoencoder")
    with pytest.raises(UserError, match=r"config\.textual_inversion: wants a text encoder"):
        make_model(config, jax.random.key(0))
    config = config_of(base, trainable=r"text_encoder\..*")
    _, parameters = make_model(config, jax.random.key(0))
    with pytest.raises(UserError, match=r"config\.trainable=.*: selects .*token_embedding.*config\.textual_inversion"):
        adaptation.of(config, parameters)
    config = config_of(base, **{"optimizer.name": "schedule_free", "textual_inversion.max_norm": 1.0})
    with pytest.raises(UserError, match=r"config\.textual_inversion\.max_norm: schedule_free"):
        adaptation.of(config, parameters)


def test_berts_take_words_too(base, tmp_path):
    pipelines.write_bert(tmp_path / "bert", width=32)
    config = config_of(base, **{"model.text_encoder_base": str(tmp_path / "bert")})
    config.textual_inversion.tokens = (("<effusion>", 2, "x!"),)
    with pytest.raises(UserError, match="has a word that the tokenizer does not know"):
        make_model(config, jax.random.key(0))
    config.textual_inversion.tokens = (("<effusion>", 2, "xy"),)
    pipeline, parameters = make_model(config, jax.random.key(0))
    learning = adaptation.of(config, parameters)
    (name,) = learning.exact
    before = interop.load(tmp_path / "bert").parameters()[name]
    learnt = {each: value + 1 for each, value in learning.start(parameters, jax.random.key(0)).items()}
    table = learning.expand(learnt, learning.frozen(parameters))[name]
    np.testing.assert_array_equal(table[:-2], before)
    x, y = pipeline.tokenizer.convert_tokens_to_ids(["x", "##y"])
    np.testing.assert_allclose(table[-2:], before[jnp.array([x, y])] + 1, rtol=1e-6)
    ids = tokens.encode(pipeline.tokenizer, ["an <effusion>."], 64)
    assert np.isin([len(before), len(before) + 1], ids).all()
    assert pipeline.with_parameters({**parameters, name: table}).text_encoder(ids).shape == (1, 64, 32)


def test_a_plan_needs_no_tokenizer(base):
    files = {name: data for name, data in interop.read(base).files.items() if not name.startswith("tokenizer/")}
    planned = assemble(config_of(base), files, lambda: None)
    trained, _ = make_model(config_of(base), jax.random.key(0))
    assert planned.parameters()[TABLE].shape == trained.parameters()[TABLE].shape == (599, 32)


def test_a_run_learns_its_words_alone_and_resumes_bit_for_bit(base, tmp_path):
    config = run_config(base, **{"textual_inversion.max_norm": 0.5, "ema_decay": 0.5, "checkpoint_every": 2})
    config.optimizer.learning_rate = 3e-2
    train(config, tmp_path / "whole")
    for stop in (1, 3, None):
        train(config, tmp_path / "stopped", stop_at=stop)
    states = [
        {item: read_item(tmp_path / name / "checkpoints" / "6" / item) for item in ("params", "ema")}
        for name in ("whole", "stopped")
    ]
    assert latest_step(tmp_path / "whole") == 6
    assert states[0]["params"].keys() == {ROWS}
    for item in ("params", "ema"):
        np.testing.assert_array_equal(states[0][item][ROWS].read(), states[1][item][ROWS].read())
        assert np.linalg.norm(states[0][item][ROWS].read(), axis=1).max() <= 0.5 + 1e-6

    ours, before = interop.read(tmp_path / "whole"), interop.read(base)
    interop.diffusers.write(ours, tmp_path / "exported")
    readme = card.with_card(ours, tmp_path / "whole", "mit").files["README.md"].decode()
    assert "| words that it learnt | &lt;effusion>, &lt;left> |" in readme
    for found in (ours, interop.read(tmp_path / "exported")):
        assert "adaptation.json" not in found.files
        assert found.tensors.keys() == before.tensors.keys()
        for name, tensor in before.tensors.items():
            read = found.tensors[name].read()
            np.testing.assert_array_equal(read[: len(read) - 4] if name == TABLE else read, tensor.read())
        rows = embeddings.of(found)
        np.testing.assert_array_equal(np.concatenate([*rows.values()]), states[0]["ema"][ROWS].read())
        assert {word: len(each) for word, each in rows.items()} == {"<effusion>": 3, "<left>": 1}
    first = make_model(config, jax.random.key(config.seed))[1][TABLE][-4:]
    assert np.abs(np.concatenate([*rows.values()]) - first).max(axis=1).min() > 1e-3, "every vector has moved"


def test_words_that_no_prompt_has_are_told(base, tmp_path):
    config = run_config(base)
    config.textual_inversion.tokens = (*WORDS, ("<other>", 2))
    with pytest.raises(UserError, match=r"config\.textual_inversion\.tokens: '<other>' is in no prompt of .*prepare"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("[!.]*"))


def test_states_of_a_text_encoder_are_not_cached_for_words(base, tmp_path):
    from jaxcxr.cache import cache

    config = run_config(base)
    with pytest.raises(UserError, match=r"config\.textual_inversion.*cache without --text"):
        cache(config, tmp_path / "cache", text=True)
    cache(config, tmp_path / "cache", dtype="float32")
    config.data.cache = str(tmp_path / "cache")
    config.steps = 2
    train(config, tmp_path / "run")
    assert latest_step(tmp_path / "run") == 2
