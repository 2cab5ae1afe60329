"""The selection of CheXGenBench (Dutt et al. 2025, arXiv 2505.10496) from MIMIC-CXR-JPG.

    jaxcxr prepare --config configs/data/chexgenbench.py --source MIMIC --out DATA --config.data.report_tables=FILES

Frontal views at 512² in the official splits; the prompt is the findings in LLaVA-Rad's annotations, GPT-4's where an
image has them. FILES is a tuple of the three (physionet.org/content/llava-rad-mimic-cxr-annotation), or is left out
where they lie in the working directory. Images without findings are not selected, and counted.

Not established: which of LLaVA-Rad's two texts CheXGenBench takes for an image, and whether it trains on the dev file.
Its own tables, LLAVARAD_ANNOTATIONS_TRAIN.csv and _TEST.csv, serve as FILES with `path` and `annotated_prompt` turned
into `dicom_id` and `text`.
"""

from ml_collections import ConfigDict

from jaxcxr.data import settings

_NAME = "chat_{}_MIMIC_CXR_all_gpt4extract_rulebased_v1.json"


def get_config() -> ConfigDict:
    """Needs LLaVA-Rad's three files, here or named by `data.report_tables`."""
    config = ConfigDict({"data": settings.defaults()})
    config.data.views = ("PA", "AP")
    config.data.prompts = ("{report}",)
    config.data.report_tables = tuple(_NAME.format(split) for split in ("train", "dev", "test"))
    config.data.split = "official"
    return config
