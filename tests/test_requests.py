import numpy as np
import pytest
from PIL import Image

from jaxcxr.errors import UserError
from jaxcxr.requests import check_files, conditions, parse
from jaxcxr.rows import Rows


def asked(**fields):
    return parse({"prompt": "a", **fields} if "compose" not in fields else fields, "p.jsonl: line 3")


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({}, ("no `prompt`",)),
        ({"prompt": "a", "compose": [{"prompt": "b"}]}, ("both `prompt` and `compose`",)),
        ({"compose": []}, ("compose", ">= 1")),
        ({"compose": [{"prompt": "b", "weight": 1000}]}, ("weight", "100")),
        ({"compose": "b"}, ("compose",)),
        ({"compose": [{"prompt": "b"}], "interpolate": {"prompt": "c", "t": 0.5}}, ("both `interpolate`",)),
        ({"prompt": "a", "interpolate": {"prompt": "b", "t": 1.5}}, ("interpolate.t", "1")),
        ({"prompt": "a", "prompt_embeds": "a.npy"}, ("both `prompt` and `prompt_embeds`",)),
        ({"prompt_embeds": 3}, ("prompt_embeds 3",)),
        ({"prompt": "a", "interpolate": {"t": 0.5}}, ("interpolate: has no `prompt`",)),
        ({"prompt": "a", "interpolate": {"prompt": "b", "prompt_embeds": "b.npy", "t": 1}}, ("interpolate: has both",)),
        ({"prompt": "a", "seed": -1}, ("seed", "0")),
        ({"prompt": "a", "seed": 2**32}, ("seed", "4294967295")),
        ({"prompt": "a", "count": 0}, ("count", "1")),
        ({"prompt": "a", "image": 3}, ("image 3",)),
        ({"prompt": "a", "image": "x.png", "strength": 0}, ("strength", "0")),
        ({"prompt": "a", "image": "x.png", "strength": 1.5}, ("strength", "1.0")),
        ({"prompt": "a", "strength": 0.5}, ("`strength` but no `image`", "--image")),
        ({"prompt": "a", "mask": "m.png"}, ("`mask` but no `image`", "--image")),
        ({"prompt": "a", "edit_mask": "m.png"}, ("`edit_mask` but no `image`",)),
        ({"prompt": "a", "image": "x.png", "keep_mask": "m.png"}, ("`keep_mask`", "`edit_mask`")),
        ({"prompt": "a", "image": "x.png", "mask": "m.png", "edit_mask": "m.png"}, ("both `mask` and `edit_mask`",)),
        ({"prompt": "a", "negative_prompt": "caf\udce9"}, ("not UTF-8",)),
    ],
)
def test_rows_that_cannot_be_are_one_line_with_the_place(row, parts):
    with pytest.raises(UserError) as error:
        parse(row, "p.jsonl: line 3")
    assert str(error.value).startswith("p.jsonl: line 3: ")
    assert all(part in str(error.value) for part in parts), error.value


def test_labels_and_nulls_are_left_aside():
    assert asked(effusion="left", mask=None, seed=None, age=7) == asked()


def test_a_row_of_several_pictures_becomes_as_many_with_following_seeds():
    rows = [
        {"prompt": "a", "count": 2, "label": 1, "mask": None},
        {"prompt": "b", "count": 2, "seed": 2**32 - 1},
        {"prompt": "c"},
    ]
    pairs = list(Rows(rows))
    assert [request for _, request in pairs] == [parse(row, "here") for row, _ in pairs]
    assert [row for row, _ in pairs] == [
        {"prompt": "a", "label": 1},
        {"prompt": "a", "label": 1},
        {"prompt": "b", "seed": 2**32 - 1},
        {"prompt": "b", "seed": 0},
        {"prompt": "c"},
    ]
    assert [Rows(rows)[number] for number in range(5)] == pairs
    with pytest.raises(UserError, match="prompt 2: .*count"):
        Rows([{"prompt": "a"}, {"prompt": "b", "count": "x"}])


def test_guidance_of_one_is_the_prompt_alone():
    found = conditions(asked(), 1.0)
    assert (found.texts, found.weights.tolist(), found.shares_first, found.mix) == (["a"], [1.0], False, None)
    found = conditions(asked(), 4.0)
    assert (found.texts, found.weights.tolist(), found.shares_first) == (["a"], [-3.0, 4.0], True)


def test_a_negative_prompt_takes_the_place_of_the_empty_one():
    found = conditions(asked(negative_prompt="n"), 4.0)
    assert (found.texts, found.weights.tolist(), found.shares_first) == (["n", "a"], [-3.0, 4.0], False)
    assert conditions(asked(negative_prompt=""), 4.0).shares_first
    with pytest.raises(UserError, match="--guidance 1: a negative prompt wants more than 1"):
        conditions(asked(negative_prompt="n"), 1.0)


