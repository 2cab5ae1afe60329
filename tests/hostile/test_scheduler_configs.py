"""A damaged or hostile `scheduler_config.json` is read or refused in one line; what is read makes finite noise."""

import json

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxcxr.diffusion import samplers
from jaxcxr.diffusion.schedule import Schedule
from jaxcxr.diffusion.scheduler_classes import CLASSES
from jaxcxr.errors import UserError
from jaxcxr.interop.config_files import SCHEDULER_CONFIG
from jaxcxr.interop.pipeline import StableDiffusion
from tests.hostile.mutations import byte_variants, json_variants, one_line_or_fine

VALID = {
    **{"_class_name": "DDIMScheduler", "_diffusers_version": "0.35.0", "num_train_timesteps": 20},
    **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "trained_betas": None},
    **{"clip_sample": False, "clip_sample_range": 1.0, "set_alpha_to_one": False, "steps_offset": 1},
    **{"prediction_type": "epsilon", "thresholding": False, "timestep_spacing": "leading"},
    **{"rescale_betas_zero_snr": False, "variance_type": "fixed_small", "use_flow_sigmas": False},
}
BETAS = VALID | {"trained_betas": np.linspace(0.001, 0.1, 20).tolist()}


def used(data: bytes, index: bytes):
    pipeline = StableDiffusion({}, {SCHEDULER_CONFIG: data, "model_index.json": index})
    bar = pipeline.schedule.alphas_cumprod()
    assert np.isfinite(bar).all()
    assert ((bar >= 0) & (bar < 1)).all()
    return pipeline.sampler().sampler(5)


@given(st.one_of(json_variants(VALID), json_variants(BETAS)), st.sampled_from([None, *CLASSES]))
def test_mutated_schedulers_are_read_or_refused_in_one_line(config, name):
    if isinstance(config, dict) and name:
        config["_class_name"] = name
    sampler = one_line_or_fine(used, json.dumps(config).encode(), b"{}")
    if not isinstance(sampler, UserError):
        assert all(np.isfinite(value).all() for value in jax.tree.leaves(sampler.coefficients))


@given(json_variants({"scheduler": ["diffusers", "PNDMScheduler"]}))
def test_mutated_classes_in_the_index_are_read_or_refused_in_one_line(index):
    one_line_or_fine(used, json.dumps(VALID).encode(), json.dumps(index).encode())


@given(byte_variants(json.dumps(VALID).encode()))
def test_mutated_bytes_are_read_or_refused_in_one_line(data):
    one_line_or_fine(used, data, b"{}")


@given(json_variants(VALID))
def test_mutated_changes_are_made_or_refused_in_one_line(changes):
    if isinstance(changes, dict):
        changed = one_line_or_fine(samplers.changed, VALID, changes)
        assert isinstance(changed, UserError | dict)
        if isinstance(changed, dict):
            assert isinstance(Schedule.from_config(changed), Schedule)
