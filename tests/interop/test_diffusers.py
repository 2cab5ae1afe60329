import json

import numpy as np
import pytest

from jaxcxr import interop
from jaxcxr.__main__ import main
from jaxcxr.errors import UserError

st = pytest.importorskip("safetensors.numpy")


def tensors(folder, network):
    return st.load_file(folder / network / interop.diffusers.WEIGHTS[network])


def test_import_then_export_gives_the_same_folder(source, tmp_path):
    interop.save(interop.load(source), tmp_path / "out")
    for network in ("unet", "vae"):
        theirs, ours = tensors(source, network), tensors(tmp_path / "out", network)
        assert theirs.keys() == ours.keys()
        for key in theirs:
            assert theirs[key].dtype == ours[key].dtype
            np.testing.assert_array_equal(theirs[key], ours[key], err_msg=key)
    # transformers 5 writes the text model without the prefix that 4 wrote and that both read
    theirs = {f"text_model.{key}": value for key, value in tensors(source, "text_encoder").items()}
    ours = tensors(tmp_path / "out", "text_encoder")
    assert theirs.keys() == ours.keys()
    assert all((theirs[key] == ours[key]).all() for key in theirs)

    def others(folder):
        return {
            file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*")
            if file.is_file() and file.suffix != ".safetensors"
        }

    assert others(source) == others(tmp_path / "out")


def test_through_orbax_and_back_is_exact(source, tmp_path):
    assert main(["convert", str(source), str(tmp_path / "orbax"), "--to", "orbax", "--verify"]) == 0
    assert main(["convert", str(tmp_path / "orbax"), str(tmp_path / "out"), "--to", "diffusers"]) == 0
    for network in ("unet", "vae"):
        theirs, ours = tensors(source, network), tensors(tmp_path / "out", network)
        assert all((theirs[key] == ours[key]).all() for key in theirs | ours)


def test_half_precision_export_is_the_rounding(source, tmp_path):
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "diffusers", "--dtype", "float16"]) == 0
    theirs, ours = tensors(source, "unet"), tensors(tmp_path / "out", "unet")
    assert all((theirs[key].astype(np.float16) == ours[key]).all() for key in theirs)
    assert ours["conv_in.weight"].dtype == np.float16


def test_names_are_whole(source):
    parameters = interop.load(source).parameters()
    assert "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.kernel" in parameters
    assert "text_encoder.text_model.encoder.layers.1.mlp.fc2.bias" in parameters
    assert set(interop.load(source, only=("vae",)).networks) == {"vae"}


def edit(folder, network, change):
    file = folder / network / interop.diffusers.WEIGHTS[network]
    found = st.load_file(file)
    change(found)
    st.save_file(found, file, metadata={"format": "pt"})


def test_a_missing_tensor_is_named(changed):
    edit(changed, "unet", lambda t: t.pop("mid_block.resnets.0.conv1.weight"))
    with pytest.raises(UserError, match=r"unet\.mid_block\.resnets\.0\.conv1\.kernel is missing"):
        interop.load(changed)


def test_an_unexpected_tensor_is_named(changed):
    edit(changed, "vae", lambda t: t.update({"encoder.extra.weight": np.zeros((2, 2), np.float32)}))
    with pytest.raises(UserError, match=r"vae\.encoder\.extra\.kernel is not one"):
        interop.load(changed)


def test_a_misshapen_tensor_is_named(changed):
    edit(changed, "unet", lambda t: t.update({"conv_in.bias": np.zeros(31, np.float32)}))
    with pytest.raises(UserError, match=r"unet\.conv_in\.bias has shape \(31,\), the config asks for \(32,\)"):
        interop.load(changed)


def test_a_config_of_other_tensors_is_told(changed):
    file = changed / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"block_out_channels": [64, 64]}))
    with pytest.raises(UserError, match="do config.json and weights belong together"):
        interop.load(changed)


def test_a_missing_file_is_named(changed):
    (changed / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"vae/diffusion_pytorch_model\.safetensors: no such file"):
        interop.load(changed)


def test_a_truncated_file_is_named(changed):
    file = changed / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match="unet/diffusion_pytorch_model.safetensors: cannot be read"):
        interop.load(changed)


def test_a_config_that_is_not_json_is_named(changed):
    (changed / "unet" / "config.json").write_text("{")
    with pytest.raises(UserError, match="unet/config.json: not JSON"):
        interop.load(changed)


def test_what_is_not_a_checkpoint_is_told(tmp_path, capsys):
    with pytest.raises(UserError, match="no network here"):
        interop.load(tmp_path)
    assert main(["convert", str(tmp_path / "nothing"), str(tmp_path / "out"), "--to", "orbax"]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_destination_that_exists_is_left_alone(source, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    assert main(["convert", str(source), str(tmp_path / "out"), "--to", "diffusers"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_the_old_names_of_the_autoencoders_attention_are_read(changed):
    def rename(found):
        for key in [key for key in found if ".attentions." in key]:
            old = key.replace("to_q", "query").replace("to_k", "key").replace("to_v", "value")
            found[old.replace("to_out.0", "proj_attn")] = found.pop(key)

    before = interop.load(changed, only=("vae",)).parameters()
    edit(changed, "vae", rename)
    after = interop.load(changed, only=("vae",)).parameters()
    assert all((np.asarray(before[name]) == np.asarray(after[name])).all() for name in before)


def test_position_ids_of_old_transformers_are_left_aside(changed):
    edit(changed, "text_encoder", lambda t: t.update({"embeddings.position_ids": np.arange(77)[None]}))
    assert interop.load(changed, only=("text_encoder",)).text_encoder is not None


def test_a_safety_checker_is_not_asked_for_again(changed, tmp_path):
    file = changed / "model_index.json"
    index = json.loads(file.read_text()) | {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    file.write_text(json.dumps(index))
    interop.save(interop.load(changed), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert written["safety_checker"] == [None, None]
    assert written["unet"] == index["unet"]
