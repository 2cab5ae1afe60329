"""The selection of RoentGen (Bluethgen & Chambon et al. 2024, arXiv 2211.12737) from MIMIC-CXR-JPG.

    jaxcxr prepare --config configs/data/roentgen.py --source MIMIC --out runs/data --config.data.tokenizer=CLIP

PA views whose impression has 7 to 77 tokens of CLIP's tokenizer (a folder `tokenizer/` of Stable Diffusion), at 512²;
patients p10 to p18 to learn from, of which one in a hundred validates, p19 to test with.
"""

from ml_collections import ConfigDict

from jaxcxr.data import settings


def get_config() -> ConfigDict:
    """Needs `data.tokenizer`."""
    config = ConfigDict({"data": settings.defaults()})
    config.data.views = ("PA",)
    config.data.prompts = ("{impression}",)
    config.data.min_words = 0
    config.data.tokens = (7, 77)
    config.data.split = "p19"
    config.data.validate_share = 0.01  # of the patients p10 to p18
    return config
