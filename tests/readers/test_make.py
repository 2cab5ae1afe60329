import io
import itertools
import os
import shutil
import stat
import struct
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcxr.__main__ import main
from jaxcxr.errors import UserError
from jaxcxr.evaluation.sets import open_set
from jaxcxr.phantoms.truth import kind_of
from jaxcxr.readers import make
from jaxcxr.readers.make import JPEG, check_places, jpeg_quality
from tests.readers.studies import SIZE, make_study, pixels, study_data, write_images


def _files(place):
    return {str(file.relative_to(place)): file.read_bytes() for file in sorted(place.rglob("*")) if file.is_file()}


def _chunks(png):
    at, found = 8, []
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        found.append(png[at + 4 : at + 8])
        at += 12 + length
    return found


def test_no_file_of_the_folder_tells_the_class(tmp_path):
    more = {"patient": lambda number: f"PLANTED-patient-{number}", "view": lambda number: "PLANTED-AP"}
    write_images(tmp_path / "hospital", **more)
    place, key = make_study(tmp_path, tasks=("real", "realism", "finding"), repeats=2)
    known = [
        b"PLANTED",
        b"hospital",
        b"model",
        str(tmp_path).encode(),
        *(name.encode() for name in os.listdir(tmp_path)),
    ]
    known = [word for word in known if word != b"study"]
    for name, data in _files(place).items():
        assert not [word for word in known if word in data or word in name.encode()], name
    assert {item.expected for item in key.items.values()} == {"real", "synthetic", "", "present", "absent"}
    shown = study_data(place)
    assert set(shown) == {"study", "title", "size", "confidence", "tasks", "items", "orders", "files"}
    assert {field for item in shown["items"].values() for field in item} == {"task", "images", "finding"}
    assert list(shown["items"]) == sorted(shown["items"]), "not in the order in which they were drawn"
    pngs = [file.read_bytes() for file in (place / "images").iterdir()]
    assert {tuple(_chunks(png)) for png in pngs} == {(b"IHDR", b"IDAT", b"IEND")}, "no metadata"
    assert len({png[16:29] for png in pngs}) == 1, "one size, bit depth and colour"
    assert len({file.stat().st_mtime_ns for file in place.rglob("*") if file.is_file()}) == 1


def test_the_folder_is_the_same_whichever_class_is_which(tmp_path):
    one, other = write_images(tmp_path / "one", 12), write_images(tmp_path / "other", 12, seed=1)
    tasks = ("real", "realism", "match")
    place, key = make_study(tmp_path, one, [other], "first", tasks=tasks)
    turned, turned_key = make_study(tmp_path, other, [one], "second", tasks=tasks)
    assert _files(place) == _files(turned)
    expected, exchanged = ([item.expected for item in each.items.values()] for each in (key, turned_key))
    assert exchanged == [{"real": "synthetic", "synthetic": "real", "": ""}[answer] for answer in expected]


def test_a_seed_decides_everything_and_readers_are_added_at_the_end(tmp_path):
    first = make_study(tmp_path, out="a")[0]
    (tmp_path / "moved").mkdir()
    for name in ("hospital", "model"):
        shutil.copytree(tmp_path / name, tmp_path / "moved" / name)
    second = make_study(tmp_path / "moved", out="b")[0]
    assert _files(first) == _files(second)
    more, other = (make_study(tmp_path, out="c", readers=5)[0], make_study(tmp_path, out="d", seed=1)[0])
    orders = study_data(more)["orders"]
    assert len(orders) == 5
    assert list(orders.items())[:2] == list(study_data(first)["orders"].items())
    assert study_data(more)["study"] == study_data(first)["study"]
    assert not set(study_data(other)["items"]) & set(study_data(first)["items"])
    assert study_data(other)["study"] != study_data(first)["study"]


