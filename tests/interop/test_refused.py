"""Other families' pipelines, and what is added to a checkpoint, are refused in one line that says what they are."""

import json

import ml_dtypes
import numpy as np
import pytest

from jaxcxr import interop
from jaxcxr.__main__ import main
from jaxcxr.diffusion.samplers import DDIM
from jaxcxr.errors import UserError
from jaxcxr.interop import config_files, diffusers, single_file
from jaxcxr.interop.refused import PIPELINES
from tests import pipelines

st = pytest.importorskip("safetensors.numpy")
torch = pytest.importorskip("torch")

HALF = np.zeros((2, 3), np.float16)


def edit(file, **changes):
    content = json.loads(file.read_text())
    content |= changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value != "drop"}))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("FluxPipeline", "Flux"),
        ("StableDiffusionXLPipeline", "Stable Diffusion XL"),
        ("StableDiffusion3Pipeline", "Stable Diffusion 3"),
        ("LatentConsistencyModelPipeline", "LCM"),
        ("StableDiffusionControlNetInpaintPipeline", "ControlNet"),
        ("WhatPipeline", "WhatPipeline"),
        (7, "7"),
    ],
)
def test_a_pipeline_of_another_family_is_refused_by_its_class(changed, name, part, capsys):
    edit(changed / "model_index.json", _class_name=name)
    assert main(["convert", str(changed), str(changed.parent / "out"), "--to", "diffusers"]) == 2
    error = capsys.readouterr().err
    assert "model_index.json" in error
    assert part in error
    assert len(error.splitlines()) == 1
    assert not (changed.parent / "out").exists()


@pytest.mark.parametrize("folder", ["text_encoder_2", "transformer", "prior", "image_encoder", "low_res_scheduler"])
@pytest.mark.parametrize("index", [True, False])
def test_folders_of_other_families_are_refused(changed, folder, index):
    (changed / folder).mkdir()
    if not index:
        (changed / "model_index.json").unlink()
    with pytest.raises(UserError, match=f"{folder}: is no part of Stable Diffusion 1 or 2"):
        interop.read(changed)


def test_a_part_of_another_family_in_the_index_is_refused_and_an_absent_one_is_not(changed):
    edit(changed / "model_index.json", image_encoder=[None, None])
    interop.read(changed)
    edit(changed / "model_index.json", image_encoder=["transformers", "CLIPVisionModelWithProjection"])
    with pytest.raises(UserError, match="image_encoder"):
        interop.read(changed)


def test_a_part_of_a_library_of_ones_own_is_refused(changed):
    edit(changed / "model_index.json", unet=["my_module", "MyUNet"])
    with pytest.raises(UserError, match="unet is of the library 'my_module'"):
        interop.read(changed)


@pytest.mark.parametrize("name", sorted(PIPELINES - {"StableDiffusionPipelineSafe"}))
def test_pipelines_of_the_same_layout_are_those_of_diffusers(name):
    """They take the same parts; what is more of them may be left out."""
    import inspect

    try:
        cls = getattr(pytest.importorskip("diffusers"), name)
    except (AttributeError, RuntimeError, ImportError):
        pytest.skip("not in this version")
    wanted = set(inspect.signature(cls.__init__).parameters)
    if "args" in wanted:
        pytest.skip("needs a package that is not installed")
    assert {"unet", "vae", "text_encoder", "tokenizer", "scheduler"} <= wanted
    required = {
        key
        for key, parameter in inspect.signature(cls.__init__).parameters.items()
        if parameter.default is parameter.empty and key not in ("self", "safety_checker", "feature_extractor")
    }
    more = {"controlnet"} if name == "StableDiffusionControlNetPipeline" else set()
    assert required == {"unet", "vae", "text_encoder", "tokenizer", "scheduler"} | more


LORAS = {
    "peft": ({"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": HALF}, "a U-Net"),
    "peft text": (
        {"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight": HALF},
        "LoRA for a text encoder",
    ),
    "peft alone": ({"base_model.model.mid_block.attentions.0.to_k.lora_A.weight": HALF}, "a U-Net"),
    "diffusers, old": ({"unet.mid_block.attentions.0.to_q.lora.down.weight": HALF}, "a U-Net"),
    "diffusers, oldest": ({"mid_block.attentions.0.attn1.processor.to_q_lora.down.weight": HALF}, "a U-Net"),
    "text, old": ({"text_encoder.text_model.q_proj.lora_linear_layer.down.weight": HALF}, "LoRA for a text encoder"),
    "kohya": (
        {
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": HALF,
            "lora_unet_down_blocks_0_attentions_0_proj_in.alpha": np.array(1, np.float16),
            "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": HALF,
        },
        "a U-Net and a text encoder",
    ),
}


