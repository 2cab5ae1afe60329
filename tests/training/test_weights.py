"""Weights of examples: Σ(loss·w)/Σw of a batch, whatever its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcxr import workdir
from jaxcxr.data import weights
from jaxcxr.data.loader import as_text, open_split
from jaxcxr.data.tokens import load as load_tokenizer
from jaxcxr.errors import UserError
from jaxcxr.training import prepared
from jaxcxr.training.feed import open_batches, tokenizer_folder
from jaxcxr.training.step import init_state, make_step
from jaxcxr.training.train import train
from tests.training import runs


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_loss_is_the_weighted_mean(parts):
    x, w = np.random.default_rng(0).uniform(0, 3, (2, 8)).astype(np.float32)
    w[3] = 0

    def loss(parameters, batch, keys):
        return jnp.square(parameters["a"] - batch["x"]), {}

    tx = optax.sgd(0.1)
    step = jax.jit(make_step(loss, tx, 0.5, seed=0, accumulation=parts))
    state, values = step(init_state({"a": jnp.float32(2)}, tx), {}, {"x": jnp.asarray(x), "weight": jnp.asarray(w)})
    assert float(values["loss"]) == pytest.approx(float((w * (2 - x) ** 2).sum() / w.sum()), rel=1e-5)
    gradient = float((w * 2 * (2 - x)).sum() / w.sum())
    assert float(state["learnt"]["a"]) == pytest.approx(2 - 0.1 * gradient, rel=1e-5)


def table(folder, rows, header="id,weight"):
    (folder / "weights.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder / "weights.csv"


def ids():
    return [as_text(record["id"]) for record in open_split(runs.data(), "train")]


def test_a_batch_has_the_weights_of_its_records_and_validation_none(tmp_path):
    known = {name: index % 5 / 4 for index, name in enumerate(ids())}
    config = runs.autoencoder(**{"data.weights": str(table(tmp_path, [f"{n},{w}" for n, w in known.items()]))})
    tokenizer = load_tokenizer(tokenizer_folder(config))
    batches = open_batches(config, "train", tokenizer)
    np.testing.assert_array_equal(batches.batch(1)["weight"], np.float32([known[name] for name in batches.ids(1)]))
    assert "weight" not in open_batches(config, "validate", tokenizer).batch(0)


def test_a_run_learns_by_them(tmp_path):
    """Records of weight zero are none: changing their weight changes the run."""
    equal = table(tmp_path, [f"{name},2.5" for name in ids()])
    plain = runs.autoencoder(steps=1, checkpoint_every=1)
    same = runs.autoencoder(steps=1, checkpoint_every=1, **{"data.weights": str(equal)})
    losses = []
    for name, config in (("plain", plain), ("same", same)):
        train(config, tmp_path / name)
        losses.append((tmp_path / name / "metrics.jsonl").read_text().split('"loss": ')[1].split(",")[0])
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-6)
    other = tmp_path / "other"
    other.mkdir()
    some = runs.autoencoder(
        steps=1,
        checkpoint_every=1,
        **{"data.weights": str(table(other, [f"{n},{int(i % 2 == 0)}" for i, n in enumerate(ids())]))},
    )
    train(some, other / "run")
    assert float((other / "run" / "metrics.jsonl").read_text().split('"loss": ')[1].split(",")[0]) != pytest.approx(
        float(losses[0]), rel=1e-4
    )


def test_a_run_is_not_resumed_with_other_weights(tmp_path):
    rows = [f"{name},{index % 5 / 4}" for index, name in enumerate(ids())]
    config = runs.autoencoder(**{"data.weights": str(table(tmp_path, rows))})
    workdir.write_data(tmp_path, prepared.describe(config))
    table(tmp_path, rows[::-1])
    prepared.check_same(tmp_path, prepared.describe(config))
    table(tmp_path, [*rows[:-1], f"{ids()[-1]},7"])
    with pytest.raises(UserError, match=r"config\.data\.weights: holds other weights than .* was started with"):
        prepared.check_same(tmp_path, prepared.describe(config))


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["a,1"], "name,weight", "has the columns name, weight; give id and weight"),
        (["a,1", "b,-2"], "id,weight", "line 3: '-2' is no weight of 0 or more"),
        (["a,nan"], "id,weight", "line 2: 'nan' is no weight"),
        (["a,1", "a,2"], "id,weight", "line 3: this id has another weight in an earlier line"),
        (["a,0"], "dicom_id,weight", "has no weight above 0"),
    ],
)
def test_a_table_that_is_none_is_told(tmp_path, rows, header, message):
    with pytest.raises(UserError, match=message):
        weights.read(table(tmp_path, rows, header))


def test_a_record_without_a_weight_is_told_by_its_place(tmp_path):
    config = runs.autoencoder(**{"data.weights": str(table(tmp_path, [f"{ids()[0]},1"]))})
    batches = open_batches(config, "train", load_tokenizer(tokenizer_folder(config)))
    with pytest.raises(UserError, match=r"config\.data\.weights: has no weight for the training record in place \d+"):
        batches.batch(0)
