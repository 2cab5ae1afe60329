"""A projection from one text encoder's states to another's, learnt from captions alone (Chambon et al. 2022, arXiv
2210.04133): the text encoder that the U-Net has learnt with is the teacher."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxcxr.diffusion.objective import per_example
from jaxcxr.errors import UserError
from jaxcxr.interop.config_files import NETWORKS, TEACHER
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.methods.method import Loss, Method
from jaxcxr.methods.sheets import prompted

_TRAINS = r"unet\.encoder_hid_proj\..*|text_encoder\..*"


def make_loss(pipeline: StableDiffusion, config: ConfigDict) -> Loss:
    """The distance of the projected states from the teacher's, position by position of what both have.

    The U-Net attends to all positions, padding too, so all of them are compared. `cosine` is the mean similarity.

    Raises:
      UserError: the U-Net has no projection, or it leads into another space than the teacher's.
    """
    if pipeline.unet.encoder_hid_proj is None:
        raise UserError(
            "config.method='projection': the U-Net has none to learn; set config.model.text_encoder_fit to linear or"
            " mlp"
        )
    wide, wanted = pipeline.unet.config.per_block("cross_attention_dim")[0], pipeline.teacher.config.hidden_size
    if wide != wanted:
        raise UserError(
            f"config.method='projection': the teacher's hidden_size is {wanted}, the U-Net's cross_attention_dim"
            f" {wide}; config.model.base is to be the checkpoint that the U-Net comes with"
        )

    def loss(parameters, batch, keys):
        networks = pipeline.with_parameters(parameters)
        states = networks.unet.project_text(networks.text_encoder(batch["input_ids"]))
        taught = networks.teacher(batch["teacher_ids"])
        both = min(states.shape[1], taught.shape[1])
        states, taught = (each[:, :both].astype(jnp.float32) for each in (states, taught))
        errors = per_example(config.objective.error, states, taught)
        return errors, {"cosine": _cosine(states, taught).mean()}

    return loss


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """The cosines of the angles between vectors (..., D)."""
    lengths = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return (a * b).sum(axis=-1) / jnp.maximum(lengths, jnp.finfo(jnp.float32).tiny)


METHOD = Method(
    networks=(*NETWORKS, TEACHER),
    reads=("input_ids", "teacher_ids"),
    trains=_TRAINS,
    make_loss=make_loss,
    make_sheet=prompted,
    of_images=False,
    cached=False,
)
