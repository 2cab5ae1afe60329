"""Train steps compiled for hardware that is not here, and for what is."""

import json
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxcxr.__main__ import main
from jaxcxr.errors import UserError
from jaxcxr.plan import apart, compile, report, roofline, targets
from tests.plan import runs
from tests.training.runs import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "h100:4"])
def test_a_step_compiles_for_what_is_not_here(name):
    try:
        targets.check_compiler(targets.parse(name))
    except UserError as error:
        pytest.skip(str(error))
    changes = {"dtype": "bfloat16", "mesh.fsdp": 2, "sharding": "fsdp", "data.size": 64}
    changes["model.vae.block_out_channels"] = [256]  # kernels that are large enough to be split
    found = apart.measure(runs.autoencoder(**changes), targets.parse(name), quiet=True)
    assert found["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    assert found["over"] == 0
    assert found["limit"] == targets.parse(name).chip.memory
    memory = found["memory"]
    assert memory["optimizer"] == 2 * memory["weights"] + 8  # two moments each, and two counts
    assert memory["ema"] == found["gradients"] == memory["weights"]
    alive = sum(found["alive"].values())
    assert alive > 0
    if name == "h100:4":  # on TPUs much of a step as small as this one is on the chip itself
        assert alive == pytest.approx(memory["temporaries"], rel=0.05)
    assert found["moved"] > 2 * found["donated"]
    assert found["donated"] >= memory["weights"] + memory["optimizer"] + memory["ema"]
    # Gradients are summed over the chips, in bfloat16 or float32.
    assert memory["weights"] / 2 <= found["collectives"]["all-reduce"]["bytes"] <= 1.5 * memory["weights"]
    # Split kernels are gathered once, in bfloat16, by pairs.
    split = sum(2 * math.prod(row["shape"]) for row in found["sharding"] if "fsdp" in row["spec"])
    gathered = found["collectives"]["all-gather"]
    assert split > 0.8 * memory["weights"]  # half of each, in float32
    assert gathered["bytes"] == pytest.approx(split, rel=0.01)
    assert (gathered["sent"], gathered["sent_across"]) == (gathered["bytes"] / 2, 0)
    assert f"{name}: 4 chips (data 2, fsdp 2, tensor 1), 8 images a step, 2 a chip" in report.text(found)


def test_gradients_lie_on_the_device_wherever_the_average_does(monkeypatch):
    monkeypatch.setattr(compile, "_compile", lambda lowered, target, options: (None, 0))
    found = compile.measure(runs.autoencoder(ema_memory="host"), targets.parse("cpu:1"))
    assert found["memory"]["ema"] == 0
    assert found["gradients"] == found["memory"]["weights"]


@pytest.mark.slow
def test_the_memory_of_a_plan_is_what_a_run_takes():
    """On a CPU: how far the process grows at a step of a plan's program, against the plan."""
    command = [sys.executable, ROOT / "benchmarks" / "memory.py", "autoencoder"]
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    predicted, real = json.loads(done.stdout.splitlines()[-1])
    assert predicted > 300e6
    assert real == pytest.approx(predicted, rel=0.1)


def test_a_program_that_cannot_be_read_is_planned_all_the_same(monkeypatch):
    def confused(text):
        raise IndexError("an operation that nobody knows")

    monkeypatch.setattr(compile.live, "at_peak", confused)
    monkeypatch.setattr(compile.hlo, "moved", confused)
    found = compile.measure(runs.autoencoder(), targets.parse("cpu:1"))
    assert (found["alive"], found["moved"]) == (None, None)
    assert found["memory"]["temporaries"] > 0
    found |= {"target": "v5e:1x1", "limit": 2**34}
    assert "what it moves cannot be read in its text" in report.text(found)


def test_an_option_that_a_compiler_does_not_have_is_left_out():
    lowered = jax.jit(jnp.sin).lower(1.0)
    compiled, over = compile._compile(lowered, targets.parse("cpu:1"), {"xla_jf_convolution_performance_target": 0.1})
    assert (compiled(0.0), over) == (0.0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "v5e:3x3"], "no such slice of v5e"),
        (["--target", "cpu:2", "--config.mesh.data=3"], "config.mesh .* does not multiply to 2 devices"),
        (["--target", "cpu:4", "--config.batch_size=6"], "config.batch_size=6: is not a multiple of 4 devices"),
        (["--target", "cpu:1", "--config.sharding=half"], "no such strategy; there are replicated"),
        (["--target", "cpu:1", "--config.dtype=float16"], "config.dtype='float16': may be"),
        (
            ["--target", "cpu:1", "--config.model.base=nowhere/of/mine"],
            "nowhere/of/mine: is not here, .*-v1-4",
        ),
        (["--target", "cpu:1", "--sweep"], "--out: name a folder"),
        (["--target", "cpu:1", "--sweep", "--out", "x"], "nothing of a CPU's speed"),
        (["--target", "cpu:1", "--coarse"], "goes with --scaling"),
        (["--target", "cpu:1", "--out", __file__], "is a file; name a folder"),
    ],
)
def test_a_mistake_is_one_line_before_anything_compiles(options, message, capsys):
    config = str(ROOT / "configs" / "roentgen.py")
    assert main(["plan", "--config", config, *options]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, told), told


