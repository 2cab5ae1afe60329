import itertools
import json
import shutil

import numpy as np
import pytest
from trees import image_folder, picture, small_config

from jaxcxr.data import tokens
from jaxcxr.data.loader import Batches, open_split
from jaxcxr.data.prepare import prepare
from jaxcxr.errors import UserError

TRAIN = 22


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    lines = [{"file_name": f"{n}.png", "text": f"picture number {n}", "view": "PA"} for n in range(TRAIN + 4)]
    for line in lines[TRAIN:]:
        line["split"] = "validation"
    prepare(small_config(), image_folder(root / "raw", lines), root / "out")
    return root / "out"


@pytest.fixture(scope="module")
def source(prepared):
    return open_split(prepared, "train")


@pytest.fixture(scope="module")
def tokenizer(prepared):
    return tokens.load(prepared / "tokenizer")


def test_batch_holds_the_records_that_its_ids_name(source, tokenizer):
    batches = Batches(source, tokenizer=tokenizer, seed=3, batch_size=8)
    batch = batches.batch(1)
    assert batch["image"].shape == (8, 16, 16, 1)
    assert batch["image"].dtype == np.uint8
    assert batch["input_ids"].shape == (8, 77)
    assert batch["input_ids"].dtype == np.int32
    for name, image, ids in zip(batches.ids(1), batch["image"], batch["input_ids"], strict=True):
        number = int(name.removesuffix(".png"))
        assert ids.tolist() == tokens.encode(tokenizer, [f"picture number {number}"], 77)[0].tolist()
        # 60 × 80 pixels become 12 × 16 in the middle of 16 × 16.
        expected = picture(number).reshape(16, 5, 12, 5).mean((1, 3))
        assert abs(image[2:-2, 4:-4, 0] - expected[2:-2, 2:-2]).max() < 3
        assert not image[:, :2].any()
        assert not image[:, 14:].any()


@pytest.mark.parametrize("processes", [2, 4])
def test_global_batch_does_not_depend_on_the_number_of_processes(source, tokenizer, processes):
    whole = Batches(source, tokenizer=tokenizer, seed=0, batch_size=8)
    parts = [
        Batches(source, tokenizer=tokenizer, seed=0, batch_size=8, rows=rows)
        for rows in np.split(np.arange(8), processes)
    ]
    for step in (0, 2, 7):
        expected = whole.batch(step)
        got = [part.batch(step) for part in parts]
        assert got[0]["image"].shape[0] == 8 // processes
        for key in expected:
            assert np.array_equal(np.concatenate([part[key] for part in got]), expected[key])
        assert list(itertools.chain(*(part.ids(step) for part in parts))) == whole.ids(step)


def test_restart_continues_as_if_nothing_had_happened(source, tokenizer):
    first = list(itertools.islice(Batches(source, tokenizer=tokenizer, seed=1, batch_size=4).iterate(0), 9))
    again = Batches(source, tokenizer=tokenizer, seed=1, batch_size=4)
    resumed = list(itertools.islice(again.iterate(5), 4))
    for step, batch in enumerate(resumed, 5):
        for key in batch:
            assert np.array_equal(batch[key], first[step][key])
            assert np.array_equal(batch[key], again.batch(step)[key])


def test_every_record_once_per_epoch_and_epochs_differ(source, tokenizer):
    batches = Batches(source, tokenizer=tokenizer, seed=5, batch_size=1)
    epochs = [[batches.ids(step)[0] for step in range(e * TRAIN, (e + 1) * TRAIN)] for e in range(3)]
    assert all(sorted(epoch) == sorted(f"{n}.png" for n in range(TRAIN)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = Batches(source, tokenizer=tokenizer, seed=6, batch_size=1)
    assert [other.ids(step)[0] for step in range(TRAIN)] != epochs[0]


def test_without_shuffle_the_first_records_come_first(prepared, tokenizer):
    validate = open_split(prepared, "validate")
    batches = Batches(validate, tokenizer=tokenizer, seed=0, batch_size=2, shuffle=False)
    names = [record["id"].decode() for record in validate]
    assert batches.ids(0) + batches.ids(1) == names
    assert batches.ids(2) == names[:2]


def test_batch_larger_than_the_split_repeats_it(prepared, tokenizer):
    batches = Batches(open_split(prepared, "validate"), tokenizer=tokenizer, seed=0, batch_size=10)
    counts = [batches.ids(0).count(f"{n}.png") for n in range(TRAIN, TRAIN + 4)]
    assert sorted(counts) == [2, 2, 3, 3]


def test_misuse_is_refused(source, tokenizer, prepared, tmp_path):
    with pytest.raises(UserError, match=r"'test'.*train, validate"):
        open_split(prepared, "test")
    with pytest.raises(UserError, match=f"{tmp_path}: not a prepared folder"):
        open_split(tmp_path, "train")
    (tmp_path / "summary.json").write_text(json.dumps({"records": "gone"}))
    with pytest.raises(UserError, match=str(tmp_path)):
        open_split(tmp_path, "train")


def test_a_damaged_folder_is_told(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "out")
    records = tmp_path / "out" / "records"
    (shard,) = records.glob("*-train.*")
    data = bytearray(shard.read_bytes())
    data[data.index(b"PNG")] ^= 1
    shard.write_bytes(data)
    split = open_split(tmp_path / "out", "train")
    with pytest.raises(UserError, match=f"{shard.name}: cannot be read .*; copy it again, or make it again"):
        list(split)
    info = records / "dataset_info.json"
    info.write_text(info.read_text()[:-20])
    with pytest.raises(UserError, match=r"records: is damaged \(\w+\): prepare again"):
        open_split(tmp_path / "out", "train")
    info.unlink()
    with pytest.raises(UserError, match="out: not a prepared folder"):
        open_split(tmp_path / "out", "train")
