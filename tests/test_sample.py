import dataclasses
import json
import stat

import numpy as np
import pytest
from PIL import Image

import jaxcxr.sample
from jaxcxr import interop
from jaxcxr.__main__ import main
from jaxcxr.errors import UserError
from jaxcxr.generate import default_size, latent_shape
from jaxcxr.interop.pipeline import from_files
from jaxcxr.manifest import Settings, strip_of
from jaxcxr.rows import Lines
from jaxcxr.sample import sample
from tests import pipelines

PROMPTS = [{"prompt": text} for text in pipelines.REPORTS[:3]]
SETTINGS = Settings("base", steps=2, guidance=1.0, eta=1.0)


@pytest.fixture(scope="module")
def pipeline(base):
    return interop.load(base)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pipelines.write(tmp_path_factory.mktemp("written") / "base")


def manifest(folder):
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def with_config(pipeline, file, **values):
    """A pipeline one of whose config files says something else."""
    changed = json.dumps(json.loads(pipeline.files[file]) | values).encode()
    return from_files({**pipeline.files, file: changed})


def pictures(folder):
    return [np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))]


def test_a_picture_with_noise_on_the_way_does_not_depend_on_its_batch(pipeline, tmp_path):
    sample(pipeline, PROMPTS, SETTINGS, tmp_path / "two", batch_size=2)
    sample(pipeline, PROMPTS, SETTINGS, tmp_path / "three", batch_size=3)
    sample(pipeline, PROMPTS[:1] * 2, SETTINGS, tmp_path / "alike", batch_size=2)
    two, three = pictures(tmp_path / "two"), pictures(tmp_path / "three")
    # A level of gray for the rounding of another program.
    assert np.abs(np.subtract(two, three, dtype=int)).max() <= 1
    assert np.abs(np.subtract(*pictures(tmp_path / "alike"), dtype=int)).max() > 10


def test_pictures_are_numbered_whatever_the_prompts_say(pipeline, tmp_path):
    prompts = [{"prompt": "a", "file_name": "images/7.jpg", "index": 7}, {"prompt": "b", "file_name": "images/7.jpg"}]
    sample(pipeline, prompts, SETTINGS, tmp_path / "out", batch_size=2)
    rows = [json.loads(line) for line in (tmp_path / "out" / "manifest.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == ["00000.png", "00001.png"]
    assert len(pictures(tmp_path / "out")) == 2


def test_samples_are_of_the_step_that_the_checkpoint_was_at(pipeline, tmp_path):
    settings = dataclasses.replace(SETTINGS, checkpoint_step=4, size=16)
    sample(pipeline, PROMPTS, settings, tmp_path / "out")
    assert settings.already_done(tmp_path / "out", PROMPTS)
    with pytest.raises(UserError, match="holds samples of step 4 of base, which is at 8; name another --out"):
        dataclasses.replace(settings, checkpoint_step=8).already_done(tmp_path / "out", PROMPTS)
    with pytest.raises(UserError, match="holds samples of other prompts or settings"):
        dataclasses.replace(settings, checkpoint_step=8, seed=1).already_done(tmp_path / "out", PROMPTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 15}, "pictures of 15 pixels: this autoencoder wants a multiple of 2"),
        ({"size": 0}, "pictures of 0 pixels"),
        ({"eta": 2.0}, "--eta 2.0: may be from 0 to 1"),
        ({"guidance": float("nan")}, "--guidance nan: may be 0 or more"),
        ({"seed": 2**32}, "--seed 4294967296: may be from 0"),
        ({"seed": -1}, "--seed -1: may be from 0"),
        ({"batch_size": 0}, "--batch-size 0: may be 1 or more"),
        ({"batch_size": -3}, "--batch-size -3: may be 1 or more"),
    ],
)
def test_options_that_cannot_be_are_told(pipeline, tmp_path, change, message):
    change = dict(change)
    batch_size = change.pop("batch_size", 2)
    with pytest.raises(UserError, match=message):
        sample(pipeline, PROMPTS, dataclasses.replace(SETTINGS, **change), tmp_path / "out", batch_size)
    assert not (tmp_path / "out").exists()


