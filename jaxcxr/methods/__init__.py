"""Training methods: a module and a line of `METHODS` each."""

from ml_collections import ConfigDict

from jaxcxr.diffusion.objective import ERRORS
from jaxcxr.errors import UserError
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.methods import autoencoder, classifier, consistency, controlnet, diffusion, inpainting, projection
from jaxcxr.methods.method import Loss, Method

METHODS: dict[str, Method] = {
    "diffusion": diffusion.METHOD,
    "autoencoder": autoencoder.METHOD,
    "projection": projection.METHOD,
    "consistency": consistency.METHOD,
    "inpainting": inpainting.METHOD,
    "controlnet": controlnet.METHOD,
    "classifier": classifier.METHOD,
}


def method(config: ConfigDict) -> Method:
    """The entry that `config.method` names; raises UserError where there is none."""
    if config.method not in METHODS:
        raise UserError(f"config.method={config.method!r}: may be {', '.join(METHODS)}")
    return METHODS[config.method]


def networks(config: ConfigDict) -> tuple[str, ...]:
    """The networks that a run of `config` needs, by their keys in a pipeline."""
    chosen = method(config)
    return (*chosen.networks, *chosen.further(config))


def make_loss(pipeline: StableDiffusion, config: ConfigDict) -> Loss:
    """The loss of `config.method`.

    Raises:
      UserError: the method, its error or one of its terms is unknown.
    """
    if config.objective.error not in ERRORS:
        raise UserError(f"config.objective.error={config.objective.error!r}: may be {', '.join(ERRORS)}")
    return method(config).make_loss(pipeline, config)
