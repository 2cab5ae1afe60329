import io
import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxcxr.data import parquet
from jaxcxr.data.ledger import Ledger
from jaxcxr.data.prepare import prepare
from jaxcxr.data.raw import RawSplit
from jaxcxr.data.records import Rejected
from jaxcxr.data.settings import Settings, defaults
from jaxcxr.data.source import open_source, wanted
from jaxcxr.errors import UserError
from jaxcxr.hub import Absent

pa = pytest.importorskip("pyarrow", reason="is of jaxcxr[data]")
pq = pytest.importorskip("pyarrow.parquet", reason="is of jaxcxr[data]")


def png(value):
    data = io.BytesIO()
    Image.fromarray(np.full((16, 24), value, np.uint8)).save(data, "PNG")
    return data.getvalue()


def table(values, **columns):
    """As datasets writes one: with the names of the classes of `label` in the schema."""
    features = {"label": {"names": ["No Finding", "Pleural Effusion"], "_type": "ClassLabel"}}
    described = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pictures = [{"bytes": png(value), "path": f"{value}.png"} for value in values]
    return pa.table({"image": pictures, **columns}).replace_schema_metadata(described)


def write(folder, name, values, **columns):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    texts = [f"Small effusion number {value} is seen." for value in values]
    rows = table(values, **{"text": texts, "label": [value % 2 for value in values], **columns})
    pq.write_table(rows, folder / name, row_group_size=3)


def config(**changes):
    return ConfigDict({**defaults(), "size": 24, "views": (), "tokenizer_vocab": 600, **changes})


def settings(**changes):
    return Settings.from_config(config(**changes))


@pytest.fixture
def data_set(tmp_path):
    folder = tmp_path / "set"
    write(folder, "data/train-00000-of-00002.parquet", range(10, 20))
    write(folder, "data/train-00001-of-00002.parquet", range(20, 25))
    write(folder, "data/validation-00000-of-00001.parquet", range(30, 34))
    (folder / "README.md").write_text("---\n")
    return folder


def listed(folder, **changes):
    source = open_source(folder, settings(**changes))
    return source, source.candidates(Ledger())


def test_rows_become_candidates_with_split_text_and_the_names_of_classes(data_set):
    source, found = listed(data_set)
    assert isinstance(source, parquet.ParquetFolder)
    assert [each.split for each in found] == ["train"] * 15 + ["validate"] * 4
    assert found[3].id == "data/train-00000-of-00002.parquet:4"
    assert found[3].labels == ("Pleural Effusion",)
    assert found[3].known["report"] == "Small effusion number 13 is seen."
    assert found[3].known["label"] == "Pleural Effusion"


def test_each_row_has_its_own_picture_in_whatever_order_they_are_read(data_set):
    source, found = listed(data_set)
    values = [*range(10, 25), *range(30, 34)]
    for place in np.random.default_rng(0).permutation(len(found)):
        assert np.asarray(source.picture(found[place])).mean() == values[place]


def test_prepared_and_raw_are_the_same_pictures(data_set, tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="is of jaxcxr[data]")
    summary = prepare(config(), data_set, tmp_path / "out", workers=1)
    assert summary.splits["train"] == 15
    assert summary.labels["train"]["Pleural Effusion"] == 7
    raw = RawSplit(data_set, settings(), "train")
    assert {record["labels"][0] for record in map(raw.__getitem__, range(15))} == {"No Finding", "Pleural Effusion"}
    again = prepare(config(), data_set, tmp_path / "out", workers=1)
    assert again.fingerprint == summary.fingerprint


def test_further_columns_are_fields_and_patients_stay_together(tmp_path):
    patients = [f"p{value // 2}" for value in range(8)]
    splits, masks = ["test"] * 4 + ["train"] * 4, [{"bytes": b"m", "path": "m.png"}] * 8
    write(tmp_path, "train.parquet", range(8), patient=patients, split=splits, age=[50] * 8, mask=masks)
    _, found = listed(tmp_path, prompts=("Age {age}. {report}",), validate_share=0.0)
    assert [each.patient for each in found] == patients
    assert [each.split for each in found] == ["test"] * 4 + ["train"] * 4
    assert found[0].known["age"] == "50"
    assert "mask" not in found[0].known


