"""Weak scaling: 8 images a chip whatever their number, 8 to 1,024 chips.

    jaxcxr plan --config configs/scaling/weak.py --target v5e:2x4 --scaling --coarse --out runs/weak
    jaxcxr train --config configs/scaling/weak.py:64 --workdir runs/weak-64

The stage is the number of chips, 8 if none. States are split over the chips of a slice or node, 16 GB chips hold them
with remat. Expect images/s to grow with the chips while gradients are summed within a slice; a full-size plan compiles
for minutes, three of them with --coarse, eight without.
"""

import sd2
from ml_collections import ConfigDict


def get_config(stage: str = "8") -> ConfigDict:
    """`stage` is a number of chips."""
    config = sd2.get_config()
    config.batch_size = 8 * int(stage)
    config.mesh.fsdp = 8
    config.sharding = "fsdp"
    config.remat = "blocks"
    return config
