"""Files of embeddings, against those that diffusers and PyTorch write and read, and checkpoints that have them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcxr import interop
from jaxcxr.__main__ import main
from jaxcxr.data import tokens
from jaxcxr.errors import UserError
from jaxcxr.interop import embeddings
from jaxcxr.interop.checkpoint import Checkpoint
from jaxcxr.interop.config_files import network_config
from jaxcxr.interop.tensors import Tensor
from tests import pipelines
from tests.end_to_end.test_diffusers_parity import worst_pixel

VECTORS = np.random.default_rng(0).standard_normal((3, 32), np.float32)
PROMPT = "Radiograph with <effusion>."


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pipelines.write(tmp_path_factory.mktemp("embeddings") / "base")


@pytest.fixture(scope="module")
def with_word(base):
    return embeddings.with_embeddings(interop.read(base), {"<effusion>": VECTORS, "<one>": VECTORS[:1]})


def loaded(folder, *files, **options):
    """diffusers' pipeline with embeddings from files."""
    diffusers = pytest.importorskip("diffusers")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    for file in files:
        pipeline.load_textual_inversion(str(file), **options)
    return pipeline


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_diffusers_loads_what_is_written(base, tmp_path, suffix):
    file = tmp_path / f"effusion{suffix}"
    embeddings.write(file, "<effusion>", VECTORS, step=7)
    theirs = loaded(base, file)
    names = ["<effusion>", "<effusion>_1", "<effusion>_2"]
    ids = theirs.tokenizer.convert_tokens_to_ids(names)
    np.testing.assert_array_equal(theirs.text_encoder.get_input_embeddings().weight.detach().numpy()[ids], VECTORS)
    ours = embeddings.with_embeddings(interop.read(base), {"<effusion>": VECTORS})
    tokenizer = interop.load_read(ours.only(("text_encoder",))).tokenizer
    converted = theirs.maybe_convert_prompt([PROMPT], theirs.tokenizer)
    wanted = theirs.tokenizer(converted, padding="max_length", truncation=True, max_length=77)["input_ids"]
    np.testing.assert_array_equal(tokens.encode(tokenizer, [PROMPT], 77), wanted)


def test_automatic1111s_file_is_as_torch_reads_it(tmp_path):
    torch = pytest.importorskip("torch")
    embeddings.write(tmp_path / "a.pt", "<effusion>", VECTORS, step=7)
    found = torch.load(tmp_path / "a.pt", weights_only=True)
    np.testing.assert_array_equal(found.pop("string_to_param")["*"].numpy(), VECTORS)
    wanted = {"name": "<effusion>", "step": 7, "sd_checkpoint": None, "sd_checkpoint_name": None}
    assert found == {"string_to_token": {"*": 265}, **wanted}
    embeddings.write(tmp_path / "b.pt", "<effusion>", VECTORS, step=7)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()


def written_by_torch(torch, kind, folder) -> Path:
    """The vectors in a file of a layout, written by the library that writes such files."""
    from safetensors.torch import save_file

    tensor, file = torch.from_numpy(VECTORS), folder / "effusion.pt"
    if kind == "diffusers":
        save_file({"<effusion>": tensor}, file := folder / "learned_embeds.safetensors")
    elif kind == "diffusers, one vector, bin":
        torch.save({"<effusion>": tensor[0]}, file := folder / "learned_embeds.bin")
    elif kind == "kohya":
        save_file({"emb_params": tensor.half()}, file := folder / "effusion.safetensors")
    elif kind == "kohya, pickled":
        torch.save({"emb_params": torch.nn.Parameter(tensor)}, file)
    elif kind == "AUTOMATIC1111":
        content = {"string_to_token": {"*": 265}, "string_to_param": {"*": tensor}, "name": "effusion-50000"}
        torch.save(content | {"step": 49999, "sd_checkpoint": "09dd2ae4", "sd_checkpoint_name": "base"}, file)
    elif kind == "AUTOMATIC1111, before PyTorch 1.6":
        content = {"string_to_token": {"*": 265}, "string_to_param": {"*": tensor}, "name": "x", "step": 1}
        torch.save(content, file, _use_new_zipfile_serialization=False)
    else:
        parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(tensor)})
        torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}, file)
    return file


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("diffusers", "<effusion>"),
        ("diffusers, one vector, bin", "<effusion>"),
        ("kohya", "effusion"),
        ("kohya, pickled", "effusion"),
        ("AUTOMATIC1111", "effusion"),
        ("AUTOMATIC1111, before PyTorch 1.6", "effusion"),
        ("Gal et al.", "effusion"),
    ],
)
def test_every_layout_is_read(tmp_path, kind, word):
    file = written_by_torch(pytest.importorskip("torch"), kind, tmp_path)
    assert embeddings.is_embedding(file)
    wanted = VECTORS[:1] if "one vector" in kind else VECTORS
    for given in ("", "<other>"):
        ((name, found),) = embeddings.read(file, given).items()
        assert name == (given or word)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted.astype(np.float16) if kind == "kohya" else wanted)


