"""`jaxcxr convert` as its users call it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jaxcxr import interop
from jaxcxr.__main__ import main
from jaxcxr.errors import UserError
from jaxcxr.interop import card
from jaxcxr.interop.checkpoint import Checkpoint
from jaxcxr.interop.tensors import Tensor, open_safetensors, write_safetensors

UNET = "unet/diffusion_pytorch_model"


def convert(*arguments):
    return main(["convert", *map(str, arguments)])


def assert_same(one, other):
    ours, theirs = interop.read(one).tensors, interop.read(other).tensors
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.read() == theirs[name].read()).all(), name


def test_verify_tells_of_every_network_and_asks_pytorch(source, tmp_path, capsys):
    assert convert(source, tmp_path / "out", "--to", "diffusers", "--verify") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "largest difference" in line]
    assert [line.split(":")[0] for line in lines] == ["unet", "vae", "text_encoder"] * 2
    assert all("largest difference 0" in line for line in lines)
    assert "loaded with transformers" in lines[-1]


def test_verify_tells_what_a_cast_costs(source, tmp_path, capsys):
    assert convert(source, tmp_path / "out", "--to", "diffusers", "--dtype", "bfloat16", "--verify") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("unet: "))
    weights = [tensor.read() for name, tensor in interop.read(source).tensors.items() if name.startswith("unet.")]
    import ml_dtypes

    worst = max(np.abs(w.astype(ml_dtypes.bfloat16).astype(np.float32) - w).max() for w in weights)
    assert f"bfloat16, largest difference {worst:.3g}" in line


def test_verify_finds_another_tensor(source, changed, tmp_path):
    file = changed / f"{UNET}.safetensors"
    tensors = {key: Tensor.of(np.array(tensor.read())) for key, tensor in open_safetensors(file).items()}
    tensors["conv_in.bias"].read()[0] += 1
    write_safetensors(file, tensors)
    lines = list(interop.verify.compare(interop.read(source), changed))
    assert "largest difference 1," in lines[0]


def test_a_single_file_and_back_is_the_same_pipeline(source, tmp_path, capsys):
    assert convert(source, tmp_path / "one.safetensors", "--to", "single-file", "--verify", "--config", source) == 0
    assert "largest difference 0" in capsys.readouterr().out
    assert convert(tmp_path / "one.safetensors", tmp_path / "out", "--to", "diffusers", "--config", source) == 0
    assert_same(source, tmp_path / "out")


def test_only_the_unet(source, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    assert convert(source, tmp_path / "out", "--to", "diffusers", "--only", "unet") == 0
    folders = sorted(folder.name for folder in (tmp_path / "out").iterdir() if folder.is_dir())
    assert folders == ["scheduler", "tokenizer", "unet"]
    assert diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet") is not None


@pytest.mark.parametrize("kind", ["half precision", "shards", "pickle", "pickled shards", "legacy pickle"])
def test_every_way_diffusers_writes_weights_is_read(source, changed, kind):
    torch = pytest.importorskip("torch")
    file = changed / f"{UNET}.safetensors"
    tensors = open_safetensors(file)
    state = {key: torch.from_numpy(tensor.read().copy()) for key, tensor in tensors.items()}
    keys = sorted(state)
    if kind == "half precision":
        write_safetensors(changed / f"{UNET}.fp16.safetensors", tensors, dtype=np.float16)
    elif kind == "shards":
        write_safetensors(file, {key: Tensor.of(v.numpy()) for key, v in state.items()}, max_shard_size=50_000)
    elif kind == "pickled shards":
        parts = {"a.bin": keys[::2], "b.bin": keys[1::2]}
        for name, part in parts.items():
            torch.save({key: state[key] for key in part}, changed / "unet" / name)
        weight_map = {key: name for name, part in parts.items() for key in part}
        (changed / f"{UNET}.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(state, changed / f"{UNET}.bin", _use_new_zipfile_serialization=kind == "pickle")
    file.unlink(missing_ok=True)
    found, expected = interop.read(changed).under("unet"), interop.read(source).under("unet")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        wanted = tensor.read().astype(found[name].dtype)
        assert found[name].dtype == (np.float16 if kind == "half precision" else np.float32)
        assert (found[name].read() == wanted).all(), name


def test_a_large_network_is_written_in_shards_that_diffusers_reads(source, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    assert convert(source, tmp_path / "out", "--to", "diffusers", "--max-shard-size", "400KB") == 0
    shards = sorted(file.name for file in (tmp_path / "out" / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    assert all(file.stat().st_size < 420_000 for file in (tmp_path / "out" / "unet").glob("*.safetensors"))
    ours = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet").state_dict()
    theirs = diffusers.UNet2DConditionModel.from_pretrained(source / "unet").state_dict()
    assert all((ours[key] == theirs[key]).all() for key in theirs)


def test_the_card_says_that_images_are_synthetic_and_names_the_licence(source, tmp_path):
    assert convert(source, tmp_path / "out", "--to", "diffusers", "--license", "openrail") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: openrail\n")
    assert "not for diagnosis" in card


def test_the_card_of_a_run_tells_its_config_and_metrics_but_no_prompt(source, tmp_path):
    assert convert(source, tmp_path / "run", "--to", "orbax") == 0
    config = {
        "objective": {"name": "diffusion", "error": "mse"},
        "trainable": r"unet\..*",
        "steps": 40,
        "batch_size": 8,
        "model": {"base": "sd"},
        "data": {"size": 64, "views": ["LATERAL"], "sections": ["impression"], "prompts": ["{indication}"]},
        "samples": {"prompts": ["A patient's report."]},
    }
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    (tmp_path / "run" / "metrics.jsonl").write_text(
        '{"step": 20, "loss": 0.5}\n{"step": 40, "loss": null, "validation_loss": 0.25}\n{"step": 50, "lo'
    )
    folder = {"path": "data", "weight": 1.0, "source": "MimicCxr", "fingerprint": "f"}
    folder |= {"settings": {"size": 64, "views": ["PA", "AP"], "sections": ["findings"], "prompts": ["{findings}"]}}
    folder |= {"splits": {"train": 223, "validate": 9, "test": 0}, "labels": {}}
    folder |= {"views": {"train": {"AP": 125, "PA": 98}}}
    (tmp_path / "run" / "data.json").write_text(json.dumps({"folders": [folder]}))
    assert convert(tmp_path / "run", tmp_path / "out", "--to", "diffusers") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| base model | sd |" in card
    assert "| images | 64 × 64 pixels, grayscale, views: AP 125, PA 98 |" in card
    assert "| text | {findings}; sections: findings |" in card
    assert "| splits | train 223, validate 9 (of MimicCxr) |" in card
    assert "| loss | 0.5 |" in card, "a loss that was not finite is null"
    assert "| steps | 40 of 40, batches of 8 |" in card
    assert "| validation loss | 0.25 |" in card
    assert "A patient's report." not in card
    told = json.loads(card.split("```json")[1].split("```")[0])
    assert told == {key: value for key, value in config.items() if key not in ("data", "samples")}
    for setting in ("LATERAL", "impression", "indication"):
        assert setting not in card, "the images were not prepared with it"


@pytest.mark.parametrize(
    "license", ["a\ntags: [evil]", "a\u2028b", "a\x85b", "", " ", "x" * 101, "a\0", "a\ud800"], ids=repr
)
def test_a_licence_that_is_not_one_line_is_refused(license):
    with pytest.raises(UserError, match="--license .*give one line"):
        card.with_card(Checkpoint({}, {}), Path("nowhere"), license)


@pytest.mark.parametrize(
    "license", ["openrail", "cc-by-4.0", "other", "PhysioNet: v1.5 # x", '"', "no", "null", "[a]", "{a: b}", "'", "1.0"]
)
def test_a_licence_is_read_as_what_was_given(license):
    yaml = pytest.importorskip("yaml")
    text = card.with_card(Checkpoint({}, {}), Path("nowhere"), license).files[card.CARD].decode()
    assert yaml.safe_load(text.split("---")[1]) == {
        "license": license,
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["stable-diffusion", "chest-x-ray", "jaxcxr"],
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--only", "unett"], "--only unett: no such network"),
        (["--max-shard-size", "big"], "--max-shard-size big: give a size"),
        (["--max-shard-size", "0"], "--max-shard-size 0: give a size"),
    ],
)
def test_a_wrong_option_is_told(source, tmp_path, capsys, arguments, told):
    assert convert(source, tmp_path / "out", "--to", "diffusers", *arguments) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["diffusers", "orbax", "single-file"])
def test_what_is_not_finite_is_named_and_nothing_is_left(changed, tmp_path, capsys, to):
    file = changed / f"{UNET}.safetensors"
    tensors = {key: Tensor.of(np.array(tensor.read())) for key, tensor in open_safetensors(file).items()}
    tensors["conv_in.weight"].read()[3] = np.nan
    write_safetensors(file, tensors)
    before = sorted(tmp_path.iterdir())
    assert convert(changed, tmp_path / "out.safetensors", "--to", to) == 2
    error = capsys.readouterr().err
    assert "parameter unet.conv_in.kernel: holds NaN or infinity" in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_config_of_another_family_is_named(changed, tmp_path, capsys):
    file = changed / "unet" / "config.json"
    file.write_text(json.dumps({"_class_name": "SD3Transformer2DModel", "patch_size": 2}))
    assert convert(changed, tmp_path / "out", "--to", "orbax") == 2
    assert "SD3Transformer2DModel" in capsys.readouterr().err
    file.write_text(json.dumps({"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time"}))
    assert convert(changed, tmp_path / "out", "--to", "orbax") == 2
    assert "addition_embed_type" in capsys.readouterr().err


def test_weights_of_pytorch_are_preferred_to_flax(changed):
    (changed / "unet" / "diffusion_flax_model.msgpack").write_bytes(b"whatever")
    assert interop.read(changed, only=("unet",)).networks == ["unet"]


@pytest.mark.slow
def test_a_killed_conversion_leaves_the_destination_as_it_was(source, tmp_path):
    code = "import sys; from jaxcxr.__main__ import main; sys.exit(main(sys.argv[1:]))"
    for delay in (1.0, 2.0, 3.0):
        destination = tmp_path / f"out-{delay}"
        process = subprocess.Popen(
            [sys.executable, "-c", code, "convert", source, destination, "--to", "diffusers"],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if destination.exists():
            assert_same(source, destination)
        assert convert(source, tmp_path / f"again-{delay}", "--to", "diffusers") == 0


def test_an_unreadable_destination_is_told(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        interop.diffusers.write(interop.read(source), tmp_path / "file" / "out")
