import pytest

from jaxcxr.errors import UserError
from jaxcxr.models import AutoencoderKLConfig, CLIPTextConfig, UNet2DConditionConfig


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (UNet2DConditionConfig, "dual_cross_attention", True),
        (UNet2DConditionConfig, "class_embed_type", "timestep"),
        (UNet2DConditionConfig, "time_cond_proj_dim", 256),
        (UNet2DConditionConfig, "down_block_types", ["KDownBlock2D"] * 4),
        (UNet2DConditionConfig, "attention_head_dim", [5, 10]),
        (UNet2DConditionConfig, "transformer_layers_per_block", [1, [1, 2], 1, 1]),
        (UNet2DConditionConfig, "norm_num_groups", None),
        (UNet2DConditionConfig, "norm_num_groups", 48),
        (UNet2DConditionConfig, "atention_head_dim", 8),
        (AutoencoderKLConfig, "down_block_types", ["AttnDownEncoderBlock2D"]),
        (AutoencoderKLConfig, "block_out_channels", [64, 128]),
        (AutoencoderKLConfig, "act_fn", "mish"),
        (CLIPTextConfig, "hidden_act", "relu"),
        (CLIPTextConfig, "num_attention_heads", 7),
        (CLIPTextConfig, "attention_dropout", 0.1),
    ],
)
def test_what_is_not_supported_is_named(cls, key, value):
    with pytest.raises(UserError, match=r"\w+Config: ") as error:
        cls.from_dict({key: value})
    assert key in str(error.value) or "down_block_types" in str(error.value)


def test_defaults_fill_in_and_private_keys_are_ignored():
    config = UNet2DConditionConfig.from_dict({"_class_name": "UNet2DConditionModel", "sample_size": [64, 64]})
    assert config == UNet2DConditionConfig(sample_size=(64, 64))
    assert config.per_block("attention_head_dim") == (8, 8, 8, 8)


@pytest.mark.parametrize("cls", [UNet2DConditionConfig, AutoencoderKLConfig, CLIPTextConfig])
def test_plain_values_round_trip(cls):
    config = cls()
    assert cls.from_dict(config.to_dict()) == config
    assert cls.from_dict(config) is config
    hash(config)
