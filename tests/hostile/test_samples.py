"""Prompts files, latents and the manifests of sample folders."""

import io
import itertools
import json

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from jaxcxr.evaluation.pictures import read_pictures
from jaxcxr.evaluation.sets import open_set
from jaxcxr.manifest import Settings
from jaxcxr.phantoms.generator import KINDS
from jaxcxr.requests import check_files, conditions, read_embeds
from jaxcxr.rows import Lines, Rows
from jaxcxr.sample import _read_latents
from tests.hostile.mutations import byte_variants, json_variants, one_line_or_fine

ASKED = {"asked": [{"kind": "nodule", "side": "right", "zone": "mid", "mm": 12}], "denied": ["edema"]}
PROMPTS = [{"prompt": "Small left pleural effusion.", "effusion": "left"}, {"prompt": "A nodule, no edema.", **ASKED}]
RICH = [
    {"compose": [{"prompt": "a", "weight": 0.5}, {"prompt": "b"}], "negative_prompt": "c", "seed": 3, "count": 2},
    {"prompt": "a", "interpolate": {"prompt": "b", "t": 0.5}, "image": "x.png", "mask": "y.png", "strength": 0.5},
    {"prompt": "a", "image": "x.png", "edit_mask": "y.png", "keep_mask": "z.png"},
]
SETTINGS = Settings("base", size=16)
ROWS = [SETTINGS.row(index, prompt) for index, prompt in enumerate(PROMPTS)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def latents():
    file = io.BytesIO()
    np.save(file, np.random.default_rng(0).standard_normal((2, 4, 2, 2), np.float32))
    return file.getvalue()


def read_prompts_of(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    found = one_line_or_fine(lambda: Rows(Lines(tmp_path / name)))
    if isinstance(found, Rows):
        assert len(found) > 0
        asked = [request for _, request in itertools.islice(found, 100)]
        assert all(one.texts() and conditions(one, 4.0).weights.size for one in asked)
        for one in asked[:3]:
            one_line_or_fine(check_files, one, "prompt")


@given(data=byte_variants("\ufeffNo acute process.\r\nSmall left\u2028effusion.\n".encode()))
def test_mutated_prompts_in_a_text_file(tmp_path, data):
    read_prompts_of(tmp_path, "p.txt", data)


@given(rows=json_variants(PROMPTS))
def test_mutated_prompts_in_json_lines(tmp_path, rows):
    read_prompts_of(tmp_path, "p.jsonl", lines(rows if isinstance(rows, list) else [rows]))


@given(rows=json_variants(RICH))
def test_mutated_conditions_and_files_in_json_lines(tmp_path, rows):
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "x.png")
    read_prompts_of(tmp_path, "p.jsonl", lines(rows if isinstance(rows, list) else [rows]))


@given(data=byte_variants(lines(PROMPTS)))
def test_mutated_bytes_of_json_lines(tmp_path, data):
    read_prompts_of(tmp_path, "p.jsonl", data)


def read_generated(folder):
    return read_pictures(open_set(folder), 16)


def read_manifest(tmp_path, data):
    (tmp_path / "manifest.jsonl").write_bytes(data)
    if not (tmp_path / "00001.png").exists():
        for row in ROWS:
            Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / row["file_name"])
    done = one_line_or_fine(SETTINGS.already_done, tmp_path, PROMPTS)
    assert done is True or isinstance(done, Exception)
    found = one_line_or_fine(read_generated, tmp_path)
    if isinstance(found, list):
        assert all(picture.asked is None or picture.asked.kinds <= set(KINDS) for picture in found)


@given(rows=json_variants(ROWS))
@example(rows=[ROWS[0] | {"checkpoint_step": "a\nb"}, ROWS[1]])
def test_mutated_manifests(tmp_path, rows):
    read_manifest(tmp_path, lines(rows if isinstance(rows, list) else [rows]))


@given(data=byte_variants(lines(ROWS)))
def test_mutated_bytes_of_manifests(tmp_path, data):
    read_manifest(tmp_path, data)


def read_latents_of(tmp_path, data):
    (tmp_path / "noise.npy").write_bytes(data)
    found = one_line_or_fine(_read_latents, tmp_path / "noise.npy", 2, (2, 2, 4))
    if isinstance(found, np.ndarray):
        assert found.shape == (2, 2, 2, 4)
        assert np.isfinite(found).all()


@given(data=byte_variants(latents()))
def test_mutated_latents(tmp_path, data):
    read_latents_of(tmp_path, data)


@given(
    descr=st.sampled_from(["<f4", ">f4", "<f8", "|O", "<U9", "<U0", "|V0", "", "x" * 99, "[('a', '<f4')]", "f4,f4"]),
    order=st.sampled_from(["True", "False", "3", "None"]),
    shape=st.one_of(
        st.lists(st.one_of(st.integers(-2, 4), st.integers(-(2**70), 2**70)), max_size=40).map(tuple).map(repr),
        st.sampled_from(["(2, 4, 2, 2)", "(((", "'a'", "(2.0,)", "(True,)", "9**9**9", "(" * 500, "{}", "-1"]),
    ),
    version=st.sampled_from([1, 2, 3, 9]),
)
@example(descr="|V0", order="False", shape="(2, 4, 2, 2)", version=1)
def test_mutated_headers_of_latents(tmp_path, descr, order, shape, version):
    header = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    length = len(header).to_bytes(2 if version == 1 else 4, "little")
    read_latents_of(tmp_path, b"\x93NUMPY" + bytes((version, 0)) + length + header + latents()[-128:])


def embeds():
    file = io.BytesIO()
    np.save(file, np.random.default_rng(0).standard_normal((3, 2), np.float32))
    return file.getvalue()


@given(data=byte_variants(embeds()))
def test_mutated_embeddings(tmp_path, data):
    (tmp_path / "embeds.npy").write_bytes(data)
    found = one_line_or_fine(read_embeds, str(tmp_path / "embeds.npy"), (3, 2))
    if isinstance(found, np.ndarray):
        assert found.shape == (3, 2)
        assert np.isfinite(found).all()
