"""A bucket on the loopback, named `bucket`, for this process and those that it starts."""

import importlib.util

import pytest

from tests.buckets.fake_gcs import serving


@pytest.fixture(scope="session")
def _server():
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("gcsfs is not installed; .ci/run installs it")
    with serving("bucket") as (store, variables), pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():  # before a client is made, of which there is one a process
            patch.setenv(name, value)
        yield store


@pytest.fixture
def store(_server):
    yield _server
    _server.denied.clear()
    _server.cut = lambda name: False
    _server.buckets = {"bucket": {}}
