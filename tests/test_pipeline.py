"""Pictures from Python."""

import inspect
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import jaxcxr
from jaxcxr.__main__ import main
from jaxcxr.errors import UserError
from jaxcxr.generate import unconditional_states
from jaxcxr.interop.pipeline import from_files
from jaxcxr.manifest import Settings
from jaxcxr.pipeline import Pipeline
from jaxcxr.sample import sample
from tests import pipelines

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (16, 16), np.uint8)
MASK = np.zeros((16, 16), bool)
MASK[4:12, 4:12] = True
SHORT = {"steps": 2, "output_type": "np"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return pipelines.write(tmp_path_factory.mktemp("written") / "base")


@pytest.fixture(scope="module")
def pipe(folder):
    return jaxcxr.load(folder)


@pytest.fixture
def compiled(pipe):
    """How many programs have been compiled, of all options."""

    def count():
        drawers = [pipe._drawer(options) for options in list(_seen)]
        return sum(program._cache_size() for drawer in drawers for program in drawer._programs.values())

    _seen, drawer = set(), pipe._drawer

    def watch(options):
        _seen.add(options)
        return drawer(options)

    pipe._drawer = watch
    yield count
    pipe._drawer = drawer


def test_importing_the_package_does_not_import_jax():
    code = "import sys, jaxcxr; print(any(name.split('.')[0] in ('jax', 'flax', 'numpy') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_pictures_are_those_of_a_job(pipe, tmp_path):
    prompts = pipelines.REPORTS[:2]
    settings = Settings("base", steps=2, seed=3)
    sample(pipe.networks, [{"prompt": text} for text in prompts], settings, tmp_path / "out", batch_size=2)
    found = pipe(prompts, steps=2, seed=3)
    for number, picture in enumerate(found):
        assert picture.mode == "L"
        np.testing.assert_array_equal(picture, Image.open(tmp_path / "out" / f"{number:05}.png"))
    assert pipe(prompts[0], **SHORT).shape == (1, 16, 16, 1)


def test_a_shape_is_compiled_once(pipe, compiled):
    pipe(["a", "b"], **SHORT)
    before = compiled()
    pipe(["c", "d"], guidance=7.0, seed=9, **SHORT)
    assert compiled() == before
    pipe("c", negative_prompt="e", **SHORT)
    assert compiled() == before + 1


def test_the_last_batch_of_a_kind_is_filled_up_and_compiles_nothing(pipe, compiled):
    rows = ["a", "b", "c", {"prompt": "d", "negative_prompt": "e"}]
    before = compiled()
    found = pipe(rows, batch_size=2, steps=3, output_type="np")
    assert compiled() == before + 2  # a program of two prompts, one of a prompt and a negative one
    np.testing.assert_allclose(pipe(rows, batch_size=2, steps=3, output_type="np"), found)
    assert compiled() == before + 2
    assert len({picture.tobytes() for picture in found}) == 4


def test_the_states_of_the_empty_prompt_are_computed_once(folder, tmp_path, monkeypatch):
    computed = []

    def states(*inputs):  # is traced each time that it is asked for anew
        computed.append(1)
        return unconditional_states(*inputs)

    monkeypatch.setattr("jaxcxr.draw.unconditional_states", states)
    pipe = jaxcxr.load(folder)
    for guidance in (3.0, 4.0):
        pipe(["a", "b", "c"], guidance=guidance, batch_size=1, **SHORT)
    assert len(computed) == 1
    rows = [{"prompt": text} for text in ("a", "b", "c")]
    sample(pipe.networks, rows, Settings("base", steps=2), tmp_path / "out", batch_size=1)
    assert len(computed) == 2


def test_what_is_asked_for_changes_the_picture(pipe):
    plain = pipe("a", guidance=9.0, **SHORT)
    rows = {
        "negative": {"prompt": "a", "negative_prompt": "b"},
        "composed": {"compose": [{"prompt": "a", "weight": 0.5}, {"prompt": "b", "weight": 0.5}]},
        "between": {"prompt": "a", "interpolate": {"prompt": "b", "t": 0.5}},
        "seed": {"prompt": "a", "seed": 4},
    }
    mixed = pipe(["a", *rows.values()], guidance=9.0, **SHORT)
    # A level of gray for the rounding of another program.
    np.testing.assert_allclose(mixed[0], plain[0], atol=1 / 255)
    assert all(np.abs(picture - plain[0]).max() > 1e-3 for picture in mixed[1:])
    np.testing.assert_allclose(mixed[4], pipe("a", seed=4, guidance=9.0, **SHORT)[0], atol=1 / 255)


def test_the_ends_of_an_interpolation_are_its_prompts(pipe):
    first, last = "No acute process.", "Large left pleural effusion."
    ends = pipe([{"prompt": first, "interpolate": {"prompt": last, "t": t}, "seed": 1} for t in (0, 1)], **SHORT)
    alone = pipe([{"prompt": first, "seed": 1}, {"prompt": last, "seed": 1}], **SHORT)
    np.testing.assert_allclose(ends, alone, atol=1e-4)


def test_a_composition_of_one_is_its_prompt_and_of_opposites_is_nothing(pipe):
    one = [{"compose": [{"prompt": "a"}], "seed": 1}, {"prompt": "a", "seed": 1}]
    np.testing.assert_allclose(*pipe(one, **SHORT), atol=1e-5)
    opposed = {"compose": [{"prompt": "a"}, {"prompt": "a", "weight": -1}], "seed": 1}
    np.testing.assert_allclose(pipe(opposed, **SHORT), pipe({"prompt": "", "seed": 1}, **SHORT), atol=1e-3)


def test_pixels_outside_a_mask_may_be_the_images_own(pipe):
    found = pipe("a", image=IMAGE, mask=MASK, keep_outside=True, **SHORT)[0, ..., 0]
    np.testing.assert_array_equal(np.round(found * 255)[~MASK], IMAGE[~MASK])
    assert np.abs(found * 255 - IMAGE)[MASK].max() > 10
    edited = pipe("a", image=IMAGE, edit_mask=MASK, keep_outside=True, **SHORT)[0, ..., 0]
    np.testing.assert_array_equal(np.round(edited * 255)[~MASK], IMAGE[~MASK])


def test_an_edit_of_nothing_gives_the_autoencoders_picture_of_the_image(pipe):
    everything = np.ones((16, 16), bool)
    kept = pipe("a", image=IMAGE, edit_mask=MASK, keep_mask=everything, guidance=9.0, **SHORT)
    alike = pipe("", image=IMAGE, edit_mask=everything, guidance=9.0, **SHORT)
    np.testing.assert_allclose(kept, alike, atol=1e-3)
    assert np.abs(kept - pipe("a", image=IMAGE, edit_mask=everything, guidance=30.0, **SHORT)).max() > 2e-3


def test_images_of_any_shape_and_depth_are_taken_and_gray_comes_out(tmp_path_factory):
    base = pipelines.write(
        tmp_path_factory.mktemp("colour") / "base", vae=pipelines.VAE | {"in_channels": 3, "out_channels": 3}
    )
    pipe = jaxcxr.load(base)
    wide = np.kron(IMAGE[4:12], np.ones((2, 2), np.uint8))  # 16 × 32: a square with black above and below
    padded = np.asarray(Image.fromarray(wide).resize((16, 8), Image.Resampling.LANCZOS))
    square = np.pad(padded, ((4, 4), (0, 0)))
    deep = Image.fromarray(wide.astype(np.uint16) * 257)
    colour = np.repeat(square[..., None], 3, axis=-1)
    drawn = [pipe("a", image=image, strength=0.5, **SHORT) for image in (square, wide, deep, colour)]
    assert drawn[0].shape == (1, 16, 16, 1)
    for other in drawn[1:]:
        np.testing.assert_allclose(other, drawn[0], atol=1 / 255)
    assert pipe("a", image=square, strength=0.5, steps=2)[0].mode == "L"
    assert pipe("a", **SHORT).shape == (1, 16, 16, 3)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"prompt": []}, ("one prompt or more",)),
        ({"output_type": "pt"}, ("output_type 'pt'", "'pil' or 'np'")),
        ({"seed": -1}, ("seed -1", "4294967295")),
        ({"batch_size": 0}, ("batch_size 0",)),
        ({"sampler": "plms"}, ("plms", "ddim")),
        ({"sampler": "unipc", "eta": 0.5}, ("--eta 0.5", "ddim")),
        ({"steps": 0}, ("--steps 0",)),
        ({"guidance": float("inf")}, ("--guidance inf",)),
        ({"guidance_rescale": 2.0}, ("--guidance-rescale 2.0", "from 0 to 1")),
        ({"guidance": 1.0, "negative_prompt": "b"}, ("--guidance 1", "negative prompt")),
        ({"keep_outside": True}, ("--keep-outside", "--mask")),
        ({"mask": MASK}, ("`mask` but no `image`",)),
        ({"image": IMAGE, "mask": MASK[:8]}, ("mask is 16×8", "image 16×16")),
        ({"image": IMAGE, "mask": ~MASK & MASK}, ("mask", "black throughout")),
        ({"image": IMAGE.astype(float)}, ("image is float64", "uint8")),
        ({"image": IMAGE, "strength": 0.1}, ("--strength 0.1", "2 steps")),
        ({"image": IMAGE, "edit_mask": MASK, "sampler": "euler"}, ("--sampler euler", "ddim")),
        ({"latents": np.zeros((1, 8, 8, 4), np.float32)}, ("(1, 8, 8, 4)", "(1, 4, 8, 8)")),
        ({"latents": np.full((1, 4, 8, 8), np.nan, np.float32)}, ("NaN",)),
        ({"prompt": {"prompt": "a", "count": 2}}, ("count 2",)),
        ({"size": 15}, ("15", "multiple of 2")),
    ],
)
def test_arguments_that_cannot_be_are_told(pipe, arguments, parts):
    with pytest.raises(UserError) as error:
        pipe(arguments.pop("prompt", "a"), **{"steps": 2} | arguments)
    assert all(part in str(error.value) for part in parts), error.value


