"""Sampling by several processes, killed ones too, and the folder as a data set."""

import json
import signal
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jaxcxr.sample
from jaxcxr import interop
from jaxcxr.__main__ import main
from jaxcxr.data import tokens
from jaxcxr.data.images import decode_png
from jaxcxr.data.loader import open_split
from jaxcxr.data.summary import Summary
from jaxcxr.draw import Drawer
from jaxcxr.errors import UserError
from jaxcxr.files import writing_place
from jaxcxr.manifest import Settings, is_whole
from jaxcxr.requests import parse
from jaxcxr.sample import sample
from jaxcxr.training.feed import open_batches
from jaxcxr.training.prepared import check_settings, describe
from tests import pipelines
from tests.training import jobs, runs

ROWS = [
    {"prompt": pipelines.REPORTS[1], "count": 5, "labels": ["Pleural Effusion"], "view": "PA"},
    {"compose": [{"prompt": text} for text in pipelines.REPORTS[:2]], "count": 3, "view": "AP"},
    {"prompt": pipelines.REPORTS[2], "negative_prompt": pipelines.REPORTS[0], "count": 5, "seed": 7, "view": "AP"},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pipelines.write(tmp_path_factory.mktemp("written") / "base")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return file


def argv(base: Path, prompts: Path, out: Path) -> list[str]:
    options = {"--checkpoint": base, "--prompts": prompts, "--out": out, "--steps": 2, "--batch-size": 2}
    return ["sample", *(str(word) for option in options.items() for word in option)]


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def alone(base, prompts, tmp_path_factory):
    """What one process draws."""
    out = tmp_path_factory.mktemp("alone") / "out"
    jobs.finish(jobs.begin(argv(base, prompts, out), out), out)
    return files(out)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_write_the_same_bytes_as_one(base, prompts, alone, tmp_path, count):
    out = tmp_path / "out"
    said = jobs.finish(jobs.begin(argv(base, prompts, out), out, processes=count), out)
    assert f"{out}: 13 images of 2 steps" in said
    assert files(out) == alone
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".log"] == ["out"]


@pytest.mark.slow
def test_a_killed_job_of_two_processes_is_resumed_by_one(base, prompts, alone, tmp_path):
    out, partial = tmp_path / "out", tmp_path / ".out.partial"
    started = jobs.begin(argv(base, prompts, out), out, processes=2)
    jobs.until(lambda: len(list(partial.glob("0*.png"))) >= 2, started)
    for process in started:
        process.send_signal(signal.SIGKILL)
    jobs.finish(started, out, codes=-signal.SIGKILL)
    kept = {file.name: file.stat().st_mtime_ns for file in partial.glob("0*.png")}
    jobs.finish(jobs.begin(argv(base, prompts, out), out), out)
    assert files(out) == alone
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept


def test_twenty_interruptions_lose_nothing(base, tmp_path, monkeypatch):
    pipeline, settings = interop.load(base), Settings("base", steps=1, guidance=1.0, size=16)
    prompts = [{"prompt": pipelines.REPORTS[0], "count": 42}]
    sample(pipeline, prompts, settings, tmp_path / "whole", batch_size=2)
    draw, drawn = Drawer.draw, []

    def one_more(before):
        """Draws one batch and is interrupted at the next."""

        def interrupted(self, some, places, noise):
            if len(drawn) > before:
                raise KeyboardInterrupt
            drawn.append(places)
            return draw(self, some, places, noise)

        return interrupted

    for stop in range(20):
        monkeypatch.setattr(Drawer, "draw", one_more(stop))
        with pytest.raises(KeyboardInterrupt):
            sample(pipeline, prompts, settings, tmp_path / "out", batch_size=2)
    monkeypatch.setattr(Drawer, "draw", one_more(20))
    sample(pipeline, prompts, settings, tmp_path / "out", batch_size=2)
    assert [place for places in drawn for place in places] == [(0, index) for index in range(42)]
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_an_interpolation_has_the_text_of_the_nearer_prompt():
    rows = [{"prompt": "a", "interpolate": {"prompt": "b", "t": t}} for t in (0, 0.5, 0.6, 1)]
    assert [parse(row, "here").text for row in rows] == ["a", "a", "b", "b"]


