import json

import pytest
from huggingface_hub import constants

from jaxcxr import hub
from jaxcxr.errors import UserError
from jaxcxr.training.train import train
from tests import hub_server, pipelines
from tests.training import runs


@pytest.mark.slow
def test_a_run_on_a_base_of_the_hub_resumes_on_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub._look_up.cache_clear()
    files = hub_server.files_of(pipelines.write(tmp_path / "base"))
    commit = hub_server.fill_cache(tmp_path / "cache", "org/base", files)
    config = runs.diffusion("org/base", **{"model.measure_scaling_factor": False, "steps": 4, "checkpoint_every": 2})
    train(config, tmp_path / "run", stop_at=2)
    assert json.loads((tmp_path / "run/config.json").read_text())["model"]["base"] == f"org/base@{commit}"

    moved = hub_server.fill_cache(tmp_path / "cache", "org/base", {**files, "README.md": b"new"})
    hub._look_up.cache_clear()
    config.model.base = "org/base@main"
    with pytest.raises(UserError, match=f"model.base was 'org/base@{commit}', is 'org/base@{moved}'"):
        train(config, tmp_path / "run")
    config.model.base = "org/base"
    assert train(config, tmp_path / "run")
    hub._look_up.cache_clear()
