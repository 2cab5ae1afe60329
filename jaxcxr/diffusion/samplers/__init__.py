"""Samplers: a module each, of one scheduler class of diffusers. A new one is a module and a line here."""

from jaxcxr.diffusion.samplers.base import Sampler, Settings
from jaxcxr.diffusion.samplers.ddim import DDIM
from jaxcxr.diffusion.samplers.ddpm import DDPM
from jaxcxr.diffusion.samplers.dpm_solver import DPMSolverMultistep
from jaxcxr.diffusion.samplers.euler import Euler
from jaxcxr.diffusion.samplers.euler_ancestral import EulerAncestral
from jaxcxr.diffusion.samplers.flow_euler import FlowMatchEuler
from jaxcxr.diffusion.samplers.heun import Heun
from jaxcxr.diffusion.samplers.lcm import LCM
from jaxcxr.diffusion.samplers.pndm import PNDM
from jaxcxr.diffusion.samplers.unipc import UniPC

__all__ = ["SAMPLERS", "Sampler", "Settings"]

SAMPLERS: dict[str, type[Settings]] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "pndm": PNDM,
    "euler": Euler,
    "euler-ancestral": EulerAncestral,
    "heun": Heun,
    "dpm++": DPMSolverMultistep,
    "unipc": UniPC,
    "lcm": LCM,
    "flow-euler": FlowMatchEuler,
}
"""By the name that the command line takes."""