def test_a_checkpoint_must_have_text_to_guide_by(pipe):
    files = {name: data for name, data in pipe.networks.files.items() if not name.startswith("text_encoder")}
    with pytest.raises(UserError, match="no text_encoder, so there is no prompt to draw or guide by"):
        Pipeline(from_files(files))("a", steps=2)


def test_an_inpainting_unet_wants_an_image_and_a_mask(pipe):
    name = "unet/config.json"
    config = json.dumps(json.loads(pipe.networks.files[name]) | {"in_channels": 9}).encode()
    nine = Pipeline(from_files(pipe.networks.files | {name: config}))
    for arguments in ({}, {"image": IMAGE}, {"image": IMAGE, "edit_mask": MASK}):
        with pytest.raises(UserError, match=r"in_channels 9 \(inpainting\).* --image and --mask"):
            nine("a", steps=2, **arguments)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_platform_decides_the_dtype_where_nothing_else_does(folder, tmp_path, monkeypatch, dtype):
    for module in ("jaxcxr.pipeline", "jaxcxr.models.compute"):
        monkeypatch.setattr(f"{module}.usual_dtype", lambda platform: dtype)
    assert jaxcxr.load(folder).networks.unet.dtype == jnp.dtype(dtype)
    assert jaxcxr.load(folder, dtype="float32").networks.unet.dtype == jnp.float32
    argv = ["sample", "--checkpoint", str(folder), "--prompt", "a", "--steps", "1", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    assert json.loads((tmp_path / "out" / "manifest.jsonl").read_text())["dtype"] == dtype


def test_a_checkpoint_is_loaded_as_asked_for(folder):
    with pytest.raises(UserError, match="dtype 'float16': may be float32 or bfloat16"):
        jaxcxr.load(folder, dtype="float16")
    with pytest.raises(UserError, match="weights 'best': may be ema or raw"):
        jaxcxr.load(folder, weights="best")


def test_embeddings_draw_what_their_prompts_draw(pipe, folder, tmp_path):
    texts = pipelines.REPORTS[:2]
    first, last = pipe.encode(texts)
    np.testing.assert_allclose(pipe([{"prompt_embeds": first}], **SHORT), pipe(texts[0], **SHORT), atol=1e-5)
    between = {"interpolate": {"prompt": texts[1], "t": 0.25}}
    expected = pipe([{"prompt": texts[0], **between}], **SHORT)
    assert np.abs(expected - pipe(texts[0], **SHORT)).max() > 1e-3
    ends = {"interpolate": {"prompt_embeds": last, "t": 0.25}}
    np.testing.assert_allclose(pipe([{"prompt_embeds": first, **ends}], **SHORT), expected, atol=1e-5)
    np.testing.assert_allclose(pipe([{"prompt": texts[0], **ends}], **SHORT), expected, atol=1e-5)
    np.save(tmp_path / "a.npy", first[None])  # with an axis for the batch, as diffusers has it
    save_file({"states": last}, tmp_path / "b.safetensors")
    files = ["--prompt-embeds", str(tmp_path / "a.npy"), "--prompt-embeds", str(tmp_path / "b.safetensors")]
    words = ["sample", "--checkpoint", str(folder), *files, "--interpolate", "5", "--steps", "2"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    rows = [{"prompt_embeds": first, "interpolate": {"prompt_embeds": last, "t": t / 4}, "seed": 0} for t in range(5)]
    for number, picture in enumerate(pipe(rows, steps=2)):
        drawn = np.asarray(Image.open(tmp_path / "out" / f"{number:05}.png"), int)
        assert np.abs(drawn - np.asarray(picture)).max() <= 1
    assert Image.open(tmp_path / "out.strip.png").size == (80, 16)
    again = json.loads((tmp_path / "out" / "metadata.jsonl").read_text().splitlines()[0])
    assert again == {"file_name": "00000.png", "text": "", "synthetic": True}


@pytest.mark.parametrize(
    ("embeds", "parts"),
    [
        (np.zeros((77, 16), np.float32), ("prompt_embeds", "(77, 16)", "(77, 32) (L×D)")),
        (np.zeros((2, 77, 32), np.float32), ("prompt_embeds", "(2, 77, 32)")),
        (np.zeros((77, 32)), ("prompt_embeds", "float64")),
        (np.full((77, 32), np.nan, np.float32), ("prompt_embeds", "NaN")),
        (b"no array", ("prompt_embeds", "cannot be read")),
        (None, ("prompt_embeds", "cannot be read")),
    ],
)
@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_embeddings_that_do_not_fit_are_one_line(pipe, folder, tmp_path, capsys, embeds, parts, suffix):
    file = tmp_path / f"e.{suffix}"
    if isinstance(embeds, bytes):
        file.write_bytes(embeds)
    elif embeds is not None and suffix == "npy":
        np.save(file, embeds)
    elif embeds is not None:
        save_file({"states": embeds}, file)
    given = [str(file), file, *([embeds] if isinstance(embeds, np.ndarray) else [])]
    for each in given:
        with pytest.raises(UserError) as error:
            pipe([{"prompt_embeds": each}], **SHORT)
        assert all(part in str(error.value) for part in parts), error.value
    words = ["sample", "--checkpoint", str(folder), "--prompt-embeds", str(file), "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert all(part in said for part in parts), said
    assert {path.name for path in tmp_path.iterdir()} <= {file.name}


def test_the_top_level_takes_what_the_module_takes():
    ours, whole = (
        [(name, taken.kind, taken.default) for name, taken in inspect.signature(load).parameters.items()]
        for load in (jaxcxr.load, jaxcxr.pipeline.load)
    )
    assert ours == whole