@pytest.mark.parametrize("layout", LORAS)
@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
def test_a_lora_is_named(tmp_path, layout, suffix):
    tensors, part = LORAS[layout]
    file = write(tmp_path / f"lora{suffix}", tensors)
    with pytest.raises(UserError, match="is a LoRA for .*not a whole checkpoint; merge it into its base") as error:
        interop.read(file)
    assert part in str(error.value)


def write(file, tensors):
    if file.suffix == ".safetensors":
        st.save_file(tensors, file)
    else:
        torch.save({key: torch.from_numpy(np.array(value)) for key, value in tensors.items()}, file)
    return file


def automatic1111(parameters):
    return {"string_to_token": {"*": 265}, "string_to_param": parameters, "name": "cxr", "step": 10}


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])
@pytest.mark.parametrize("tensors", [{"<cxr>": HALF}, {"<cxr>": HALF[0]}, {"emb_params": HALF}])
def test_a_textual_inversion_is_named(tmp_path, suffix, tensors):
    with pytest.raises(UserError, match="is a textual-inversion embedding, not a whole checkpoint"):
        interop.read(write(tmp_path / f"embedding{suffix}", tensors))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_textual_inversion_of_automatic1111_is_named(tmp_path, zipped):
    vectors = {"*": torch.zeros(2, 3)}
    torch.save(automatic1111(vectors), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    torch.save(automatic1111(torch.nn.ParameterDict(vectors)), tmp_path / "b.pt", _use_new_zipfile_serialization=zipped)
    for name in ("a.pt", "b.pt"):
        with pytest.raises(UserError, match="is a textual-inversion embedding.*, not a whole checkpoint"):
            interop.read(tmp_path / name)


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"controlnet_cond_embedding.conv_in.weight": HALF, "a.b": HALF, "c.d": HALF}, "a ControlNet"),
        ({"adapter.body.0.resnets.0.block1.weight": HALF, "a.b": HALF, "c.d": HALF}, "a T2I adapter"),
        ({"ip_adapter.1.to_k_ip.weight": HALF, "image_proj.proj.weight": HALF}, "an IP adapter"),
    ],
)
def test_what_is_added_to_a_network_is_named(tmp_path, tensors, what):
    with pytest.raises(UserError, match=f"is {what}, not a whole checkpoint"):
        interop.read(write(tmp_path / "x.safetensors", tensors))


@pytest.mark.parametrize(
    ("name", "what"),
    [("ControlNetModel", "a ControlNet"), ("T2IAdapter", "a T2I adapter"), ("PixArtTransformer2DModel", "PixArt")],
)
def test_a_folder_of_one_network_is_named(tmp_path, name, what):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(UserError, match=f"is .*{what}.*, not a whole checkpoint"):
        interop.read(tmp_path)


@pytest.mark.parametrize(
    ("file", "what"), [("pytorch_lora_weights.safetensors", "a LoRA"), ("learned_embeds.bin", "a textual-inversion")]
)
def test_a_folder_of_what_is_added_is_named(tmp_path, file, what):
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(UserError, match=f"is {what}.*, not a whole checkpoint"):
        interop.read(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "part"), [(np.int64, "is int64"), (np.bool_, "is bool"), (np.int8, "is int8"), ("F8", "F8_E4M3")]
)
def test_weights_that_are_no_floats_are_refused_by_name_and_dtype(changed, dtype, part):
    file = changed / "unet" / diffusers.WEIGHTS["unet"]
    tensors = st.load_file(file)
    if dtype == "F8":
        found = {key: torch.from_numpy(value) for key, value in tensors.items()}
        found["conv_in.bias"] = found["conv_in.bias"].to(torch.float8_e4m3fn)
        pytest.importorskip("safetensors.torch").save_file(found, file)
    else:
        st.save_file(tensors | {"conv_in.bias": np.ones(32, dtype)}, file)
    with pytest.raises(UserError, match=r"conv_in\.bias") as error:
        interop.read(changed)
    assert part in str(error.value)


