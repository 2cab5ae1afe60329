"""How a U-Net takes a text encoder that it has not learnt with: `config.model.text_encoder_fit`.

A projection of the encoder's states into the space that the U-Net knows, or new keys and values of its cross-attention
(Chambon et al. 2022, arXiv 2210.04133, compare encoders with a projection). A U-Net from scratch needs neither.
"""

import re
from collections.abc import Mapping

from ml_collections import ConfigDict

from jaxcxr.errors import UserError
from jaxcxr.interop.config_files import TEACHER, network_config_of, parse_object
from jaxcxr.methods import networks
from jaxcxr.parsing import to_json

FITS = {"linear": "text_proj", "mlp": "text_mlp", "cross_attention": None}
"""By name: diffusers' `encoder_hid_dim_type`, of which text_mlp is not diffusers'."""

_PROJECTION = r"unet\.encoder_hid_proj\..*"
_KEYS_AND_VALUES = r"unet\..*\.attn2\.to_[kv]\..*"


def with_fit(config: ConfigDict, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files of a pipeline whose U-Net takes the states of its text encoder as the config says.

    Raises:
      UserError: there is no such fit, no other text encoder, or the config describes the U-Net itself; or the base's
        U-Net has a projection where its text encoder is to be a teacher.
    """
    fit = config.model.text_encoder_fit
    unet = parse_object("unet/config.json", files.get("unet/config.json", b"{}"))
    if TEACHER in networks(config) and unet.get("encoder_hid_dim"):
        raise UserError(
            f"config.model.base={config.model.base!r}: its U-Net has a projection of text already, so that its text"
            " encoder cannot be the teacher; give the checkpoint that the projection was made for"
        )
    if not fit:
        return dict(files)
    if fit not in FITS:
        raise UserError(f"config.model.text_encoder_fit={fit!r}: may be {', '.join(FITS)}, or empty")
    if config.model.unet or "unet/config.json" not in files:
        raise UserError(
            f"config.model.text_encoder_fit={fit!r}: is for the U-Net of a base; describe what config.model.unet is to"
            " be, or leave one of the two empty"
        )
    if not (config.model.text_encoder_base or config.model.text_encoder):
        raise UserError(
            f"config.model.text_encoder_fit={fit!r}: fits another text encoder, and none is given; set"
            " config.model.text_encoder_base, or leave both empty to keep what the base has"
        )
    width = network_config_of("text_encoder", files["text_encoder/config.json"]).hidden_size
    if FITS[fit] is None:
        changed = {"encoder_hid_dim": None, "encoder_hid_dim_type": None, "cross_attention_dim": width}
    else:
        changed = {"encoder_hid_dim": width, "encoder_hid_dim_type": FITS[fit]}
    return {**files, "unet/config.json": to_json(unet | changed)}


def is_fresh(config: ConfigDict, name: str) -> bool:
    """Whether a parameter of this full name is not the base's, but starts at random."""
    fit = config.model.text_encoder_fit
    return bool(fit) and re.fullmatch(_PROJECTION if FITS[fit] else _KEYS_AND_VALUES, name) is not None
