"""Sweeps and scaling over plans that are made up."""

import pytest

from jaxcxr import config as configs
from jaxcxr.errors import UserError
from jaxcxr.plan import page, scaling, sweep, targets
from tests.training.runs import ROOT

V5E = targets.parse("v5e:4x4")


@pytest.fixture
def config():
    return configs.load(ROOT / "configs" / "roentgen.py")


class Compiler:
    """Measures nothing: memory grows with the images at once, and remat halves that."""

    def __init__(self):
        self.asked = []

    def __call__(self, config, target):
        self.asked.append(config)
        work = 2.4e12 * config.batch_size
        images = config.batch_size / config.accumulation / target.chips
        share = 0.5 if config.remat == "blocks" else 1.0
        split = target.chips if config.sharding == "fsdp" else 1
        memory = {"weights": 4e9 / split, "optimizer": 0, "ema": 0, "temporaries": images * share * 4e9}
        return {
            "target": target.name,
            "chips": target.chips,
            "batch_size": config.batch_size,
            "dtype": config.dtype,
            "limit": target.chip.memory,
            "memory": memory,
            "over": max(0, sum(memory.values()) - target.chip.memory),
            "flops": {"model": work, "traced": work * (4 / 3 if share < 1 else 1)},
            "collectives": {"all-reduce": {"sent": 8e9, "sent_across": 8e9 * (target.slices > 1)}},
            "gradients": 4e9 / split,
        }


def test_the_best_that_fits_is_found_and_a_sweep_goes_on(config, tmp_path):
    compiler = Compiler()
    axes = sweep.axes_of(["batch_size=32,64,128", "remat=none,blocks", "sharding=replicated,fsdp"])
    points = sweep.sweep(sweep.grid(config, V5E, axes), V5E, tmp_path, compiler)
    assert len(points) == 12
    tried = len(compiler.asked)
    fitting = {(p.config.batch_size, p.config.remat, p.config.sharding) for p in points if p.fits}
    # 16.9 GB a chip: 4 GB of weights or a sixteenth of that, and 4 GB an image, or 2 with remat.
    split = {(32, "none"), (64, "none"), (32, "blocks"), (64, "blocks"), (128, "blocks")}
    whole = {(32, "none"), (32, "blocks"), (64, "blocks")}
    assert fitting == {(*key, "fsdp") for key in split} | {(*key, "replicated") for key in whole}
    passed_over = [p for p in points if p.why]
    assert passed_over
    assert tried == 12 - len(passed_over)
    best = sweep.best(points)
    assert best.config.mesh.fsdp == 16
    assert best.estimate.rate == max(p.estimate.rate for p in points if p.fits)

    again = sweep.sweep(sweep.grid(config, V5E, axes), V5E, tmp_path, compiler)
    assert len(compiler.asked) == tried  # all from the folder
    assert [p.found for p in again] == [p.found for p in points]
    rows = page.sweep_rows(points, best)
    assert sum(row[-1] == "best" for row in rows) == 1
    html = page.sweep_page(points, best, V5E, "{}")
    assert html.count("<svg") == 1
    assert page.label(best) in html


def test_an_interrupted_sweep_goes_on(config, tmp_path):
    compiler = Compiler()

    def interrupted(config, target):
        if len(compiler.asked) == 2:
            raise KeyboardInterrupt
        return compiler(config, target)

    points = sweep.grid(config, V5E, {"batch_size": ["16", "32", "48"]})
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(points, V5E, tmp_path, interrupted)
    sweep.sweep(points, V5E, tmp_path, compiler)
    assert [asked.batch_size for asked in compiler.asked] == [16, 32, 48]


def test_a_digest_is_of_all_that_decides(config, monkeypatch):
    one = sweep.digest(config, V5E)
    assert sweep.digest(configs.changed(config, []), V5E) == one
    assert sweep.digest(configs.changed(config, ["--config.remat=blocks"]), V5E) != one
    assert sweep.digest(config, targets.parse("v5e:4x8")) != one
    monkeypatch.setattr(sweep, "versions", lambda: {"jax": "0"})
    assert sweep.digest(config, V5E) != one


def test_mistakes_in_a_sweep(config, tmp_path):
    with pytest.raises(UserError, match="--try batch_size: give a key"):
        sweep.axes_of(["batch_size"])
    with pytest.raises(UserError, match="no such key"):
        sweep.grid(config, V5E, {"batch": ["1"]})

    def refuse(config, target):
        raise UserError("config.batch_size=1: is not a multiple")

    with pytest.raises(UserError, match="is not a multiple"):
        sweep.sweep([config], V5E, tmp_path, refuse)


@pytest.mark.parametrize("coarse", [False, True])
def test_scaling_weak_and_strong(config, tmp_path, coarse):
    config = configs.changed(config, ["--config.batch_size=32"])
    compiler = Compiler()
    scaled = scaling.scaling(config, V5E, tmp_path, coarse=coarse, measure=compiler)
    weak, strong = scaled["weak"], scaled["strong"]
    assert [size.target.chips for size in weak] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert [size.found["batch_size"] for size in weak] == [2 * size.target.chips for size in weak]
    assert [bool(size.found) for size in strong] == [True, True, True] + [False] * 5
    assert "32 images do not divide among 64 chips" in strong[3].why
    assert weak[-1].target.name == "v5e:16x16*4"
    assert weak[-1].estimate.communication > 10 * weak[0].estimate.communication  # across slices
    assert [size.interpolated for size in weak] == [coarse and n not in (0, 4, 7) for n in range(8)]
    # Compute of a chip is the same at every size, compiled or not.
    assert [size.estimate.compute for size in weak] == pytest.approx([weak[0].estimate.compute] * 8)
    html = page.scaling_page(scaled, V5E, "{}")
    assert html.count("<svg") == 4
    assert ("interpolated" in html) == coarse


def test_a_configs_mesh_follows_the_number_of_chips(config):
    config = configs.changed(config, ["--config.mesh.fsdp=16", "--config.accumulation=8"])
    small = scaling.at(config, targets.parse("v5e:2x4"), 16)
    assert (small.mesh.data, small.mesh.fsdp, small.accumulation) == (-1, 8, 2)
    assert scaling.at(config, targets.parse("v5e:16x16*4"), 8192).mesh.fsdp == 16
