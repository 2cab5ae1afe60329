import atexit
import contextlib
import os
import resource
import shutil
import tempfile

import hypothesis
import pytest

from jaxcxr import platforms

# Before JAX is imported: the tests compile many small programs and run each a few times.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # the workers of one run of the tests share it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxcxr-cache-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
platforms.only_those_here()

# The same examples in every run; `--hypothesis-profile=fuzz` draws new ones, many more.
_QUIET = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture]
hypothesis.settings.register_profile(
    "tests", max_examples=100, derandomize=True, deadline=None, database=None, suppress_health_check=_QUIET
)
hypothesis.settings.register_profile(
    "fuzz", max_examples=10_000, deadline=None, database=None, suppress_health_check=_QUIET
)
hypothesis.settings.load_profile("tests")


def pytest_addoption(parser):
    parser.addoption("--full-size", action="store_true", help="also the networks at Stable Diffusion's own size")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full-size"):
        chosen = [item for item in items if "full_size" not in item.keywords]
        config.hook.pytest_deselected(items=[item for item in items if "full_size" in item.keywords])
        items[:] = chosen


@pytest.fixture
def full_disk():
    """A context in which no file grows beyond some kilobytes, as where the disk is full."""

    @contextlib.contextmanager
    def full(bytes_left=10_000):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full
