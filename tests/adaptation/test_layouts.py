"""Files of adapters in every layout, written by diffusers and peft, and what is refused of them."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import jaxcxr
from jaxcxr import interop
from jaxcxr.__main__ import main
from jaxcxr.errors import UserError
from jaxcxr.interop import adapters
from jaxcxr.interop.layout import from_torch
from jaxcxr.interop.tensors import Tensor, open_safetensors, write_safetensors
from jaxcxr.manifest import Settings
from tests import pipelines

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OF_UNET = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in", "ff.net.0.proj"]
OF_TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    pytest.importorskip("peft")
    return pipelines.write(tmp_path_factory.mktemp("layouts") / "base")


@pytest.fixture
def tensors(base):
    return interop.read(base).tensors


class Theirs:
    """A pipeline of diffusers with random adapters of peft in it."""

    def __init__(self, base, *, alpha=3.0, dora=False, text=True, unet=OF_UNET, **settings):
        import diffusers
        import peft
        import torch

        self.pipeline = diffusers.StableDiffusionPipeline.from_pretrained(base)
        settings = {"r": 3, "lora_alpha": alpha, **settings}
        self.networks = {"unet": self.pipeline.unet}
        self.pipeline.unet.add_adapter(peft.LoraConfig(target_modules=unet, use_dora=dora, **settings))
        if text:
            self.networks["text_encoder"] = self.pipeline.text_encoder
            self.pipeline.text_encoder.add_adapter(peft.LoraConfig(target_modules=OF_TEXT, **settings))
        torch.manual_seed(1)
        for network in self.networks.values():
            for name, value in network.named_parameters():
                if "lora_" in name:
                    value.data += 0.1 * torch.randn_like(value)

    def states(self):
        """The adapters' tensors in PEFT's layout, by network."""
        from peft.utils import get_peft_model_state_dict

        found = {name: get_peft_model_state_dict(network) for name, network in self.networks.items()}
        if "text_encoder" in found:  # transformers 5 has no inner model
            names = {name: f"text_model.{name.removeprefix('text_model.')}" for name in found["text_encoder"]}
            found["text_encoder"] = {names[name]: value for name, value in found["text_encoder"].items()}
        return found

    def save(self, folder, change=lambda state: state, **metadata):
        states = {name: change(state) for name, state in self.states().items()}
        self.pipeline.save_lora_weights(
            folder,
            unet_lora_layers=states["unet"],
            text_encoder_lora_layers=states.get("text_encoder"),
            **metadata,
        )
        return folder

    def fused(self, weight=1.0):
        """The networks' weights with the adapters merged, by full name here."""
        found = {}
        for network, module in self.networks.items():
            from peft.tuners.tuners_utils import BaseTunerLayer

            for name, layer in module.named_modules():
                if isinstance(layer, BaseTunerLayer):
                    layer.set_scale("default", weight)
                    layer.merge()
                    inner = "text_model." if network == "text_encoder" and not name.startswith("text_model.") else ""
                    key, value = from_torch(f"{inner}{name}.weight", layer.get_base_layer().weight.detach().numpy())
                    found[f"{network}.{key}"] = value
        return found


