"""Of a checkpoint's folder the known files alone are read, and none through a link that leads out of it."""

import json
import os
import shutil

import pytest

from jaxcxr import interop
from jaxcxr.errors import UserError
from jaxcxr.interop import diffusers, folder

pytest.importorskip("torch")


def test_what_diffusers_writes_is_carried_and_nothing_else(changed):
    before = diffusers.read_files(changed)
    for name in ("unet/notes.txt", "scheduler/x", "tokenizer/more/deep.json", "tokenizer/junk.bin", "vae/run.py"):
        (changed / name).parent.mkdir(exist_ok=True)
        (changed / name).write_bytes(b"junk")
    assert diffusers.read_files(changed) == before
    assert {name.split("/")[0] for name in before} == {*folder.CARRIED} - {"", "controlnet"} | {"model_index.json"}


def test_junk_is_not_opened(changed):
    with (changed / "tokenizer" / "junk.json").open("wb") as file:
        file.truncate(2**40)  # a sparse terabyte
    os.mkfifo(changed / "scheduler" / "pipe")
    diffusers.read_files(changed)


def test_a_file_that_is_far_too_large_is_refused(changed):
    with (changed / "tokenizer" / "vocab.json").open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(UserError, match=r"vocab\.json: is larger than"):
        diffusers.read_files(changed)


def test_a_link_of_an_unknown_name_is_left_aside(changed, tmp_path):
    (tmp_path / "secret").write_text("{}")
    (changed / "scheduler" / "x").symlink_to(tmp_path / "secret")
    out = tmp_path / "out"
    interop.diffusers.write(interop.read(changed), out)
    assert {file.name for file in (out / "scheduler").iterdir()} == {"scheduler_config.json"}


@pytest.mark.parametrize(
    "name",
    [
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_link_out_of_the_folder_is_refused(changed, tmp_path, name):
    (changed / name).rename(tmp_path / "elsewhere")
    (changed / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{name}: links out of the checkpoint's folder"):
        interop.read(changed)


def test_a_folder_that_is_a_link_out_is_refused_and_the_checkpoint_itself_may_be_one(changed, tmp_path):
    (tmp_path / "link").symlink_to(changed)
    interop.read(tmp_path / "link")
    (changed / "vae").rename(tmp_path / "vae")
    (changed / "vae").symlink_to(tmp_path / "vae")
    with pytest.raises(UserError, match=r"vae/config\.json: links out"):
        interop.read(changed)


def test_links_within_the_folder_and_damaged_ones(changed):
    file = changed / "scheduler" / "scheduler_config.json"
    file.rename(file.with_name("renamed"))
    file.symlink_to("renamed")
    assert "scheduler/scheduler_config.json" in interop.read(changed).files
    file.unlink()
    file.symlink_to(file.name)  # to itself: as good as absent
    assert "scheduler/scheduler_config.json" not in interop.read(changed).files


def test_a_snapshot_of_the_hubs_cache_is_read(source, tmp_path):
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123abc"
    for number, file in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, cache / "blobs" / str(number))
        link.symlink_to(os.path.relpath(cache / "blobs" / str(number), link.parent))
    assert interop.read(snapshot).files == interop.read(source).files
    (cache / "other").write_text("{}")
    (snapshot / "scheduler" / "scheduler_config.json").unlink()
    (snapshot / "scheduler" / "scheduler_config.json").symlink_to(cache / "other")
    with pytest.raises(UserError, match="links out"):
        interop.read(snapshot)


def test_shards_may_not_be_links_out(changed, tmp_path):
    unet, shard = changed / "unet", "diffusion_pytorch_model-00001-of-00001.safetensors"
    names = list(diffusers._open_weights(unet, diffusers.WEIGHTS["unet"], changed))
    (unet / diffusers.WEIGHTS["unet"]).rename(tmp_path / shard)
    (unet / shard).symlink_to(tmp_path / shard)
    index = unet / f"{diffusers.WEIGHTS['unet']}.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    with pytest.raises(UserError, match="links out"):
        interop.read(changed)


def test_the_model_folder_of_an_orbax_checkpoint_is_read_by_the_same_rules(source, tmp_path):
    interop.orbax.write(interop.read(source), tmp_path / "run")
    scheduler = tmp_path / "run" / "model" / "scheduler"
    (scheduler / "x").symlink_to("/etc/passwd")
    assert "scheduler/x" not in interop.read(tmp_path / "run").files
    (scheduler / "scheduler_config.json").unlink()
    (scheduler / "scheduler_config.json").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="links out"):
        interop.read(tmp_path / "run")
