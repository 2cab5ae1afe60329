"""New words given with --adapter: a file of them, a workdir, and a workdir that has learnt an adapter besides."""

import numpy as np
import pytest

from jaxcxr import interop
from jaxcxr.__main__ import main
from jaxcxr.errors import UserError
from jaxcxr.interop import adapters
from jaxcxr.training.train import train
from tests.adaptation.test_textual_inversion import TABLE, base, run_config  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def workdir(base, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("learnt") / "run"
    train(run_config(base, steps=2, checkpoint_every=2, **{"lora.rank": 2}), folder)
    return folder


def test_a_workdir_gives_its_words_and_its_adapter(base, workdir):  # noqa: F811
    found = adapters.merged(interop.read(base), [workdir], [])
    whole = interop.read(workdir)
    assert found.files["tokenizer/added_tokens.json"] == whole.files["tokenizer/added_tokens.json"]
    plain = interop.read(base).tensors
    changed = 0
    for name, tensor in whole.tensors.items():
        np.testing.assert_allclose(found.tensors[name].read(), tensor.read(), rtol=1e-6, atol=1e-7)
        changed += name != TABLE and not np.array_equal(plain[name].read(), tensor.read())
    assert changed > 8, "the adapter's layers"
    assert len(found.tensors[TABLE].read()) > len(plain[TABLE].read())


def test_a_file_gives_its_words(base, workdir, tmp_path):  # noqa: F811
    assert main(["convert", str(workdir), str(tmp_path / "words"), "--to", "embedding"]) == 0
    files = sorted((tmp_path / "words").glob("*.safetensors"))
    assert len(files) == 2
    found = adapters.merged(interop.read(base), files, [])
    rows = interop.read(workdir).tensors[TABLE].read()
    ours = found.tensors[TABLE].read()
    np.testing.assert_array_equal(np.sort(ours, axis=0), np.sort(rows, axis=0))
    with pytest.raises(UserError, match=r"--adapter-weight 2\.0: .* is of new words, which have no strength"):
        adapters.merged(interop.read(base), files[:1], [2.0])
    with pytest.raises(UserError, match="there already|already"):
        adapters.merged(found, files[:1], [])


def test_a_published_adapter_says_that_the_words_are_apart(workdir, tmp_path, capsys):
    assert main(["convert", str(workdir), str(tmp_path / "lora"), "--to", "lora"]) == 0
    said = capsys.readouterr().out
    assert "has learnt <effusion>, <left> too" in said
    assert "--to embedding" in said