def test_what_is_not_finite_is_refused_by_every_reader_in_every_dtype(changed, tmp_path):
    """The folder's, the single file's and Orbax's, in the dtypes that they keep."""
    file = changed / "unet" / diffusers.WEIGHTS["unet"]
    whole = st.load_file(file)
    for dtype, bad in ((np.float16, np.inf), (ml_dtypes.bfloat16, np.nan), (np.float32, -np.inf), (np.float64, np.nan)):
        tensors = {key: value.astype(dtype) for key, value in whole.items()}
        tensors["conv_in.bias"] = np.full(32, bad, dtype)
        st.save_file(tensors, file)
        folder = tmp_path / np.dtype(dtype).name
        checkpoint = diffusers.read(changed, only=("unet",))  # unchecked, so that it can be written
        interop.orbax.write(checkpoint, folder / "orbax")
        single_file.write(checkpoint, folder / "x.safetensors")
        unet = {"unet/config.json": checkpoint.files["unet/config.json"]}
        interop.pipeline.write_files(folder / "configs", unet)
        for read in (
            lambda: interop.read(changed, only=("unet",)),
            lambda folder=folder: interop.read(folder / "orbax"),
            lambda folder=folder: interop.read(folder / "x.safetensors", config=folder / "configs"),
        ):
            with pytest.raises(UserError, match=r"unet\.conv_in\.bias: holds NaN or infinity"):
                read().tensors["unet.conv_in.bias"].read()


@pytest.mark.parametrize("value", [0, float("nan"), -0.2, "x", None, True, 10**400])
def test_a_scaling_factor_that_is_none_is_refused(changed, value):
    edit(changed / "vae" / "config.json", scaling_factor=value)
    with pytest.raises(UserError, match="scaling_factor|vae/config.json"):
        interop.read(changed)


@pytest.mark.parametrize(("key", "value"), [("shift_factor", 0.1), ("latents_mean", [0.0] * 4), ("latents_std", [1.0])])
def test_latents_that_are_shifted_are_refused(changed, key, value):
    edit(changed / "vae" / "config.json", **{key: value})
    with pytest.raises(UserError, match=key):
        interop.read(changed)


def test_an_inpainting_unet_reads_converts_and_comes_back(tmp_path):
    folder = pipelines.write(tmp_path / "pipeline", unet=pipelines.UNET | {"in_channels": 9})
    edit(folder / "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    for kind, name in (("orbax", "orbax"), ("single-file", "x.safetensors"), ("diffusers", "folder")):
        options = ["--config", str(folder)] if kind == "single-file" else []
        assert main(["convert", str(folder), str(tmp_path / name), "--to", kind, "--verify", *options]) == 0
    before = interop.read(folder)
    for after in (
        interop.read(tmp_path / "orbax"),
        interop.read(tmp_path / "folder"),
        interop.read(tmp_path / "x.safetensors", config=folder),
    ):
        assert after.tensors["unet.conv_in.kernel"].shape == (3, 3, 9, 32)
        assert all((after.tensors[name].read() == before.tensors[name].read()).all() for name in before.tensors)
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInpaintPipeline"


def test_a_unet_with_class_labels_converts_but_does_not_draw(tmp_path):
    folder = pipelines.write(tmp_path / "pipeline", unet=pipelines.UNET | {"num_class_embeds": 3})
    pipeline = interop.load(folder)
    with pytest.raises(UserError, match="num_class_embeds=3"):
        pipeline.require_text_alone()
    command = ["sample", "--checkpoint", str(folder), "--prompt", "x", "--out", str(tmp_path / "out")]
    assert main([*command, "--steps", "1", "--size", "16"]) == 2


def test_the_index_of_a_pipeline_names_the_class_of_its_scheduler(source):
    files = diffusers.read_files(source) | {"scheduler/scheduler_config.json": b'{"_class_name": "PNDMScheduler"}'}
    assert json.loads(config_files.model_index(files))["scheduler"] == ["diffusers", "PNDMScheduler"]


def test_a_scheduler_is_of_the_class_that_the_index_names(changed):
    """As in diffusers, which loads the file as that class, with the class's own defaults for what the file lacks."""
    scheduler = changed / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({"_class_name": "EulerDiscreteScheduler", "beta_end": 0.012}))
    pipeline = interop.load(changed)
    assert pipeline.sampler() == DDIM(beta_end=0.012, steps_offset=1, clip_sample=False)
    assert pipeline.schedule.beta_end == 0.012