def test_a_folder_that_cannot_be_written_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(apart, "measure", lambda *args, **options: {})
    monkeypatch.setattr(report, "text", lambda found: "the plan")
    argv = ["plan", "--config", str(ROOT / "configs" / "roentgen.py"), "--target", "cpu:1", "--out", "/proc/none"]
    assert main(argv) == 2
    told = capsys.readouterr()
    assert told.out == "the plan\n"
    assert told.err.startswith("jaxcxr plan: /proc/none: cannot be written (")


def test_sharding_is_shown_with_bytes_a_chip(capsys):
    config = [str(ROOT / "configs" / "roentgen.py:v5e-16"), "--target", "cpu:16"]
    assert main(["plan", "--config", *config, "--show", "sharding"]) == 0
    table = capsys.readouterr().out
    convolution = next(line for line in table.splitlines() if line.startswith("unet.conv_norm_out.bias"))
    sizes = ["0.0", "MiB"] * 3
    assert convolution.split() == ["unet.conv_norm_out.bias", "1", "320", "-", *sizes]
    split = next(line for line in table.splitlines() if line.startswith("unet.mid_block.resnets.*.conv1.kernel"))
    assert split.split()[1:4] == ["2", "3x3x1280x1280", "1280/fsdp"]
    assert split.split()[4:] == ["7.0", "MiB", "14.1", "MiB", "7.0", "MiB"]
    frozen = next(line for line in table.splitlines() if line.startswith("vae.quant_conv.bias"))
    assert frozen.split()[-4:] == ["0.0", "MiB", "-", "-"]
    # 860 M of the U-Net, 123 M of CLIP, 84 M of the autoencoder, in float32, all but the small ones split.
    total = float(table.splitlines()[-1].split()[4])
    assert 4 * 1066e6 / 16 < total * 2**30 < 4 * 1066e6 / 16 * 1.2


@pytest.mark.parametrize(
    ("file", "spec"), [("sd2.py", "-"), ("weak.py", "1280/fsdp"), ("strong.py", "-")], ids=["sd2", "weak", "strong"]
)
def test_configs_of_scaling_can_be_planned(file, spec, capsys):
    config = str(ROOT / "configs" / "scaling" / file)
    assert main(["plan", "--config", config, "--target", "cpu:8", "--show", "sharding"]) == 0
    lines = capsys.readouterr().out.splitlines()
    widest = next(line for line in lines if line.startswith("unet.mid_block.resnets.*.conv1.kernel"))
    assert widest.split()[3] == spec


@pytest.mark.parametrize(
    ("target", "images", "rate"),
    [("v5p:2x2x2", 32, 86.6), ("v5p:8x8x8", 2, 30.5), ("v6e:16x16", 4, 43.8), ("h100:8", 32, 138)],
)
def test_the_band_holds_what_was_published(target, images, rate):
    """MLPerf Training 4.1 and 5.0: Stable Diffusion 2 at 512² from cached moments; images/s of a chip."""
    chips = targets.parse(target).chips
    weights = 4 * 866e6
    found = {
        "target": target,
        "chips": chips,
        "dtype": "bfloat16",
        "batch_size": images * chips,
        "flops": {"model": 2.41e12 * images * chips, "traced": 2.41e12 * images * chips},
        "memory": {"weights": weights, "optimizer": 2 * weights, "ema": 0},
        "gradients": weights,
        "collectives": {"all-reduce": {"sent": 2 * weights * (chips - 1) / chips, "sent_across": 0}},
    }
    guess = roofline.estimate(found)
    low, high = guess.band
    assert low < images / rate < high
    assert guess.rate / chips == pytest.approx(rate, rel=0.15)
    assert guess.mfu == pytest.approx(guess.rate / chips * 2.41e12 / guess.peak)
    # A step that reads and writes for longer than all that takes no less.
    slow = roofline.estimate({**found, "moved": 10 * guess.seconds * targets.parse(target).chip.bandwidth})
    assert slow.band[0] == pytest.approx(10 * guess.seconds)
    assert slow.band[0] < slow.seconds < slow.band[1]
