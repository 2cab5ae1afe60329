import time

import jax
import pytest

from jaxcxr.parallel import chips
from jaxcxr.training.speed import Speed


def test_steps_are_timed_and_the_first_apart(monkeypatch):
    clock = iter([100.0, 107.0, 107.0, 107.5, 107.6, 108.0, 110.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(chips, "of", lambda kind: chips.CHIPS["v5e"])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    speed = Speed(90.0, 8, "bfloat16", lambda: 197e12)  # made at 100
    speed.stepped({"loss": jax.numpy.zeros(())})  # ready at 107
    assert speed.report() == {"seconds_to_first_step": 17.0}
    with speed.waiting():  # from 107.5 to 107.6
        pass
    speed.stepped({"loss": jax.numpy.zeros(())})
    speed.stepped({"loss": jax.numpy.zeros(())})  # sees the one before at 108
    found = speed.report()
    assert found["step_ms_median"] == pytest.approx(1000)
    assert found["images_per_second"] == pytest.approx(8)
    assert found["images_per_second_per_chip"] == pytest.approx(4)
    assert found["data_wait"] == pytest.approx(0.1)
    assert found["mfu"] == pytest.approx(0.5)
    assert "seconds_to_first_step" not in found
    assert speed.report()["step_ms_median"] == pytest.approx(2000), "the newest is in the next report"


def test_chips_are_known_by_what_jax_calls_them():
    kinds = {
        "TPU v5 lite": "v5e",
        "TPU v5p": "v5p",
        "TPU v5": "v5p",
        "TPU v6 lite": "v6e",
        "NVIDIA H100 80GB HBM3": "h100",
    }
    for device_kind, kind in kinds.items():
        found = chips.of(device_kind)
        assert found is not None
        assert found.kind == kind
    assert chips.of("cpu") is None