def test_a_composition_is_led_by_each_of_its_prompts_at_any_guidance():
    parts = [{"prompt": "b", "weight": 0.5}, {"prompt": "AND", "weight": -0.25}, {"prompt": "c"}]
    found = conditions(asked(compose=parts), 2.0)
    assert found.texts == ["b", "AND", "c"]
    np.testing.assert_allclose(found.weights, [1 - 2.5, 1.0, -0.5, 2.0])
    assert conditions(asked(compose=parts), 1.0).shares_first


def test_an_interpolation_is_of_text_states():
    found = conditions(asked(interpolate={"prompt": "b", "t": 0.25}), 1.0)
    assert found.texts == ["a", "b"]
    assert found.mix.tolist() == [[0.75, 0.25]]
    found = conditions(asked(interpolate={"prompt": "b", "t": 0.25}, negative_prompt="n"), 3.0)
    assert found.texts == ["n", "a", "b"]
    assert found.mix.tolist() == [[1, 0, 0], [0, 0.75, 0.25]]
    assert found.weights.tolist() == [-2, 3]


def test_embeddings_stand_for_a_prompt_and_may_be_gone_between():
    given, other = np.zeros((3, 2), np.float32), "b.npy"
    found = conditions(parse({"prompt_embeds": given}, "here"), 4.0)
    assert (found.texts, found.embeds, found.mix.tolist(), found.shares_first) == ([], [given], [[1]], True)
    row = {"prompt_embeds": given, "interpolate": {"prompt_embeds": other, "t": 0.25}}
    found = conditions(parse(row, "here"), 4.0)
    assert (found.texts, found.embeds, found.mix.tolist()) == ([], [given, other], [[0.75, 0.25]])
    row |= {"negative_prompt": "n", "interpolate": {"prompt": "p", "t": 0.25}}
    found = conditions(parse(row, "here"), 4.0)
    assert (found.texts, found.embeds, found.mix.tolist()) == (["n", "p"], [given], [[1, 0, 0], [0, 0.25, 0.75]])
    found = conditions(asked(interpolate={"prompt_embeds": other, "t": 0.25}), 4.0)
    assert (found.texts, found.embeds, found.mix.tolist()) == (["a"], [other], [[0.75, 0.25]])
    assert parse({"prompt_embeds": other}, "here").files() == [other]


def test_a_rescale_wants_a_guided_prediction_to_compare_with():
    with pytest.raises(UserError, match="--guidance-rescale 0.5: wants --guidance"):
        conditions(asked(), 1.0, 0.5)
    opposed = [{"prompt": "b"}, {"prompt": "c", "weight": -1}]
    with pytest.raises(UserError, match="--guidance-rescale 0.5: wants weights"):
        conditions(asked(compose=opposed), 4.0, 0.5)


@pytest.mark.parametrize(
    ("fields", "begin"),
    [
        ({}, 0),
        ({"image": "x.png"}, 10),
        ({"image": "x.png", "strength": 1.0}, 0),
        ({"image": "x.png", "strength": 0.58}, 22),  # 50 · 0.58 is 28.999…, as in diffusers
        ({"image": "x.png", "mask": "m.png"}, 0),
        ({"image": "x.png", "edit_mask": "m.png"}, 25),
    ],
)
def test_a_strength_is_a_share_of_the_steps(fields, begin):
    assert asked(**fields).begin(50) == begin


def test_a_strength_that_leaves_no_step_is_refused():
    with pytest.raises(UserError, match="--strength 0.01: leaves none of 50 steps; give 0.02 or more"):
        asked(image="x.png", strength=0.01).begin(50)


def test_files_are_looked_at_before_anything_is_drawn(tmp_path):
    Image.new("L", (20, 30)).save(tmp_path / "image.png")
    Image.new("L", (30, 20)).save(tmp_path / "lying.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("L", (30, 20)).save(tmp_path / "turned.jpg", exif=turned)
    (tmp_path / "text.png").write_bytes(b"no picture")
    image = str(tmp_path / "image.png")
    check_files(asked(image=image, mask=str(tmp_path / "turned.jpg")), "prompt 1")
    for fields, message in (
        ({"image": str(tmp_path / "absent.png")}, "prompt 1: image .*absent.png: cannot be read .*No such file"),
        ({"image": str(tmp_path / "text.png")}, "prompt 1: image .*text.png: cannot be read"),
        ({"image": str(tmp_path)}, "prompt 1: image .*cannot be read"),
        ({"image": "a\0b"}, "prompt 1: image .*cannot be read"),
        ({"image": image, "mask": str(tmp_path / "lying.png")}, "prompt 1: mask is 30×20, its image 20×30"),
    ):
        with pytest.raises(UserError, match=message):
            check_files(asked(**fields), "prompt 1")