def test_several_words_in_one_file(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"<a>": VECTORS, "<b>": VECTORS[0]}, tmp_path / "two.safetensors")
    found = embeddings.read(tmp_path / "two.safetensors")
    assert {word: len(rows) for word, rows in found.items()} == {"<a>": 3, "<b>": 1}
    with pytest.raises(UserError, match=r"two\.safetensors: is of several words, <a>, <b>"):
        embeddings.read(tmp_path / "two.safetensors", "<c>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"unet.conv_in.weight": np.ones((2, 2, 3, 3), np.float32)}, "is no textual-inversion embedding: it has"),
        ({"lora_unet_x.alpha": np.ones(1, np.float32)}, "is no textual-inversion embedding: it has"),
        ({"a.b": VECTORS, "a.c": VECTORS}, "is no textual-inversion embedding: it has"),
        ({"<a>": np.ones((2, 4), np.int32)}, "is no textual-inversion embedding: it has"),
        ({"<a>": np.ones((0, 4), np.float32)}, "is no textual-inversion embedding: it has"),
        ({"clip_l": VECTORS, "clip_g": VECTORS}, "is an embedding of Stable Diffusion XL"),
        ({}, "is no textual-inversion embedding: it has no tensor"),
    ],
)
def test_what_is_no_embedding_is_told(tmp_path, content, message):
    pytest.importorskip("safetensors.numpy").save_file(content, file := tmp_path / "x.safetensors")
    assert not embeddings.is_embedding(file)
    with pytest.raises(UserError, match=f"x.safetensors: {message}"):
        embeddings.read(file)


def test_damaged_and_hostile_files_are_told(tmp_path):
    (tmp_path / "x.pt").write_bytes(b"\x80\x02cos\nsystem\n(S'touch /tmp/x'\ntR.")
    (tmp_path / "y.pt").write_bytes(b"no pickle")
    pytest.importorskip("safetensors.numpy").save_file({"<a>": VECTORS * np.nan}, tmp_path / "nan.safetensors")
    for name in ("x.pt", "y.pt", "nan.safetensors", "absent.pt"):
        with pytest.raises(UserError, match=name):
            embeddings.read(tmp_path / name)


def test_what_does_not_fit_a_checkpoint_is_told(base):
    checkpoint = interop.read(base)
    with pytest.raises(UserError, match=r"'<a>': has vectors of 8, the text encoder's have 32"):
        embeddings.with_embeddings(checkpoint, {"<a>": np.ones((2, 8), np.float32)})
    with pytest.raises(UserError, match=r"has 'effusion</w>' already"):
        embeddings.with_embeddings(checkpoint, {"effusion</w>": VECTORS})
    once = embeddings.with_embeddings(checkpoint, {"<a>": VECTORS})
    with pytest.raises(UserError, match=r"has '<a>' already"):
        embeddings.with_embeddings(once, {"<a>": VECTORS})
    with pytest.raises(UserError, match=r"has '<a>_1' already"):
        embeddings.with_embeddings(once, {"<a>_1": VECTORS[:1]})
    with pytest.raises(UserError, match="wants a text encoder"):
        embeddings.with_embeddings(checkpoint.only(("unet",)), {"<a>": VECTORS})


def test_words_are_added_and_found_again(base, with_word, tmp_path):
    table = embeddings.TABLES[0]
    before = interop.read(base).tensors[table].read()
    after = with_word.tensors[table]
    assert after.shape == (len(before) + 4, 32)
    np.testing.assert_array_equal(after.read()[:-4], before)
    again = embeddings.with_embeddings(with_word, {"<two>": VECTORS[1:]})
    found = embeddings.of(again)
    assert list(found) == ["<effusion>", "<one>", "<two>"]
    for word, rows in (("<effusion>", VECTORS), ("<one>", VECTORS[:1]), ("<two>", VECTORS[1:])):
        np.testing.assert_array_equal(found[word], rows)
    interop.orbax.write(again, tmp_path / "orbax")
    assert list(embeddings.of(interop.read(tmp_path / "orbax"))) == ["<effusion>", "<one>", "<two>"]


def test_a_table_with_rows_to_spare_loses_them(base):
    checkpoint = interop.read(base)
    table, files = embeddings.TABLES[0], embeddings.with_rows(checkpoint.files, 640)
    spare = np.concatenate([checkpoint.tensors[table].read(), np.ones((640 - 595, 32), np.float32)])
    found = embeddings.with_embeddings(
        Checkpoint(files, checkpoint.tensors | {table: Tensor.of(spare)}), {"<a>": VECTORS}
    )
    np.testing.assert_array_equal(found.tensors[table].read(), np.concatenate([spare[:595], VECTORS]))


