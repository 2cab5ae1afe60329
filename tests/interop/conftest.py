"""A tiny pipeline, and a copy of it to damage."""

import shutil

import pytest

from tests import pipelines


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return pipelines.write(tmp_path_factory.mktemp("hf") / "pipeline")


@pytest.fixture
def changed(source, tmp_path):
    return shutil.copytree(source, tmp_path / "changed")
