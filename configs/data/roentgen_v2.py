"""The selection of RoentGen-v2: RoentGen's, with the patient in the prompt.

    jaxcxr prepare --config configs/data/roentgen_v2.py --source MIMIC --out runs/data --config.data.tokenizer=CLIP

Age, sex and race are MIMIC-IV's: its patients.csv.gz and admissions.csv.gz lie in MIMIC/mimiciv/*/hosp/ or beside the
images' tables. Images of patients without an entry for one of them are left out, and counted.
"""

import roentgen
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Needs `data.tokenizer`."""
    config = roentgen.get_config()
    config.data.prompts = ("{age} year old {race} {sex}. {impression}",)
    return config