def test_the_size_of_the_pictures_is_on_record(pipeline, tmp_path):
    sample(pipeline, PROMPTS, SETTINGS, tmp_path / "out")
    assert [row["size"] for row in manifest(tmp_path / "out")] == [16] * 3
    assert {picture.shape for picture in pictures(tmp_path / "out")} == {(16, 16)}
    assert default_size(pipeline) == 16
    assert default_size(with_config(pipeline, "unet/config.json", sample_size=[32, 32])) == 64
    for sizes in (None, [8, 16]):
        with pytest.raises(UserError, match="sample_size .* give --size"):
            default_size(with_config(pipeline, "unet/config.json", sample_size=sizes))


def test_a_job_of_before_sizes_were_on_record_is_known_again(pipeline, tmp_path):
    settings = dataclasses.replace(SETTINGS, size=16)
    sample(pipeline, PROMPTS, settings, tmp_path / "out")
    with pytest.raises(UserError, match="other prompts or settings"):
        dataclasses.replace(settings, size=32).already_done(tmp_path / "out", PROMPTS)
    rows = [row | {"size": None} for row in manifest(tmp_path / "out")]
    (tmp_path / "out" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert settings.already_done(tmp_path / "out", PROMPTS)
    with pytest.raises(UserError, match="other prompts or settings"):
        dataclasses.replace(settings, steps=3).already_done(tmp_path / "out", PROMPTS)


def test_a_finished_job_is_known_again_by_its_command(base, tmp_path, capsys):
    command = ["sample", "--checkpoint", str(base), "--prompt", "a", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert manifest(tmp_path / "out")[0]["size"] == 16
    assert main(command) == 0
    assert "already sampled, 1 images" in capsys.readouterr().out
    assert main([*command, "--size", "16"]) == 0
    assert main([*command, "--size", "32"]) == 2
    assert "other prompts or settings" in capsys.readouterr().err
    (tmp_path / "out" / "manifest.jsonl").write_text("{")
    assert main(command) == 2
    assert "manifest.jsonl: line 1" in capsys.readouterr().err


def test_an_interrupted_job_resumes_at_the_batch_it_was_in(pipeline, tmp_path, monkeypatch):
    prompts, settings = [{"prompt": text} for text in pipelines.REPORTS], dataclasses.replace(SETTINGS, size=16)
    sample(pipeline, prompts, settings, tmp_path / "whole", batch_size=2)
    drawn, write = [], jaxcxr.sample._write

    def interrupt(place, folder, row, *others):
        if row["index"] == 3 and not drawn:
            raise KeyboardInterrupt
        write(place, folder, row, *others)

    def count(place, folder, row, *others):
        drawn.append(row["index"])
        write(place, folder, row, *others)

    monkeypatch.setattr(jaxcxr.sample, "_write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sample(pipeline, prompts, settings, tmp_path / "out", batch_size=2)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="begun with other settings"):
        sample(pipeline, prompts, dataclasses.replace(settings, seed=1), tmp_path / "out", batch_size=2)
    monkeypatch.setattr(jaxcxr.sample, "_write", count)
    sample(pipeline, prompts, settings, tmp_path / "out", batch_size=2)
    assert drawn == [2, 3]
    files = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("whole", "out")]
    assert files[0] == files[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_others_cannot_read_samples(pipeline, tmp_path):
    sample(pipeline, PROMPTS, SETTINGS, tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def test_noise_has_the_channels_of_the_autoencoders_latents(pipeline):
    assert latent_shape(pipeline, 16) == (8, 8, 4)
    three = from_files(
        {
            **with_config(pipeline, "vae/config.json", latent_channels=3).files,
            "unet/config.json": with_config(pipeline, "unet/config.json", in_channels=3, out_channels=3).files[
                "unet/config.json"
            ],
        }
    )
    assert latent_shape(three, 16) == (8, 8, 3)


@pytest.mark.parametrize(
    ("name", "channels", "message"),
    [
        ("in_channels", 9, r"in_channels 9 \(inpainting\): .* give --image and --mask"),
        ("in_channels", 8, r"in_channels 8 \(editing\) is not supported"),
        ("out_channels", 8, "out_channels 8 is not supported"),
    ],
)
def test_a_unet_of_more_than_latents_is_refused_by_name(pipeline, tmp_path, name, channels, message):
    with pytest.raises(UserError, match=message):
        sample(with_config(pipeline, "unet/config.json", **{name: channels}), PROMPTS, SETTINGS, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("vae/config.json", {"scaling_factor": 0}, "> 0.0, at `scaling_factor`"),
        ("vae/config.json", {"scaling_factor": -1.0}, "scaling_factor"),
        ("vae/config.json", {"scaling_factor": float("nan")}, "config.json"),
        ("scheduler/scheduler_config.json", {"beta_start": float("nan")}, "config.json"),
        ("scheduler/scheduler_config.json", {"beta_end": 4.0}, "at `beta_end`"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.0] * 1000}, "at `trained_betas"),
    ],
)
def test_configs_that_make_every_picture_black_are_refused(pipeline, tmp_path, file, values, message):
    with pytest.raises(UserError, match=message):
        sample(with_config(pipeline, file, **values), PROMPTS, SETTINGS, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("factor", "message"), [(1e39, "is not finite"), (0, "has one gray level throughout")])
def test_a_broken_picture_fails_the_job(pipeline, tmp_path, factor, message):
    parameters = pipeline.parameters()
    parameters |= {name: factor * x for name, x in parameters.items() if name.startswith("vae.decoder.conv_out")}
    with pytest.raises(FloatingPointError, match=rf"prompt 1: its picture {message} \(2 of 2 in its batch\).*causes"):
        sample(pipeline.with_parameters(parameters), PROMPTS, SETTINGS, tmp_path / "out", batch_size=2)
    assert not (tmp_path / "out").exists()


def test_a_broken_picture_is_told_from_its_neighbours(pipeline, tmp_path):
    noise = np.random.default_rng(0).standard_normal((3, 4, 8, 8), np.float32)
    noise[1] = 3e38
    np.save(tmp_path / "noise.npy", noise)
    settings = dataclasses.replace(SETTINGS, latents=str(tmp_path / "noise.npy"))
    with pytest.raises(FloatingPointError, match=r"prompt 2: .*\(1 of 3 in its batch\); likely causes: .*--latents"):
        sample(pipeline, PROMPTS, settings, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _npy(header):
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.full((3, 4, 8, 8), np.nan, np.float32), "picture 1 of 3 has NaN or infinity"),
        (np.zeros((3, 4, 8, 8)), "is float64"),
        (np.zeros((3, 8, 8, 4), np.float32), r"is float32 \(3, 8, 8, 4\); float32 \(3, 4, 8, 8\) \(N×C×H×W\)"),
        (np.zeros((2, 4, 8, 8), np.float32), "is float32"),
        (np.array([{}] * 3), "is object"),
        (b"", "cannot be read as .npy"),
        (b"PK\x03\x04", "cannot be read as .npy"),
        (
            _npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4, 8, 8), }\n"),
            r"is float32 \(1000000000000, 4, 8, 8\)",
        ),
        (_npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4, 8, 8), }\n"), "cannot be read"),
        (_npy(b"{'descr': '|V0', 'fortran_order': False, 'shape': (3, 4, 8, 8), }\n"), r"is \|V0"),
    ],
)
def test_latents_that_cannot_be_are_refused(pipeline, tmp_path, latents, message):
    file = tmp_path / "noise.npy"
    if isinstance(latents, bytes):
        file.write_bytes(latents)
    else:
        np.save(file, latents, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        sample(pipeline, PROMPTS, dataclasses.replace(SETTINGS, latents=str(file)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["noise.npy"]


def test_latents_in_fortrans_order_are_the_same(pipeline, tmp_path):
    noise = np.random.default_rng(0).standard_normal((3, 4, 8, 8), np.float32)
    np.save(tmp_path / "c.npy", noise)
    np.save(tmp_path / "f.npy", np.asfortranarray(noise))
    for name in "cf":
        settings = dataclasses.replace(SETTINGS, latents=str(tmp_path / f"{name}.npy"))
        sample(pipeline, PROMPTS, settings, tmp_path / name)
    assert np.array_equal(pictures(tmp_path / "c"), pictures(tmp_path / "f"))


def test_a_prompt_that_is_not_text_is_refused(pipeline, tmp_path):
    with pytest.raises(UserError, match="not UTF-8"):
        sample(pipeline, [{"prompt": "caf\udce9"}], SETTINGS, tmp_path / "out")


def test_a_finished_folder_that_lost_a_picture_is_not_called_done(pipeline, tmp_path):
    sample(pipeline, PROMPTS, SETTINGS, tmp_path / "out", batch_size=2)
    drawn = dataclasses.replace(SETTINGS, size=default_size(pipeline))
    assert drawn.already_done(tmp_path / "out", PROMPTS)
    (tmp_path / "out" / "00001.png").write_bytes(b"")
    with pytest.raises(UserError, match="00001.png was drawn, but is missing or damaged"):
        drawn.already_done(tmp_path / "out", PROMPTS)


def test_a_begun_job_of_weights_that_were_replaced_is_another_one(pipeline, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxcxr.sample, "_require_pictures", lambda _, numbers, __: 1 / 0 if numbers != [0] else None)
    with pytest.raises(ZeroDivisionError):
        sample(pipeline, PROMPTS, SETTINGS, tmp_path / "out", batch_size=1)
    parameters = pipeline.parameters()
    name = next(name for name in parameters if name.startswith("unet."))
    one_more = pipeline.with_parameters(parameters | {name: parameters[name].at[(0,) * parameters[name].ndim].add(1)})
    with_other_steps = with_config(pipeline, "scheduler/scheduler_config.json", beta_end=0.013)
    for other in (one_more, with_other_steps.with_parameters(parameters)):
        with pytest.raises(UserError, match="was begun with other settings"):
            sample(other, PROMPTS, SETTINGS, tmp_path / "out", batch_size=1)
    with pytest.raises(ZeroDivisionError):  # the same weights resume it, wherever they are from
        sample(pipeline.with_parameters(parameters), PROMPTS, SETTINGS, tmp_path / "out", batch_size=1)


def test_rows_of_every_kind_are_drawn_in_one_job_and_their_labels_kept(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)).save("a.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 255
    Image.fromarray(mask).save("m.png")
    rows = [
        {"prompt": "a", "side": "left"},
        {"prompt": "b", "image": "a.png", "mask": "m.png"},
        {"compose": [{"prompt": "a"}, {"prompt": "b", "weight": 0.5}], "negative_prompt": "c"},
        {"prompt": "c", "count": 2, "seed": 8},
        {"prompt": "b", "image": "a.png", "strength": 0.5, "n": 3},
        {"prompt": "b", "image": "a.png", "edit_mask": "m.png"},
    ]
    settings = dataclasses.replace(SETTINGS, guidance=3.0, eta=0.0, size=16)
    sample(pipeline, rows, settings, tmp_path / "out", batch_size=2)
    found = manifest(tmp_path / "out")
    assert [row["file_name"] for row in found] == [f"{number:05}.png" for number in range(7)]
    assert (found[0]["side"], found[5]["n"], found[2]["compose"]) == ("left", 3, rows[2]["compose"])
    assert [row["seed"] for row in found] == [0, 0, 0, 8, 9, 0, 0]
    assert not any("count" in row for row in found)
    # A row with a seed is the first picture of a job with that seed.
    sample(pipeline, [{"prompt": "c"}], dataclasses.replace(settings, seed=9), tmp_path / "alone", batch_size=2)
    drawn = pictures(tmp_path / "out")
    np.testing.assert_allclose(drawn[4], pictures(tmp_path / "alone")[0], atol=1)
    # A manifest's rows are drawn anew, and changed images make it another job.
    again = list(Lines(tmp_path / "out" / "manifest.jsonl"))
    assert not any("seed" in row for row in again)
    sample(pipeline, again[:3], settings, tmp_path / "again", batch_size=2)
    np.testing.assert_allclose(pictures(tmp_path / "again"), drawn[:3], atol=1)


def test_a_begun_job_whose_image_changed_is_another_one(pipeline, tmp_path, monkeypatch):
    Image.new("L", (16, 16), 50).save(tmp_path / "a.png")
    rows = [{"prompt": "a", "image": str(tmp_path / "a.png")}] * 2
    monkeypatch.setattr(jaxcxr.sample, "_require_pictures", lambda _, numbers, __: 1 / 0 if numbers != [0] else None)
    with pytest.raises(ZeroDivisionError):
        sample(pipeline, rows, SETTINGS, tmp_path / "out", batch_size=1)
    Image.effect_noise((16, 16), 90).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="was begun with other settings"):
        sample(pipeline, rows, SETTINGS, tmp_path / "out", batch_size=1)


def test_prompts_that_are_cut_are_counted(pipeline, tmp_path, capsys):
    rows = [{"prompt": "a"}, {"prompt": "effusion " * 80}, {"prompt": "a", "negative_prompt": "x " * 80}]
    sample(pipeline, rows, dataclasses.replace(SETTINGS, guidance=3.0), tmp_path / "out")
    assert "2 of 3 prompts are longer than the text encoder takes, and are cut" in capsys.readouterr().out


def test_the_command_draws_compositions_and_strips(base, tmp_path, capsys):
    command = ["sample", "--checkpoint", str(base), "--steps", "2", "--sampler", "ddim"]
    assert main([*command, "--compose", "1", "a", "--compose", "-0.5", "b", "--out", str(tmp_path / "both")]) == 0
    parts = [{"weight": 1.0, "prompt": "a"}, {"weight": -0.5, "prompt": "b"}]
    assert manifest(tmp_path / "both")[0]["compose"] == parts
    strip = [*command, "--interpolate", "3", "--prompt", "a", "--prompt", "b", "--out", str(tmp_path / "strip")]
    assert main([*strip, "--seed", "5"]) == 0
    rows = manifest(tmp_path / "strip")
    assert [(row["interpolate"]["t"], row["seed"]) for row in rows] == [(0, 5), (0.5, 5), (1, 5)]
    assert Image.open(strip_of(tmp_path / "strip")).size == (48, 16)
    capsys.readouterr()
    assert main([*strip, "--seed", "5"]) == 0
    assert "already sampled, 3 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--prompt", "a", "--mask", "m.png"], ("prompt 1: has a `mask` but no `image`",)),
        (["--prompt", "a", "--strength", "0"], ("strength", "> 0")),
        (["--prompt", "a", "--keep-outside"], ("--keep-outside", "--image and --mask")),
        (["--prompt", "a", "--image", "gone.png"], ("image gone.png", "No such file")),
        (["--prompt", "a", "--interpolate", "3"], ("--interpolate 3", "two --prompt")),
        (["--prompt", "a", "--prompt", "b", "--interpolate", "1"], ("--interpolate 1", "2 images or more")),
        (["--compose", "x", "a"], ("--compose 'x'", "WEIGHT PROMPT")),
        (["--prompt", "a", "--count", "0"], ("count", ">= 1")),
        (["--prompt", "a", "--guidance", "1", "--negative-prompt", "b"], ("--guidance 1", "negative prompt")),
        (["--prompt", "a", "--guidance-rescale", "-1"], ("--guidance-rescale -1.0", "from 0 to 1")),
    ],
)
def test_editing_options_that_cannot_be_are_one_line(base, tmp_path, monkeypatch, capsys, options, parts):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "--checkpoint", str(base), *options, "--out", "out"]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert all(part in said for part in parts), said
    assert not list(tmp_path.iterdir())