def test_pictures_are_those_of_diffusers(base, with_word, tmp_path):
    """From the folder with the word in it, and from the base to which diffusers itself adds it."""
    torch = pytest.importorskip("torch")
    interop.diffusers.write(with_word, folder := tmp_path / "exported")
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)
    np.save(tmp_path / "latents.npy", latents)
    argv = ["sample", "--checkpoint", str(folder), "--prompt", PROMPT, "--steps", "10", "--guidance", "4"]
    assert main([*argv, "--latents", str(tmp_path / "latents.npy"), "--out", str(tmp_path / "samples")]) == 0
    ours = np.asarray(Image.open(tmp_path / "samples" / "00000.png"))
    for word, rows in embeddings.of(with_word).items():
        embeddings.write(tmp_path / f"{word}.safetensors", word, rows)

    def draw(pipeline, prompt=PROMPT):
        import diffusers

        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
        options = {"num_inference_steps": 10, "guidance_scale": 4.0, "height": 16, "width": 16}
        return np.asarray(pipeline(prompt, latents=torch.from_numpy(latents), **options).images[0])

    theirs = draw(loaded(folder))
    assert worst_pixel(ours, theirs) <= 2
    added = loaded(base, tmp_path / "<effusion>.safetensors", tmp_path / "<one>.safetensors")
    assert worst_pixel(theirs, draw(added)) == 0
    assert worst_pixel(theirs, draw(loaded(folder), "Radiograph with <one>.")) > 2, "the word makes no difference"


def test_convert_writes_words(with_word, base, tmp_path, capsys):
    interop.diffusers.write(with_word, folder := tmp_path / "exported")

    def convert(destination, *more):
        return main(["convert", str(folder), str(tmp_path / destination), "--to", "embedding", *more])

    assert convert("words") == 0
    assert "<effusion>, 3 vectors of 32, float32" in capsys.readouterr().out
    for name, rows in (("effusion", VECTORS), ("one", VECTORS[:1])):
        ((word, found),) = embeddings.read(tmp_path / "words" / f"{name}.safetensors").items()
        assert word == f"<{name}>"
        np.testing.assert_array_equal(found, rows)
    assert convert("half", "--dtype", "float16") == 0
    np.testing.assert_array_equal(
        embeddings.read(tmp_path / "half" / "effusion.safetensors")["<effusion>"], VECTORS.astype(np.float16)
    )
    for arguments, message in (
        (("one.pt",), "there are 2 words, <effusion>, <one>; name a folder"),
        (("words",), "words: exists already"),
        (("x.pt", "--dtype", "float16"), "--dtype float16: a .pt file of vectors is float32"),
        (("x", "--verify"), "--verify: is not for --to embedding"),
    ):
        assert convert(*arguments) == 2
        assert message in capsys.readouterr().err
    assert main(["convert", str(base), str(tmp_path / "none"), "--to", "embedding"]) == 2
    assert "has no word that was added to its tokenizer" in capsys.readouterr().err
    assert main(["convert", str(folder), str(tmp_path / "x.safetensors"), "--to", "single-file"]) == 2
    assert "a single file has no tokenizer, and '<effusion>' would be lost" in capsys.readouterr().err


def test_published_embeddings_fit_stable_diffusion_2(tmp_path):
    """Those of "Medical diffusion on a budget", 64 vectors of 1,024 each."""
    folder = Path(__file__).parents[3] / "shared" / "data" / "embeddings"
    files = sorted(folder.glob("*.pt"))
    if not files:
        pytest.skip(f"no {folder}: published embeddings are not part of this project")
    size = tokens.train(pipelines.REPORTS * 3, 600, tmp_path / "tokenizer")
    described = {"vocab_size": size, "hidden_size": 1024, "num_hidden_layers": 1, "num_attention_heads": 16}
    here = {f"tokenizer/{file.name}": file.read_bytes() for file in (tmp_path / "tokenizer").iterdir()}
    here["text_encoder/config.json"] = network_config("text_encoder", described | {"intermediate_size": 64})
    table = embeddings.TABLES[0]
    checkpoint = Checkpoint(here, {table: Tensor.of(np.zeros((size, 1024), np.float32))})
    for file in files:
        assert embeddings.is_embedding(file)
        ((word, rows),) = embeddings.read(file).items()
        assert word == file.stem
        assert rows.shape == (64, 1024)
        assert 25 < np.linalg.norm(rows, axis=1).mean() < 60
        checkpoint = embeddings.with_embeddings(checkpoint, {word: rows})
    found = embeddings.of(checkpoint)
    assert [len(rows) for rows in found.values()] == [64] * len(files)
    tokenizer = embeddings.tokenizer_of(checkpoint.files, "")
    assert tokens.count(tokenizer, f"{files[0].stem} {files[1].stem}") == 130
