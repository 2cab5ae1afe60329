"""Sampling by several processes, killed ones too, and the folder as a data set."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest

from jaxcxr import interop
from jaxcxr.__main__ import main
from jaxcxr.data.summary import Summary
from jaxcxr.draw import Drawer
from jaxcxr.errors import UserError
from jaxcxr.manifest import Settings
from jaxcxr.requests import parse
from jaxcxr.sample import sample
from tests import pipelines
from tests.training import jobs

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
    prompts = [{"prompt": text} for text in pipelines.REPORTS[:2]]
    with pytest.raises(UserError, match="has no 00001.png"):
        sample(interop.load(base), prompts, Settings("base", steps=1, size=16), tmp_path / "out", batch_size=1)
    assert not (tmp_path / "out").exists()


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
