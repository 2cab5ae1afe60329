import importlib.metadata
import math

import pytest

from jaxcxr.errors import UserError
from jaxcxr.plan import targets


@pytest.mark.parametrize(
    ("name", "chips", "slices", "platform"),
    [
        ("v4:2x2x4", 16, 1, "tpu"),
        ("v5e:1x1", 1, 1, "tpu"),
        ("v5e:16x16*4", 1024, 4, "tpu"),
        ("v5p:8x8x16", 1024, 1, "tpu"),
        ("h100:8", 8, 1, "cuda"),
        ("h200:2x8", 16, 2, "cuda"),
        ("cpu:4", 4, 1, "cpu"),
    ],
)
def test_a_name_says_what_it_means(name, chips, slices, platform):
    target = targets.parse(name)
    assert (target.chips, target.slices, target.platform, target.name) == (chips, slices, platform, name)


def test_whole_nodes_may_be_counted_in_gpus():
    assert targets.parse("h100:16") == targets.parse("h100:2x8")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v7:2x2", "no such chip; there are v4, v5e"),
        ("v5e", "after the colon goes a shape, as in v5e:4x4"),
        ("v5e:four", "after the colon"),
        ("v5e:4x4*0", "after the colon"),
        ("h100:0", "after the colon"),
        ("v5e:16", "a slice of v5e has 2 sizes"),
        ("v5p:4x4", "a slice of v5p has 3 sizes, as in v5p:2x2x2"),
        ("v5e:3x4", "no such slice of v5e; there are 1x1, 2x2, 2x4"),
        ("v6e:2x16", "no such slice of v6e"),
        ("v5p:2x2x3", "of v5p there is 1x1x1, and sizes that are 2 or multiples of 4"),
        ("v4:1x2x2", "no such slice"),
        ("v6e:32x16", "at most 256 chips; several are"),
        ("h100:12", "a node has at most 8; several are h100:NODESx8"),
        ("h100:8*2", "as in h100:2x8"),
        ("cpu:2x2", "give cpu:8"),
        ("cpu:2048", "cpu:2048: at most 1024"),
        ("cpu:1025", "cpu:1025: at most 1024"),
    ],
)
def test_a_target_that_does_not_exist_is_one_line(name, message):
    with pytest.raises(UserError, match=message) as error:
        targets.parse(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("v5e-16", "v5e:4x4"),
        ("v5litepod-4", "v5e:2x2"),
        ("v6e-256", "v6e:16x16"),
        ("v5p-8", "v5p:2x2x1"),
        ("v5p-128", "v5p:4x4x4"),
        ("v4-8", "v4:2x2x1"),
        ("v4-32", "v4:2x2x4"),
        ("h100-8", "h100:8"),
        ("h200-16", "h200:2x8"),
    ],
)
def test_a_clouds_name_for_hardware_names_the_target_to_give(name, meant):
    with pytest.raises(UserError) as error:
        targets.parse(name)
    assert str(error.value) == f"--target {name}: a target is written CHIP:SHAPE; give --target {meant}"
    assert targets.parse(meant).name == meant


@pytest.mark.parametrize("name", ["v5e-0", "v5e-3", "v5p-24", "h100-12", "v2-8", "v5e-" + "9" * 5000])
def test_a_clouds_name_without_such_a_target_lists_the_chips(name):
    with pytest.raises(UserError, match="no such chip; there are v4, v5e"):
        targets.parse(name)


@pytest.mark.parametrize("kind", ["v4", "v5e", "v5p", "v6e", "h100", "h200"])
def test_larger_targets_exist(kind):
    for exponent in range(3, 11):
        target = targets.larger(kind, 2**exponent)
        assert target.chips == 2**exponent
        assert targets.parse(target.name) == target
        assert max(target.shape) <= 2 * min(target.shape) or math.prod(target.shape) == 8


def test_a_compiler_that_is_not_here_names_its_extra(monkeypatch):
    def absent(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    for name, extra in (("v5e:2x2", "plan-tpu"), ("h100:1", "plan-cuda")):
        with pytest.raises(UserError, match=rf"pip install 'jaxcxr\[{extra}\]'"):
            targets.check_compiler(targets.parse(name))


def test_a_missing_cuda_toolkit_is_told(monkeypatch, tmp_path):
    if not list(importlib.metadata.distributions(name="jax-cuda12-pjrt")):
        pytest.skip("no CUDA plug-in here")
    monkeypatch.setattr(targets, "CUDA", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="h100:1: ptxas and nvlink of the CUDA toolkit not found"):
        targets.check_compiler(targets.parse("h100:1"))
    targets.check_compiler(targets.parse("cpu:1"))
