"""Sweeps and scaling over plans that are made up."""

import shutil

import pytest

from jaxcxr import config as configs
from jaxcxr.__main__ import main
from jaxcxr.data.moments import Card, Origin
from jaxcxr.errors import UserError
from jaxcxr.plan import apart, page, scaling, sweep, targets
from tests.training.runs import ROOT

V5E = targets.parse("v5e:4x4")


@pytest.fixture
def config():
    return configs.load(ROOT / "configs" / "roentgen.py", ["--config.accumulation=1"])


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


@pytest.mark.parametrize(
    ("one", "other", "known"),
    [
        (["remat=blocks"], ["remat=none"], True),
        (["remat=attention"], ["remat=none"], True),
        (["remat=blocks"], ["remat=attention"], False),
        (["remat=attention"], ["remat=blocks"], False),
        (["batch_size=128"], ["batch_size=256"], True),
        (["sharding=fsdp", "mesh.fsdp=16"], ["sharding=replicated"], True),
        # Whole weights are gathered in as many bytes as they have.
        (["dtype=float32", "sharding=fsdp", "mesh.fsdp=16"], ["dtype=float32"], False),
    ],
)
def test_what_needs_no_more_memory_is_known_beforehand(config, one, other, known):
    points = [configs.changed(config, [f"--config.{value}" for value in values]) for values in (one, other)]
    assert sweep._no_dearer(*points) is known


@pytest.mark.parametrize(
    ("tried", "over", "fitting"),
    [
        (["sharding=fsdp", "mesh.fsdp=1,16", "batch_size=48"], [1], [16]),
        # The first is laid out as 8 x 2, which leaves each chip the images of two.
        (["sharding=fsdp+tensor,fsdp", "batch_size=48"], [8], [16]),
    ],
)
def test_other_meshes_are_tried_where_one_does_not_fit(config, tmp_path, tried, over, fitting):
    def measure(config, target):
        found = Compiler()(config, target)
        images = config.batch_size / config.accumulation / (target.chips / config.mesh.tensor)
        found["memory"] |= {"weights": 32e9 / config.mesh.fsdp / config.mesh.tensor, "temporaries": images * 4e9}
        return found | {"over": max(0, sum(found["memory"].values()) - target.chip.memory)}

    points = sweep.sweep(sweep.grid(config, V5E, sweep.axes_of(tried)), V5E, tmp_path, measure)
    assert not any(point.why for point in points)
    assert [point.config.mesh.fsdp for point in points if not point.fits] == over
    assert [point.config.mesh.fsdp for point in points if point.fits] == fitting


def test_a_grid_is_laid_out_for_what_is_split(config):
    axes = sweep.axes_of(["sharding=replicated,fsdp,fsdp+tensor"])
    meshes = {point.sharding: (point.mesh.fsdp, point.mesh.tensor) for point in sweep.grid(config, V5E, axes)}
    assert meshes == {"replicated": (1, 1), "fsdp": (16, 1), "fsdp+tensor": (8, 2)}
    config.ema_sharding = "fsdp"
    (whole, *_) = (point for point in sweep.grid(config, V5E, axes) if point.sharding == "replicated")
    assert (whole.mesh.fsdp, whole.mesh.tensor) == (16, 1)


def test_what_certainly_needs_more_is_passed_over(config, tmp_path):
    def none_fits(config, target):
        return Compiler()(config, target) | {"over": 1}

    axes = sweep.axes_of(["sharding=fsdp,replicated", "accumulation=1,4", "batch_size=16,64"])
    points = sweep.sweep(sweep.grid(config, V5E, axes), V5E, tmp_path, none_fits)
    tried = [(p.config.sharding, p.config.batch_size, p.config.accumulation) for p in points if p.found]
    # Sums of gradients take memory of their own, which a batch in one part does not: the second is tried all the same.
    assert tried == [("fsdp", 16, 4), ("fsdp", 16, 1)]


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


def test_a_digest_is_of_all_that_decides(config, monkeypatch, tmp_path):
    one = sweep.digest(config, V5E)
    assert sweep.digest(configs.changed(config, []), V5E) == one
    assert sweep.digest(configs.changed(config, ["--config.remat=blocks"]), V5E) != one
    assert sweep.digest(config, targets.parse("v5e:4x8")) != one
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "versions", lambda: {"jax": "0"})
        assert sweep.digest(config, V5E) != one
    shutil.copytree(sweep.OURS, tmp_path / "ours")
    monkeypatch.setattr(sweep, "OURS", tmp_path / "ours")
    assert sweep.digest(config, V5E) == one
    sweep.sources.cache_clear()
    (tmp_path / "ours" / "plan" / "hlo.py").write_text("KINDS = ()")
    assert sweep.digest(config, V5E) != one