def test_each_reader_has_an_order_with_repeats_apart(tmp_path):
    place, key = make_study(tmp_path, tasks=("realism", "real"), readers=3, repeats=6)
    orders = study_data(place)["orders"]
    assert len({tuple(order) for order in orders.values()}) == 3
    for order in orders.values():
        assert sorted(order) == list(key.items)
        assert [task for task, _ in itertools.groupby(order, lambda name: key.items[name].task)] == ["realism", "real"]
        at = {name: number for number, name in enumerate(order)}
        repeats = [name for name in order if key.items[name].repeat_of]
        assert len(repeats) == 12
        assert all(at[name] - at[key.items[name].repeat_of] >= 30 // 3 for name in repeats)
        assert all(key.items[name].images == key.items[key.items[name].repeat_of].images for name in repeats)
        kinds = [key.items[name].expected for name in repeats if key.items[name].task == "real"]
        assert kinds.count("real") == kinds.count("synthetic") == 3


def test_both_classes_go_through_one_jpeg(tmp_path):
    place, key = make_study(tmp_path, jpeg=60, repeats=0)
    for truth in key.items.values():
        source = truth.sources[0].rsplit("/", 2)[0]
        data = io.BytesIO()
        Image.open(source).save(data, "JPEG", quality=60)
        with Image.open(place / "images" / f"{truth.images[0]}.png") as shown:
            np.testing.assert_array_equal(np.asarray(shown), np.asarray(Image.open(data)))
    assert "JPEG of quality 60" in key.notes[0]


def test_without_any_jpeg_there_is_none(tmp_path):
    lossless = [open_set(write_images(tmp_path / name)) for name in ("a", "b")]
    lossy = open_set(write_images(tmp_path / "c", suffix=".jpg"))
    assert jpeg_quality(lossless) == 0
    assert jpeg_quality([*lossless, lossy]) == JPEG
    assert main(["phantoms", "--out", str(tmp_path / "drawn"), "--patients", "20", "--size", "64"]) == 0
    assert jpeg_quality([open_set(tmp_path / "drawn")]) == JPEG
    place, key = make_study(tmp_path, jpeg=0, repeats=0)
    truth = next(iter(key.items.values()))
    with (
        Image.open(place / "images" / f"{truth.images[0]}.png") as shown,
        Image.open(truth.sources[0].rsplit("/", 2)[0]) as own,
    ):
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(own))
    assert "no JPEG" in key.notes[0]


