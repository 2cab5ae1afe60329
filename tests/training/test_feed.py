"""What the processes of a run read."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from jaxcxr.data import tokens
from jaxcxr.data.prepare import prepare
from jaxcxr.errors import UserError
from jaxcxr.training.feed import open_batches, tokenizer_folder, with_size
from tests.training import runs

READER = """
import sys
import jax, numpy as np
from jaxcxr.data import tokens
from jaxcxr.parallel import mesh as meshes
from jaxcxr.training.feed import open_batches
from tests.training import test_feed
address, processes, process, data, steps, out = sys.argv[1:]
jax.distributed.initialize(address, int(processes), int(process))
config = test_feed.config(data)
rows = meshes.local_rows(meshes.make_mesh(config.mesh), config.batch_size)
batches = open_batches(config, "train", tokens.load(data + "/tokenizer"), rows=rows)
for step in map(int, steps.split(",")):
    np.savez(f"{out}/{step}-{process}.npz", **batches.batch(step), ids=batches.ids(step))
"""


def config(data, **changes):
    return runs.autoencoder(**{"data.path": str(data), "batch_size": 8, **changes})


def read(processes, steps, out):
    """Reads steps with as many processes, at once; returns the global batches."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    out.mkdir()
    numbers = ",".join(map(str, steps))
    argv = [sys.executable, "-c", READER, address, str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(runs.ROOT)}
    jobs = [
        subprocess.Popen([*argv, str(number), str(runs.data()), numbers, str(out)], cwd=runs.ROOT, env=environment)
        for number in range(processes)
    ]
    assert [job.wait(120) for job in jobs] == [0] * processes
    parts = {step: [np.load(out / f"{step}-{process}.npz") for process in range(processes)] for step in steps}
    assert all(len(part["image"]) == 8 // processes for step in steps for part in parts[step])
    return {
        step: {key: np.concatenate([part[key] for part in parts[step]]) for key in parts[step][0]} for step in steps
    }


@pytest.mark.slow
def test_batches_do_not_depend_on_the_number_of_processes_nor_on_restarts(tmp_path):
    alone = open_batches(config(runs.data()), "train", tokens.load(runs.data() / "tokenizer"))
    found = read(2, (0, 1), tmp_path / "two") | read(4, (2, 3), tmp_path / "four") | read(1, (4,), tmp_path / "one")
    for step, batch in found.items():
        assert list(batch.pop("ids")) == alone.ids(step)
        expected = alone.batch(step)
        assert batch.keys() == expected.keys()
        assert all(np.array_equal(batch[key], expected[key]) for key in expected)


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    """A second prepared folder, of the same phantoms."""
    out = tmp_path_factory.mktemp("more") / "data"
    own = config(runs.data()).data
    own.prompts = ("{view} view",)
    prepare(own, runs.data().parent / "tree", out)
    return out


def test_a_mixture_draws_from_its_folders_by_weight(more):
    mixed = config(runs.data(), **{"data.mixture": ((str(more), 3.0),), "batch_size": 16, "method": "diffusion"})
    tokenizer = tokens.load(runs.data() / "tokenizer")
    batches = open_batches(mixed, "train", tokenizer)
    views = [tokens.encode(tokenizer, [f"{view} view"], 77)[0].tolist() for view in ("PA", "AP")]
    for step in range(3):
        assert sum(ids.tolist() in views for ids in batches.batch(step)["input_ids"]) == 12


@pytest.mark.parametrize("entry", ["folder", ("folder",), ("folder", 0.0), ("folder", "much"), (1, 1.0)])
def test_a_wrong_mixture_is_named(entry):
    with pytest.raises(UserError, match="give \\(folder, weight\\)"):
        open_batches(config(runs.data(), **{"data.mixture": (entry,)}), "train", None)


def test_a_mixture_is_cached_whole_or_not(more, tmp_path):
    with pytest.raises(UserError, match="needs a cache if config.data.path has one, and only then"):
        open_batches(config(runs.data(), **{"data.mixture": ((str(more), 1.0, str(tmp_path)),)}), "train", None)


def test_raw_data_stream_without_preparing(capsys):
    tree, tokenizer = runs.data().parent / "tree", runs.data() / "tokenizer"
    raw = config(tree, **{"data.tokenizer": str(tokenizer), "data.tokens": (0, 0)})
    assert tokenizer_folder(raw) == tokenizer
    batch = open_batches(raw, "train", tokens.load(tokenizer)).batch(0)
    assert batch["image"].shape == (8, runs.SIZE, runs.SIZE, 1)
    assert "is read as it is" in capsys.readouterr().err
    raw.data.tokenizer = ""
    with pytest.raises(UserError, match="give config.data.tokenizer its folder"):
        tokenizer_folder(raw)
    raw.data.path = str(tree / "nowhere")
    with pytest.raises(UserError, match="nowhere: not a prepared folder: make one with jaxcxr prepare"):
        tokenizer_folder(raw)


def test_a_size_of_0_is_that_of_the_prepared_images(tmp_path):
    config = runs.autoencoder(**{"data.size": 0})
    assert with_size(config).data.size == runs.SIZE
    assert config.data.size == 0, "the config that was given stays as it is"
    config.data.path = str(tmp_path)
    with pytest.raises(UserError, match="not a prepared folder"):
        with_size(config)