def assert_merged(base, path, fused, weight=1.0):
    checkpoint = interop.read(base)
    found = adapters.merged(checkpoint, [path], [weight]).tensors
    assert found.keys() == checkpoint.tensors.keys()
    changed = 0.0
    for name, tensor in found.items():
        before = checkpoint.tensors[name].read()
        if name not in fused:
            np.testing.assert_array_equal(tensor.read(), before, name)
            continue
        changed = max(changed, np.abs(fused[name] - before).max())
        np.testing.assert_allclose(tensor.read(), fused[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert changed > 0.02, "a thousand times the tolerance"


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("dora", [False, True])
def test_pefts_layout_is_read(base, tmp_path, dora, weight):
    theirs = Theirs(base, dora=dora)
    assert_merged(base, theirs.save(tmp_path / "lora"), theirs.fused(weight), weight)


def test_alpha_is_read_from_the_metadata_of_diffusers(base, tmp_path):
    pattern = {"^mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 1.0, "attn2.to_v": 9.0}
    theirs = Theirs(base, alpha=7.0, alpha_pattern=pattern, rank_pattern={"attn2.to_k": 2})
    metadata = {
        f"{name}_lora_adapter_metadata": network.peft_config["default"].to_dict()
        for name, network in theirs.networks.items()
    }
    assert_merged(base, theirs.save(tmp_path / "lora", **metadata), theirs.fused())
    rslora = Theirs(base, alpha=7.0, use_rslora=True, text=False)
    metadata = {"unet_lora_adapter_metadata": rslora.networks["unet"].peft_config["default"].to_dict()}
    assert_merged(base, rslora.save(tmp_path / "rslora", **metadata), rslora.fused())


def test_the_layout_of_older_scripts_is_read(base, tmp_path):
    from diffusers.utils import convert_state_dict_to_diffusers

    theirs = Theirs(base, unet=OF_UNET[:4])
    folder = theirs.save(tmp_path / "lora", convert_state_dict_to_diffusers)
    keys = open_safetensors(folder / "pytorch_lora_weights.safetensors")
    assert f"unet.{TO_Q}.lora.down.weight" in keys
    assert any(key.endswith("q_proj.lora_linear_layer.up.weight") for key in keys)
    fused = theirs.fused()
    assert_merged(base, folder, fused)
    # As of before there was peft: processors of attention, whose output has no number.
    older = {
        re.sub(r"\.(to_[qkv]|to_out)(\.0)?\.lora\.", r".processor.\1_lora.", key): tensor
        for key, tensor in keys.items()
    }
    assert f"unet.{TO_Q.replace('to_q', 'processor.to_q_lora')}.down.weight" in older
    write_safetensors(tmp_path / "older.safetensors", older)
    assert_merged(base, tmp_path / "older.safetensors", fused)


@pytest.mark.parametrize("alpha", [3.0, 1.0])
@pytest.mark.parametrize("text", ["lora_te_text_model_", "lora_te1_text_model_", "lora_te_"])
def test_kohyas_layout_is_read(base, tmp_path, alpha, text):
    from diffusers.utils import convert_state_dict_to_kohya
    from safetensors.numpy import save_file

    theirs = Theirs(base, alpha=alpha)
    state = {f"{network}.{name}": value for network, each in theirs.states().items() for name, value in each.items()}
    # Which takes alpha to be the rank, and has a text encoder's name as of a model with two.
    converted = {
        key.replace("lora_te1_text_model_", text, 1): value.numpy()
        for key, value in convert_state_dict_to_kohya(state).items()
    }
    converted |= {key: np.array(alpha, np.float32) for key in converted if key.endswith(".alpha")}
    assert f"lora_unet_{TO_Q.replace('.', '_')}.lora_down.weight" in converted
    assert sum(key.startswith(text) for key in converted) == 3 * 4 * 2, "A, B and alpha of each layer"
    save_file(converted, tmp_path / "lora.safetensors")
    assert_merged(base, tmp_path / "lora.safetensors", theirs.fused())


A, B = np.zeros((2, 32), np.float32), np.zeros((32, 2), np.float32)
PEFT = {f"unet.{TO_Q}.lora_A.weight": A, f"unet.{TO_Q}.lora_B.weight": B}
KOHYA = {f"lora_unet_{TO_Q.replace('.', '_')}.lora_{part}.weight": v for part, v in (("down", A), ("up", B))}
OLD = {f"unet.{TO_Q}.lora.{part}.weight": value for part, value in (("down", A), ("up", B))}
NAN = np.full_like(A, np.nan)


@pytest.mark.parametrize(
    ("held", "parts"),
    [
        (PEFT | KOHYA, ("mixes the layouts", "PEFT's", "kohya's")),
        (PEFT | OLD, ("mixes the layouts", "PEFT's", "older diffusers'")),
        ({"conv_in.weight": A}, ("no adapter of a layout", "kohya's", "conv_in.weight")),
        ({}, ("no adapter of a layout", "none")),
        ({key.replace("to_q", "to_x"): each for key, each in PEFT.items()}, ("attn1.to_x.lora_A", "another base")),
        ({key.replace("to_q", "to_x"): each for key, each in KOHYA.items()}, ("attn1_to_x.lora_down", "another base")),
        ({key: np.zeros((2, 320), np.float32) for key in PEFT}, ("(2, 320)", "(2, 32)", "another base")),
        ({key: np.zeros((320, 2), np.float32) for key in PEFT}, ("lora_A", "(320, 2)", "(320, 32)", "another base")),
        ({key: np.zeros((2, 32, 1, 1), np.float32) for key in PEFT}, ("(2, 32, 1, 1)", "another base")),
        ({key: np.zeros(2, np.float32) for key in PEFT}, ("(2,)", "2 axes or 4")),
        ({key: np.zeros((0, 32), np.float32) for key in PEFT}, ("(0, 32)", "another base")),
        (PEFT | {f"unet.{TO_Q}.lora_magnitude_vector": A[0, :5]}, ("5 magnitudes", "32 outputs")),
        (dict(list(PEFT.items())[:1]), ("lora_A", "no B beside it")),
        (PEFT | {f"unet.{TO_Q}.lora_B.bias": A[0]}, ("lora_B.bias", "no part of a LoRA")),
        (KOHYA | {f"lora_unet_{TO_Q.replace('.', '_')}.dora_scale": A}, ("dora_scale", "PEFT's layout")),
        ({f"lora_unet_{TO_Q.replace('.', '_')}.hada_w1_a": A}, ("hada_w1_a", "LoHa")),
        (KOHYA | {f"lora_unet_{TO_Q.replace('.', '_')}.alpha": A}, ("alpha", "one number")),
        ({key: each.astype(np.int32) for key, each in PEFT.items()}, ("int32", "floating-point")),
        (PEFT | {f"unet.{TO_Q}.lora_A.weight": NAN}, ("lora_A.weight", "NaN")),
        (KOHYA | {f"lora_unet_{TO_Q.replace('.', '_')}.alpha": np.array(np.nan, np.float32)}, ("alpha", "NaN")),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_a_line(base, tensors, tmp_path, held, parts):
    file = tmp_path / "a.safetensors"
    write_safetensors(file, {name: Tensor.of(value) for name, value in held.items()})
    with pytest.raises(UserError) as error:
        [tensor.read() for tensor in adapters.merged(interop.read(base), [file], []).tensors.values()]
    said = str(error.value)
    assert said.startswith(str(file))
    assert all(part in said for part in parts), said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("metadata", "parts"),
    [
        ("{", ("lora_adapter_metadata", "not JSON")),
        ('{"unet.lora_alpha": "many"}', ("lora_adapter_metadata: unet", "lora_alpha")),
        ('{"unet.lora_alpha": 1, "unet.alpha_pattern": {"(a+)+": 2}}', ("(a+)+", "no name of a layer")),
    ],
)
def test_metadata_that_cannot_be_honoured_is_refused(tensors, tmp_path, metadata, parts):
    from safetensors.numpy import save_file

    save_file(PEFT, tmp_path / "a.safetensors", {"lora_adapter_metadata": metadata})
    with pytest.raises(UserError) as error:
        adapters.read(tmp_path / "a.safetensors", tensors)
    assert all(part in str(error.value) for part in parts), error.value


def test_paths_that_hold_no_adapter_are_refused(base, tensors, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"")
    for path, message in (
        (tmp_path / "none", "no such file or folder; an adapter is"),
        (tmp_path / "a.bin", "read from .safetensors alone"),
        (base, "holds no pytorch_lora_weights.safetensors"),
    ):
        with pytest.raises(UserError, match=message):
            adapters.read(path, tensors)
    assert main(["convert", str(base), str(tmp_path / "orbax"), "--to", "orbax"]) == 0
    with pytest.raises(UserError, match=r"has learnt no adapter; config\.lora\.rank is 0"):
        adapters.read(tmp_path / "orbax", tensors)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--adapter", "a", "--adapter-weight", "nan"), ("--adapter-weight nan", "finite")),
        (("--adapter", "a", "--adapter-weight", "1", "--adapter-weight", "2"), ("weight 2 of 1 adapters",)),
        (("--adapter-weight", "1"), ("weight 1 of 0 adapters",)),
        (("--adapter", "a", "--adapter-weight", "x"), ("invalid float value",)),
    ],
)
@pytest.mark.parametrize("verb", ["sample", "convert"])
def test_weights_that_cannot_be_are_refused_before_anything_is_drawn(base, tmp_path, capsys, verb, options, parts):
    out = str(tmp_path / "out")
    how = ["--checkpoint", str(base), "--prompt", "a", "--out", out]
    argv = how if verb == "sample" else [str(base), out, "--to", "diffusers"]
    assert main([verb, *argv, *options]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in parts), said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_adapters_are_a_jobs_identity_and_python_draws_the_same(base, tmp_path, capsys):
    file = tmp_path / "a.safetensors"
    draw = np.random.default_rng(2).standard_normal
    # Of values, which change a picture more than queries do.
    write = {key.replace("to_q", "to_v"): Tensor.of(4 * draw(value.shape, np.float32)) for key, value in PEFT.items()}
    write_safetensors(file, write)
    argv = ["sample", "--checkpoint", str(base), "--prompt", "a", "--out", str(tmp_path / "out"), "--steps", "2"]
    with_it = [*argv, "--adapter", str(file), "--adapter-weight", "0.5"]
    assert main(with_it) == 0
    assert main(with_it) == 0
    assert "already sampled" in capsys.readouterr().out
    row = json.loads((tmp_path / "out" / "manifest.jsonl").read_text())
    assert row["adapters"] == [{"path": str(file), "weight": 0.5, "step": None}]
    assert json.loads((tmp_path / "out" / "metadata.jsonl").read_text()).keys() == {"file_name", "text", "synthetic"}
    for other in (argv, [*with_it[:-1], "0.6"]):
        assert main(other) == 2
        assert "of other prompts or settings" in capsys.readouterr().err
    picture = np.asarray(Image.open(tmp_path / "out" / "00000.png"))
    pipe = jaxcxr.load(base, adapter=file, adapter_weight=0.5)
    np.testing.assert_array_equal(pipe("a", steps=2)[0], picture)
    plain = np.asarray(jaxcxr.load(base)("a", steps=2)[0])
    assert np.abs(plain.astype(int) - picture).max() > 3
    assert "adapters" not in Settings("base").row(0, {"prompt": "a"}), "as in manifests of before there were any"