def test_what_is_not_square_is_said_or_cropped(tmp_path):
    wide = write_images(tmp_path / "hospital", side=(SIZE, 2 * SIZE))
    place, key = make_study(tmp_path, wide)
    assert any("hospital: 12 of 12 images are not square" in note for note in key.notes)
    assert any(note.startswith("black at the edges alone tells the classes apart, AUROC 1.00") for note in key.notes)
    place, key = make_study(tmp_path, wide, out="cropped", fit="crop")
    assert not any("square, so" in note or "black at the edges" in note for note in key.notes)
    truth = next(item for item in key.items.values() if item.sets == ("hospital",))
    with (
        Image.open(place / "images" / f"{truth.images[0]}.png") as shown,
        Image.open(truth.sources[0].rsplit("/", 2)[0]) as own,
    ):
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(own)[:, SIZE // 2 : SIZE // 2 + SIZE])


def test_a_number_that_tells_the_classes_apart_is_said(tmp_path):
    _, key = make_study(tmp_path)
    assert len(key.notes) == 1, "those of equal sets do not"
    bright = tmp_path / "bright"
    bright.mkdir()
    draw = np.random.default_rng(5)
    for number in range(12):
        Image.fromarray(np.minimum(pixels(draw), 180) + 60).save(bright / f"{number}.png")
    _, key = make_study(tmp_path, generated=[bright], out="told")
    assert any("mean gray level alone tells" in note and "more in synthetic" in note for note in key.notes)


def test_findings_are_asked_of_images_that_have_them_and_that_do_not(tmp_path):
    _, key = make_study(tmp_path, tasks=("finding",), count=8, repeats=2)
    originals = [item for item in key.items.values() if not item.repeat_of]
    for of in ("hospital", "model"):
        expected = [item.expected for item in originals if item.sets == (of,)]
        assert (expected.count("present"), expected.count("absent")) == (4, 4)
    labels = {}
    for name in ("hospital", "model"):
        labels |= {item.stamp: item.groups["label"] for item in open_set(tmp_path / name).items}
    assert all((item.finding in labels[item.sources[0]]) == (item.expected == "present") for item in originals)


def test_findings_of_phantoms_have_their_side(tmp_path):
    assert main(["phantoms", "--out", str(tmp_path / "drawn"), "--patients", "120", "--size", "64"]) == 0
    _, key = make_study(tmp_path, tmp_path / "drawn", tasks=("finding",), count=6, repeats=0)
    asked = {item.stamp: item.asked for item in open_set(tmp_path / "drawn").items}
    for item in (item for item in key.items.values() if item.sets == ("drawn",)):
        kinds = {finding.kind for finding in asked[item.sources[0]].findings}
        assert (kind_of(item.finding) in kinds) == (item.expected == "present")
    assert any(item.finding.startswith(("left ", "right ")) for item in key.items.values())


def test_pairs_share_a_text_and_their_repeats_are_exchanged(tmp_path):
    models = [write_images(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"), 3)]
    place, key = make_study(tmp_path, generated=models, tasks=("better",), count=20, repeats=6)
    shown = study_data(place)["items"]
    texts = {}
    for model in models:
        texts |= {item.stamp: item.text for item in open_set(model).items}
    for name, truth in key.items.items():
        assert sorted(truth.sets) == ["a", "b"], "generated sets are compared with each other"
        assert {texts[source] for source in truth.sources} == {shown[name]["text"]}
        if truth.repeat_of:
            assert truth.sets == key.items[truth.repeat_of].sets[::-1]
            assert truth.images == key.items[truth.repeat_of].images[::-1]
    left = [truth.sets[0] for truth in key.items.values() if not truth.repeat_of]
    assert 4 <= left.count("a") <= 16
    _, key = make_study(tmp_path, tasks=("better",), count=5, repeats=0, out="alone")
    assert all(sorted(truth.sets) == ["hospital", "model"] for truth in key.items.values())


def test_pairs_without_shared_texts_show_none(tmp_path):
    plain = write_images(tmp_path / "plain", table=False)
    place, _ = make_study(tmp_path, generated=[plain], tasks=("better",), count=5, repeats=1)
    assert not any("text" in item for item in study_data(place)["items"].values())


def test_several_models_share_the_synthetic_images(tmp_path):
    models = [write_images(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"), 3)]
    _, key = make_study(tmp_path, generated=models, count=9, repeats=0)
    sets = [item.sets[0] for item in key.items.values()]
    assert (sets.count("hospital"), sets.count("a"), sets.count("b")) == (9, 5, 4)


def test_a_patient_is_seen_once_and_broken_images_are_replaced(tmp_path):
    hospital = write_images(tmp_path / "hospital", patient=lambda number: f"p{number // 3}")
    broken = open_set(hospital).items[::3]
    for item in broken:
        with open(item.stamp.rsplit("/", 2)[0], "wb") as file:
            file.write(b"no picture")
    _, key = make_study(tmp_path, count=8, repeats=0)
    patients = {item.stamp: item.patient for item in open_set(hospital).items}
    seen = [patients[item.sources[0]] for item in key.items.values() if item.sets == ("hospital",)]
    assert len(set(seen)) == len(seen) == 8
    assert any("hospital" in note and "cannot be read" in note for note in key.notes)
    with pytest.raises(UserError, match=r"hospital: 8 of 9 images .*--count"):
        make_study(tmp_path, out="more", count=9, repeats=0)
    assert not (tmp_path / "more").exists()
    assert not (tmp_path / "more.key.json").exists()


def test_tasks_take_other_images_as_far_as_they_go(tmp_path):
    _, key = make_study(tmp_path, tasks=("real", "realism"), count=12, repeats=0)
    of = [{item.images for item in key.items.values() if item.task == task} for task in ("real", "realism")]
    assert not of[0] & of[1]
    _, key = make_study(tmp_path, tasks=("real", "realism"), count=20, repeats=0, out="more")
    assert len(key.items) == 80


def test_the_page_may_have_its_images_in_it(tmp_path):
    place, key = make_study(tmp_path, one_file=True)
    assert os.listdir(place) == ["index.html"]
    assert set(study_data(place)["files"]) == {name for item in key.items.values() for name in item.images}


def test_equal_images_are_items_of_their_own(tmp_path):
    twins = tmp_path / "twins"
    twins.mkdir()
    for number in range(12):
        Image.fromarray(np.full((SIZE, SIZE), 90, np.uint8)).save(twins / f"{number}.png")
    place, key = make_study(tmp_path, generated=[twins])
    assert len(key.items) == 28
    assert len(os.listdir(place / "images")) == 13


def test_names_and_ids_are_no_numbers_for_a_spreadsheet(tmp_path):
    place, key = make_study(tmp_path)
    for name in (key.study, *key.items, *study_data(place)["orders"], *(item.images[0] for item in key.items.values())):
        assert name.isalpha()


def test_the_key_is_private_and_lies_elsewhere(tmp_path):
    place, _ = make_study(tmp_path)
    assert stat.S_IMODE((tmp_path / "study.key.json").stat().st_mode) == 0o600
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    out = tmp_path / "new"
    for key in (out / "key.json", out / "deep" / ".." / "key.json", out):
        with pytest.raises(UserError, match="lies in"):
            check_places(out, key)
    with pytest.raises(UserError, match="--key .*exists already"):
        check_places(out, tmp_path / "study.key.json")
    with pytest.raises(UserError, match="--out .*exists already"):
        check_places(place, tmp_path / "another.json")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"tasks": ("real", "reel")}, ("'reel'", "realism")),
        ({"tasks": ()}, ("--tasks", "better")),
        ({"tasks": ("real", "real")}, ("once",)),
        ({"size": 8}, ("--size 8", "16")),
        ({"repeats": 13}, ("--repeats 13", "24 items", "12")),
        ({"count": 25}, ("24 of 25 images", "--count")),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, changed, words):
    with pytest.raises(UserError) as error:
        make_study(tmp_path, **changed)
    assert all(word in str(error.value) for word in words)


def test_tasks_that_lack_something_say_what(tmp_path):
    plain = write_images(tmp_path / "plain", table=False)
    with pytest.raises(UserError, match="plain: 0 of 12 images for the task 'match'"):
        make_study(tmp_path, generated=[plain], tasks=("match",))
    with pytest.raises(UserError, match="plain: 0 of 6 images for the task 'finding'"):
        make_study(tmp_path, generated=[plain], tasks=("finding",), out="b")


def test_the_verb_makes_a_study(tmp_path, capsys):
    real, model = write_images(tmp_path / "hospital"), write_images(tmp_path / "x" / "model", seed=1)
    other = write_images(tmp_path / "y" / "model", seed=2)
    out = str(tmp_path / "study")
    common = ["readers", "make", "--real", str(real), "--count", "8", "--repeats", "2"]
    assert main([*common, "--generated", str(model), str(other), "--out", out, "--readers", "3"]) == 0
    said = capsys.readouterr().out
    assert "36 items" in said
    assert "no JPEG" in said
    assert "real images" in said
    assert "PLANTED" not in said
    codes = study_data(tmp_path / "study")["orders"]
    assert ", ".join(codes) in said
    assert (tmp_path / "study.key.json").is_file()
    assert main([*common, "--generated", str(model), "--out", out]) == 2
    assert main([*common, "--generated", str(model), "--out", out + "2", "--key", f"{out}2/key.json"]) == 2
    assert main([*common, "--generated", str(model), str(model), "--out", out + "3"]) == 2
    assert main([*common, "--generated", str(model), "--out", out + "3", "--jpeg", "0"]) == 2
    assert main([*common, "--generated", str(model), "--out", "gs://bucket/study"]) == 2
    assert main(["readers"]) == 2
    assert main(["readers", "make", "--generated", str(model), "--out", out + "3", "--tasks", "real"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 7
    for line, word in zip(
        errors, ("exists", "lies in", "twice", "--jpeg", "gs://", "make|score", "--real"), strict=True
    ):
        assert word in line
    assert sorted(os.listdir(tmp_path)) == ["hospital", "study", "study.key.json", "x", "y"]
    only = ["readers", "make", "--generated", str(model), "--out", out + "3", "--tasks", "realism", "--jpeg", "none"]
    assert main([*only, "--count", "8", "--repeats", "2"]) == 0, "without real images"


def test_the_page_is_in_the_wheel():
    root = Path(make.__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "jaxcxr.readers"
    ]
    folder = Path(make.__file__).parent
    packed = {file for pattern in patterns for file in folder.glob(pattern)}
    assert packed == {file for file in (folder / "page").iterdir() if file.is_file()}
    assert len(packed) == 5