def test_a_job_that_lacks_a_picture_of_another_process_is_not_finished(base, tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)  # the other one draws elsewhere
    monkeypatch.setattr("jaxcxr.parallel.processes.on_first", lambda do: do())
    monkeypatch.setattr("jaxcxr.parallel.processes.from_first", lambda find: find())
    prompts = [{"prompt": text} for text in pipelines.REPORTS[:2]]
    with pytest.raises(UserError, match="has no 00001.png"):
        sample(interop.load(base), prompts, Settings("base", steps=1, size=16), tmp_path / "out", batch_size=1)
    assert not (tmp_path / "out").exists()


def test_two_processes_that_write_one_picture_do_not_meet(tmp_path, monkeypatch):
    """As where children of a killed first process are still at work when the job is resumed."""
    row, picture, save = Settings("base").row(0, {"prompt": "a"}), np.zeros((16, 16, 1), np.float32), Image.Image.save
    with writing_place(tmp_path) as own, writing_place(tmp_path) as other:

        def interleaved(image, file, **options):
            save(image, file, **options)
            monkeypatch.setattr(Image.Image, "save", save)
            jaxcxr.sample._write(other, tmp_path, row, picture, False)

        monkeypatch.setattr(Image.Image, "save", interleaved)
        jaxcxr.sample._write(own, tmp_path, row, picture, False)
        assert is_whole(tmp_path / "00000.png")
    assert [path.name for path in tmp_path.iterdir()] == ["00000.png"]