def test_a_row_without_a_picture_or_with_a_broken_one_is_bad(tmp_path):
    rows = table([1, 2], text=["a text of words", "a text of words"])
    broken = [{"bytes": None, "path": "a.png"}, {"bytes": png(2)[:40], "path": "b.png"}]
    rows = rows.set_column(0, "image", pa.array(broken, rows.schema.field("image").type))
    pq.write_table(rows, tmp_path / "train.parquet")
    source, found = listed(tmp_path)
    with pytest.raises(Rejected, match="missing_image"):
        source.picture(found[0])
    with pytest.raises(UserError, match="no usable row"):
        prepare(config(), tmp_path, tmp_path.with_name("out"), workers=1)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"text": ["a"]}, "has no column of pictures, image"),
        ({"left": [{"bytes": b"", "path": ""}], "right": [{"bytes": b"", "path": ""}]}, "several columns of pictures"),
    ],
)
def test_a_table_without_pictures_is_refused_with_its_columns(tmp_path, names, said):
    pq.write_table(pa.table(names), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=said):
        listed(tmp_path)


@pytest.mark.parametrize("keep", [0, 3, 60, -40])
def test_a_damaged_table_is_one_line(data_set, keep):
    file = data_set / "data/train-00001-of-00002.parquet"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"train-00001-of-00002\.parquet: cannot be read .*; fetch it again"):
        listed(data_set)


def test_a_description_that_is_no_json_is_one_line(tmp_path):
    rows = table([1], text=["a"]).replace_schema_metadata({b"huggingface": b"{"})
    pq.write_table(rows, tmp_path / "train.parquet")
    with pytest.raises(UserError, match="its schema's description"):
        listed(tmp_path)


def test_metadata_in_parquet_describes_an_image_folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for value in range(3):
        (tmp_path / "pictures" / f"{value}.png").write_bytes(png(value))
    names = [f"pictures/{value}.png" for value in range(3)]
    pq.write_table(pa.table({"file_name": names, "text": ["one text of it"] * 3}), tmp_path / "metadata.parquet")
    source, found = listed(tmp_path, validate_share=0.0)
    assert type(source).__name__ == "ImageFolder"
    assert [each.id for each in found] == names


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/validation-00000-of-00001-0123456789abcdef.parquet", "validate"),
        ("test.parquet", "test"),
        ("train/0000.parquet", "train"),
        ("data/test/part.parquet", "test"),
        ("0000.parquet", "train"),
        ("metadata.parquet", None),
        ("other/train-00000-of-00001.parquet", None),
        ("data/train.csv", None),
    ],
)
def test_the_split_is_in_the_name(name, split):
    assert parquet.split_of(name) == split


def test_of_a_data_set_of_the_hub_the_files_that_are_read_are_wanted():
    shards = ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"]
    assert wanted(["README.md", ".gitattributes", *shards]) == shards
    folder = ["train/metadata.jsonl", "train/a.png", "train/b.jpg"]
    assert wanted(["README.md", "script.py", *folder]) == folder
    assert wanted(["normal/a.png", "effusion/b.png", "x.py"]) == ["normal/a.png", "effusion/b.png"]
    with pytest.raises(Absent, match="append :frontal"):
        wanted(["frontal/train-00000-of-00001.parquet"])
    with pytest.raises(Absent, match=r"archives, such as images\.zip"):
        wanted(["README.md", "images.zip"])
    with pytest.raises(Absent, match="neither pictures nor Parquet"):
        wanted(["README.md"])


def test_what_datasets_writes_is_read_as_datasets_reads_it(tmp_path):
    datasets = pytest.importorskip("datasets", reason="wants Hugging Face's datasets")
    pixels = np.random.default_rng(0).integers(0, 256, (7, 12, 20), np.uint8)
    columns = {
        "image": [Image.fromarray(each) for each in pixels],
        "text": [f"text number {number} of it" for number in range(7)],
        "label": [number % 3 for number in range(7)],
    }
    names = datasets.ClassLabel(names=["Normal", "Effusion", "Nodule"])
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string"), "label": names})
    made = datasets.Dataset.from_dict(columns, features=features)
    made.to_parquet(tmp_path / "train-00000-of-00001.parquet", batch_size=3)
    files = {"train": str(tmp_path / "train-00000-of-00001.parquet")}
    theirs = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))

    source, found = listed(tmp_path, validate_share=0.0)
    assert len(found) == len(theirs) == 7
    for row, ours in zip(theirs, found, strict=True):
        np.testing.assert_array_equal(np.asarray(source.picture(ours)), np.asarray(row["image"]))
        assert ours.known["report"] == row["text"]
        assert ours.labels == (theirs.features["label"].int2str(row["label"]),)