def test_a_digest_is_of_the_files_that_a_config_names(tmp_path):
    folder = tmp_path / "base"
    files = {"vae/config.json": b"{}", "unet/config.json": b"{}"}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(data)
    config = configs.load(ROOT / "configs" / "scaling" / "sd2.py", [f"--config.model.base={folder}"])
    config = configs.changed(config, [f"--config.data.cache={tmp_path / 'cache'}"])
    one = sweep.digest(config, V5E)
    assert sweep.digest(config, V5E) == one
    (folder / "unet" / "config.json").write_text('{"layers_per_block": 1}')
    other = sweep.digest(config, V5E)
    assert other != one
    origin = Origin("", "", "", "", "", "", "")
    Card(origin, "float32", (64, 64, 8), (77, 1024), "", {"train": 1}).write(tmp_path / "cache")
    assert sweep.digest(config, V5E) not in (one, other)


def test_mistakes_in_a_sweep(config, tmp_path):
    with pytest.raises(UserError, match="--try batch_size: give a key"):
        sweep.axes_of(["batch_size"])
    with pytest.raises(UserError, match="config.accumulation=0: may be 1 or more"):
        sweep.grid(config, V5E, {"accumulation": ["0", "1"]})
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


def test_what_one_end_does_not_send_is_nothing_there(config):
    def plan(target, **sent):
        collectives = {kind: {"sent": each, "sent_across": 0.0} for kind, each in sent.items()}
        return Compiler()(config, targets.parse(target)) | {"collectives": collectives}

    known = {8: plan("v5e:2x4", gathered=8.0, permuted=3.0), 64: plan("v5e:8x8", gathered=8.0, reduced=90.0)}
    between = scaling.interpolate(known, targets.parse("v5e:4x4"), 256)["collectives"]
    assert {kind: row["sent"] for kind, row in between.items()} == pytest.approx(
        {"gathered": 8.0, "permuted": 2.0, "reduced": 30.0}
    )


def test_a_scaling_of_which_nothing_can_be_planned_is_a_mistake(config, tmp_path):
    def refuse(config, target):
        raise UserError(f"config.sharding='half': no such strategy ({target.chips})")

    with pytest.raises(UserError, match=r"'half': no such strategy \(8\)"):
        scaling.scaling(config, V5E, tmp_path, measure=refuse)


@pytest.mark.parametrize("override", ["sharding=half", "mesh.tensor=0"])
def test_a_mistake_is_told_before_any_size_is_planned(override, tmp_path, capsys, monkeypatch):
    asked = []

    def measure(config, target, *, sharding_only=False):
        asked.append((target.name, config.mesh.tensor, sharding_only))
        raise UserError(f"config.{override}: is wrong")

    monkeypatch.setattr(targets, "check_compiler", lambda target: None)
    monkeypatch.setattr(apart, "measure", measure)
    argv = ["plan", "--config", str(ROOT / "configs" / "roentgen.py"), "--target", "v5e:2x4", "--scaling"]
    assert main([*argv, "--out", str(tmp_path / "out"), f"--config.{override}"]) == 2
    assert capsys.readouterr().err.endswith(f"config.{override}: is wrong\n")
    assert asked == [("v5e:2x4", 0 if "tensor" in override else 1, True)]
    assert not (tmp_path / "out").exists()


def test_a_configs_mesh_follows_the_number_of_chips(config):
    config = configs.changed(config, ["--config.mesh.fsdp=16", "--config.batch_size=256", "--config.accumulation=8"])
    small = scaling.at(config, V5E, targets.parse("v5e:2x4"), 256)
    assert (small.mesh.data, small.mesh.fsdp) == (-1, 8)
    assert scaling.at(config, V5E, targets.parse("v5e:16x16*4"), 8192).mesh.fsdp == 16


@pytest.mark.parametrize(
    ("name", "batch_size", "accumulation"),
    [("v5e:2x4", 256, 16), ("v5e:8x8", 256, 2), ("v5e:16x16", 256, 1), ("v5e:8x8", 1024, 8), ("v5e:8x8", 192, 3)],
)
def test_a_chip_goes_through_as_many_images_at_once_whatever_the_number_of_chips(
    config, name, batch_size, accumulation
):
    config = configs.changed(config, ["--config.batch_size=256", "--config.accumulation=8"])  # 2 at once of a chip's 16
    assert scaling.at(config, V5E, targets.parse(name), batch_size).accumulation == accumulation