def test_what_interrupted_writers_left_is_removed_when_they_are_gone(base, tmp_path, monkeypatch):
    pipeline, settings = interop.load(base), Settings("base", steps=1, guidance=1.0, size=16)
    prompts, partial = [{"prompt": text} for text in pipelines.REPORTS[:2]], tmp_path / ".out.partial"
    draw = Drawer.draw
    monkeypatch.setattr(Drawer, "draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample(pipeline, prompts, settings, tmp_path / "out", batch_size=1)
    (gone := partial / ".files.partial-00000000").mkdir()
    for left in (gone / "00000.png", partial / ".next.png", partial / ".next-00001.png"):
        left.write_bytes(b"half")
    seen = []

    def look(*args):
        seen.append((gone.exists(), living.exists(), bool(list(partial.glob(".next*")))))
        return draw(*args)

    monkeypatch.setattr(Drawer, "draw", look)
    with writing_place(partial) as living:
        sample(pipeline, prompts, settings, tmp_path / "out", batch_size=1)
    assert seen == [(False, True, False)] * 2
    assert sorted(files(tmp_path / "out")) == ["00000.png", "00001.png", "manifest.jsonl", "metadata.jsonl"]


def test_one_process_looks_whether_all_is_done_and_all_know(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("jaxcxr.parallel.processes.from_first", lambda find: [1])  # as the second process
    monkeypatch.setattr("jaxcxr.parallel.processes.text_from_first", lambda make: make())
    monkeypatch.setattr("jaxcxr.parallel.processes.on_first", lambda do: None)
    monkeypatch.setattr(Settings, "already_done", lambda *_: pytest.fail("is the first process's to look at"))
    monkeypatch.setattr(Drawer, "draw", lambda *_: pytest.fail("nothing is to be drawn"))
    words = ["sample", "--checkpoint", str(base), "--prompt", "a", "--out", str(tmp_path / "out")]
    assert main(words) == 0


def test_a_finished_folder_of_an_older_version_is_brought_up_to_date(base, prompts, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(argv(base, prompts, out)) == 0
    whole = files(out)
    (out / "metadata.jsonl").unlink()
    for name in (".next.png", ".next-00003.png"):
        (out / name).write_bytes(b"half")
    (out / "strip.png").write_bytes(whole["00000.png"])
    assert main(argv(base, prompts, out)) == 0
    assert "already sampled, 13 images" in capsys.readouterr().out
    assert files(out) == whole
    assert (tmp_path / "out.strip.png").read_bytes() == whole["00000.png"]


def test_every_picture_of_a_strips_folder_has_its_row(base, tmp_path):
    out = tmp_path / "out"
    words = ["sample", "--checkpoint", str(base), "--interpolate", "3", "--prompt", "a b", "--prompt", "c d"]
    assert main([*words, "--steps", "1", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    assert {row["file_name"] for row in rows} == {file.name for file in out.glob("*.png")}
    assert stat.S_IMODE((tmp_path / "out.strip.png").stat().st_mode) == 0o600


def test_a_training_reads_what_a_job_prepared(base, prompts, tmp_path, capsys):
    words = [*argv(base, prompts, tmp_path / "out"), "--prepared", str(tmp_path / "drawn")]
    assert main(words) == 0
    records = open_split(tmp_path / "drawn", "train", 16)
    drawn = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    texts = {row["file_name"]: row["text"] for row in drawn}
    assert len(records) == len(drawn) == 13
    for record in records:
        name = record["id"].decode()
        np.testing.assert_array_equal(decode_png(record["image"])[..., 0], Image.open(tmp_path / "out" / name))
        assert [text.decode() for text in record["prompts"]] == [texts[name]]
    mixed = runs.autoencoder(**{"data.mixture": ((str(tmp_path / "drawn"), 1.0),), "batch_size": 8})
    check_settings(mixed, describe(mixed))
    batches = open_batches(mixed, "train", tokens.load(runs.data() / "tokenizer"))
    ids = [each for step in range(4) for each in batches.ids(step)]
    assert sum(each in texts for each in ids) == len(ids) // 2
    assert batches.batch(0)["image"].shape == (8, 16, 16, 1)
    capsys.readouterr()
    assert main(words) == 0
    assert "already prepared" in capsys.readouterr().out


def test_a_job_is_prepared_as_a_config_says(base, prompts, tmp_path, capsys):
    config = str(Path(__file__).parents[1] / "configs" / "base.py")
    words = [*argv(base, prompts, tmp_path / "out"), "--config", config]
    assert main(words) == 2
    assert "--prepared" in capsys.readouterr().err
    words += ["--prepared", str(tmp_path / "drawn"), "--config.data.size=8", "--config.data.views=('PA',)"]
    assert main([*words, "--config.data.tokenizer_vocab=600", "--config.data.prompts=('{view}: {report}',)"]) == 0
    summary = Summary.require(tmp_path / "drawn")
    assert (sum(summary.splits.values()), summary.settings["size"]) == (5, 8)
    assert main([*argv(base, prompts, tmp_path / "out"), "--config.data.size=8"]) == 2
    assert "no such option" in capsys.readouterr().err


def test_the_folder_is_prepared_as_a_data_set(base, prompts, tmp_path):
    assert main(argv(base, prompts, tmp_path / "out")) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metadata.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "file_name": "00000.png",
        "text": pipelines.REPORTS[1],
        "labels": ["Pleural Effusion"],
        "view": "PA",
        "synthetic": True,
    }
    assert rows[5]["text"] == " ".join(pipelines.REPORTS[:2])
    root = Path(__file__).parents[1]
    options = [f"--config.data.size={pipelines.VAE['sample_size']}", "--config.data.tokenizer_vocab=600"]
    words = ["prepare", "--config", str(root / "configs" / "base.py"), "--source", str(tmp_path / "out")]
    assert main([*words, "--out", str(tmp_path / "data"), *options]) == 0
    assert sum(Summary.require(tmp_path / "data").splits.values()) == 13


def test_hugging_face_reads_the_folder(base, prompts, tmp_path):
    datasets = pytest.importorskip("datasets", reason="wants Hugging Face's datasets")
    assert main(argv(base, prompts, tmp_path / "out")) == 0
    rows = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=tmp_path, split="train")
    assert len(rows) == 13
    assert rows[0]["text"] == pipelines.REPORTS[1]
    assert np.asarray(rows[0]["image"]).shape == (16, 16)
