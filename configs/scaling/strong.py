"""Strong scaling: 1,024 images a step whatever the number of chips, 8 to 1,024 of them.

    jaxcxr plan --config configs/scaling/strong.py --target v5p:2x2x2 --scaling --coarse --out runs/strong
    jaxcxr train --config configs/scaling/strong.py:64 --workdir runs/strong-64

The stage is the number of chips, 8 if none; the fewer, the more parts a batch is gone through in. Expect the share of
communication to grow until, at an image or two a chip, it is most of a step: v5p x 512 at 2 images a chip reached 35 %
of the speed a chip of v5p x 8 at 32 (MLPerf 4.1).
"""

import sd2
from ml_collections import ConfigDict


def get_config(stage: str = "8") -> ConfigDict:
    """`stage` is a number of chips."""
    config = sd2.get_config()
    config.batch_size = 1024
    config.accumulation = max(1, 1024 // int(stage) // 16)
    return config
