import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxcxr.errors import UserError
from jaxcxr.methods.diffusion import _by_timestep, normal
from jaxcxr.training import ema
from jaxcxr.training.metrics import Metrics
from jaxcxr.training.optimizer import learning_rate, make_optimizer
from jaxcxr.training.step import init_state, make_step

OPTIMIZER = ConfigDict(
    {
        "name": "adamw",
        "learning_rate": 1e-2,
        "rates": (),
        "schedule": "constant",
        "warmup_steps": 0,
        "b1": 0.9,
        "b2": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.1,
        "mu_dtype": "float32",
        "clip_norm": 0.5,
    }
)


def test_adamw_with_clipping_equals_torch():
    torch = pytest.importorskip("torch")
    start, gradients = np.random.default_rng(0).standard_normal((2, 5, 7), dtype=np.float32)
    weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
    theirs = torch.optim.AdamW([weight], lr=1e-2, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    tx = make_optimizer(OPTIMIZER, 100)
    ours = {"w": jnp.asarray(start)}
    state = tx.init(ours)
    for turn in range(5):
        weight.grad = torch.from_numpy(gradients * (turn + 1))
        torch.nn.utils.clip_grad_norm_([weight], 0.5)
        theirs.step()
        updates, state = tx.update({"w": gradients * (turn + 1)}, state, ours)
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(ours["w"], weight.detach().numpy(), rtol=2e-5, atol=1e-6)


def follow(config, start, gradients, turns=3):
    """The parameters after some updates."""
    tx = make_optimizer(ConfigDict({**OPTIMIZER, "clip_norm": 0.0, **config}), 100)
    ours = {name: jnp.asarray(value) for name, value in start.items()}
    state = tx.init(ours)
    for turn in range(turns):
        updates, state = tx.update({name: g * (turn + 1) for name, g in gradients.items()}, state, ours)
        ours = optax.apply_updates(ours, updates)
    return ours


def test_lion_is_its_papers_algorithm():
    start, gradient = np.random.default_rng(0).standard_normal((2, 5, 7))
    found = follow({"name": "lion"}, {"w": start}, {"w": gradient})["w"]
    weight, momentum = start, np.zeros_like(start)
    for turn in range(3):
        g = gradient * (turn + 1)
        weight = weight - 1e-2 * (np.sign(0.9 * momentum + 0.1 * g) + 0.1 * weight)
        momentum = 0.99 * momentum + 0.01 * g
    np.testing.assert_allclose(found, weight, rtol=1e-5, atol=1e-6)


def test_adafactor_decays_weights_by_its_learning_rate():
    start, gradient = np.random.default_rng(0).standard_normal((2, 130, 140)).astype(np.float32)
    reference = optax.adafactor(1e-2, multiply_by_parameter_scale=False)
    updates, _ = reference.update({"w": gradient}, reference.init({"w": start}), {"w": start})
    plain = follow({"name": "adafactor", "weight_decay": 0.0}, {"w": start}, {"w": gradient}, turns=1)["w"]
    np.testing.assert_allclose(plain, start + updates["w"], rtol=1e-5, atol=1e-6)
    decayed = follow({"name": "adafactor"}, {"w": start}, {"w": gradient}, turns=1)["w"]
    np.testing.assert_allclose(decayed, plain - 1e-2 * 0.1 * start, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor"])
def test_rates_by_name_scale_the_whole_update(name):
    start, gradient = np.random.default_rng(0).standard_normal((2, 5, 7)).astype(np.float32)
    names = ("unet.a", "text_encoder.a", "text_encoder.b")
    config = {"name": name, "rates": ((r".*\.b", 0.0), (r"text_encoder\..*", 0.25))}
    found = follow(config, dict.fromkeys(names, start), dict.fromkeys(names, gradient), turns=1)
    np.testing.assert_allclose(found["text_encoder.a"] - start, 0.25 * (found["unet.a"] - start), rtol=1e-3, atol=1e-7)
    np.testing.assert_array_equal(found["text_encoder.b"], start)
    assert abs(found["unet.a"] - start).min() > 1e-4


@pytest.mark.parametrize("change", [{"name": "sgd"}, {"rates": ("unet",)}, {"rates": (("(", 1.0),)}])
def test_wrong_optimizers_are_named(change):
    with pytest.raises(UserError, match=f"config.optimizer.{next(iter(change))}="):
        make_optimizer(ConfigDict({**OPTIMIZER, **change}), 100)


def test_learning_rate_rises_from_the_first_step_and_falls_to_zero():
    config = ConfigDict({**OPTIMIZER, "warmup_steps": 10, "schedule": "cosine"})
    rate = learning_rate(config, 110)
    np.testing.assert_allclose([rate(0), rate(4), rate(9), rate(10)], [1e-3, 5e-3, 1e-2, 1e-2], rtol=1e-5)
    np.testing.assert_allclose([rate(60), rate(110)], [5e-3, 0], atol=1e-8)


def test_average_equals_diffusers_after_its_warm_up():
    """diffusers counts the first update as step 1 and averages with (1 + n) / (10 + n), n the updates before it."""
    training_utils = pytest.importorskip("diffusers.training_utils")
    torch = pytest.importorskip("torch")
    path = np.random.default_rng(0).standard_normal((12, 4), dtype=np.float32)
    weight = torch.nn.Parameter(torch.from_numpy(path[0].copy()))
    theirs = training_utils.EMAModel([weight], decay=0.6)
    ours = jnp.asarray(path[0])
    for step, value in enumerate(path[1:]):
        weight.data = torch.from_numpy(value.copy())
        theirs.step([weight])
        # diffusers leaves the average untouched at its first update: one step behind ours.
        if step:
            ours = ema.update(ours, jnp.asarray(value), jnp.int32(step), 0.6)
        else:
            ours = jnp.asarray(theirs.shadow_params[0].numpy().copy())
    np.testing.assert_allclose(ours, theirs.shadow_params[0].numpy(), rtol=1e-5)


def test_step_moves_only_what_learns_and_draws_its_noise_from_the_step():
    def loss(parameters, batch, keys):
        noise = normal(keys, ())
        return parameters["a"] * (4 * parameters["b"] * batch["x"] + noise), {"noise": noise.mean()}

    tx = optax.sgd(0.1)
    state, frozen = init_state({"a": jnp.float32(2)}, tx), {"b": jnp.float32(3)}
    step = make_step(loss, tx, 0.5, seed=7)
    batch = {"x": jnp.ones(4)}
    after, metrics = step(state, frozen, batch)
    np.testing.assert_allclose(after["learnt"]["a"], 2 - 0.1 * (12 + metrics["noise"]), rtol=1e-6)
    assert set(after["learnt"]) == set(after["average"]) == {"a"}
    assert after["step"] == 1
    again = step(state, frozen, batch)[1]["noise"]
    assert again == metrics["noise"] != step(after, frozen, batch)[1]["noise"]


def test_metrics_of_steps_done_again_are_dropped(tmp_path):
    with Metrics(tmp_path, 0) as first:
        for step in (1, 2, 3):
            first.write(step, {"loss": jnp.float32(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    with Metrics(tmp_path, 2) as second:
        second.write(3, {"loss": 30.0})
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [
        '{"step": 1, "loss": 1.0}',
        '{"step": 2, "loss": 2.0}',
        '{"step": 3, "loss": 30.0}',
    ]


def test_metrics_are_json_whatever_they_are_and_written_also_when_a_run_fails(tmp_path):
    def failing():
        with Metrics(tmp_path, 0) as metrics:
            metrics.write(1, {"loss": jnp.float32(jnp.nan), "images_per_second": 3.0})
            metrics.write(2, {"loss": 1.0})
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        failing()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null, "images_per_second": 3.0}\n'
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"images_per_second" in events.read_bytes()


def test_schedule_free_is_its_papers_algorithm():
    start, target, steep = np.random.default_rng(0).standard_normal((3, 5, 7))
    steep = np.abs(steep)

    def loss(parameters, batch, keys):
        return (steep * (parameters["w"] - target) ** 2).sum()[None] / 2, {}

    config = {**OPTIMIZER, "name": "schedule_free", "warmup_steps": 3, "clip_norm": 0.0}
    tx = make_optimizer(ConfigDict(config), 100)
    step = make_step(loss, tx, 0.5, seed=0)
    state = init_state({"w": jnp.asarray(start, jnp.float32)}, tx)
    x = y = z = start
    square, weights = np.zeros_like(start), 0.0
    for turn in range(5):
        state, _ = step(state, {}, {"x": jnp.zeros(1)})
        rate = 1e-2 * min(1, (turn + 1) / 3)
        gradient = steep * (y - target)
        square = 0.99 * square + 0.01 * gradient**2
        z = z - rate * (gradient / (np.sqrt(square / (1 - 0.99 ** (turn + 1))) + 1e-8) + 0.1 * y)
        weights += rate**2
        x = x + rate**2 / weights * (z - x)
        y = 0.9 * x + 0.1 * z
        np.testing.assert_allclose(state["learnt"]["w"], y, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state["average"]["w"], x, rtol=1e-5, atol=1e-6)


def test_norms_are_told_by_group():
    names = ("unet.conv_in.kernel", "unet.conv_in.bias", "unet.mid_block.kernel", "text_encoder.layers.kernel")
    values = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)

    def loss(parameters, batch, keys):
        return sum((parameters[name] * value).sum() for name, value in zip(names, values, strict=True))[None], {}

    tx = optax.sgd(0.1)
    state = init_state(dict.fromkeys(names, jnp.zeros(5)), tx)
    _, metrics = make_step(loss, tx, 0.5, seed=0)(state, {}, {"x": jnp.zeros(1)})
    groups = {"unet.conv_in": values[:2], "unet.mid_block": values[2], "text_encoder.layers": values[3]}
    for group, own in groups.items():
        np.testing.assert_allclose(metrics[f"grad_norm/{group}"], np.linalg.norm(own), rtol=1e-6)
        np.testing.assert_allclose(metrics[f"update_norm/{group}"], 0.1 * np.linalg.norm(own), rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(values), rtol=1e-6)


def test_the_loss_is_told_by_timesteps(tmp_path):
    errors, timesteps = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([0, 249, 250, 999])
    with Metrics(tmp_path, 0) as metrics:
        metrics.write(1, {"by_timestep": _by_timestep(errors, timesteps, 1000)})
    written = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert written == {
        "step": 1,
        "loss/timesteps_1_of_4": 1.5,
        "loss/timesteps_2_of_4": 3.0,
        "loss/timesteps_4_of_4": 4.0,
    }
