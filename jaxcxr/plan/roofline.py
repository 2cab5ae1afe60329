"""How fast a planned step may be: a roofline, and what published runs reach of theirs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxcxr.plan.targets import Target, parse

# Of the time that `ideal` gives for them, the MLPerf Training runs of Stable Diffusion 2 at 512², from cached moments
# without an average, take: TPU v5p x 8, 32 images a chip, 1.95 times; v5p x 512, 2 a chip, 2.04; v6e x 256, 4 a chip,
# 2.04; H100 x 8, 32 a chip, 2.28. So twice the ideal is expected, in a band wider than these are apart.
SLOWER = 2.1
BAND = (1.6, 2.8)

ASSUMPTIONS = (
    "compute at the chips' peak, of the FLOPs as traced, so with what remat and attention do again",
    "state: weights, optimizer and average read and written once a step, gradients written and read once; frozen"
    " weights read once",
    "communication: rings, all links of a chip at full speed, no overlap with compute",
    f"expected: {SLOWER} times the sum of the three, as published runs of Stable Diffusion 2 on v5p, v6e and H100 take"
    f" (1.95 to 2.28); band {BAND[0]} to {BAND[1]} times",
    "and no faster than all that is read and written takes at the memory's full speed, the band's lower end then",
    "data loading, checkpoints and evaluation are not counted",
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Seconds of a step, by cause, and what follows.

    Attributes:
      compute, state, communication: seconds of a step that nothing slows.
      memory: seconds that all that is read and written takes at least, activations too; 0 where that is not known.
      batch_size: images of a step, of all chips.
      chips: in all.
      model_flops: of a step, of the work asked for.
      peak: FLOP/s of a chip.
    """

    compute: float
    state: float
    communication: float
    memory: float
    batch_size: int
    chips: int
    model_flops: float
    peak: float

    @property
    def ideal(self) -> float:
        """Seconds, where each part takes turns and reaches its chip's limit."""
        return self.compute + self.state + self.communication

    @property
    def seconds(self) -> float:
        """Expected of a step."""
        return SLOWER * self._unit

    @property
    def band(self) -> tuple[float, float]:
        """Seconds between which a step is expected."""
        return BAND[0] * self._unit, BAND[1] * self._unit

    @property
    def _unit(self) -> float:
        return max(self.ideal, self.memory / BAND[0])

    @property
    def rate(self) -> float:
        """Images per second, expected."""
        return self.batch_size / self.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization, expected: the share of the chips' peak that is work asked for."""
        return self.model_flops / (self.seconds * self.chips * self.peak)


def estimate(found: Mapping[str, Any]) -> Estimate:
    """The estimate of a plan, as `jaxcxr.plan.compile.measure` gives it."""
    target: Target = parse(found["target"])
    chip, memory = target.chip, found["memory"]
    peak = chip.bf16 if found["dtype"] == "bfloat16" else chip.f32
    state = 2 * (memory["weights"] + memory["optimizer"] + memory["ema"] + found["gradients"])
    state += memory.get("frozen", 0)
    within = sum(row["sent"] for row in found["collectives"].values())
    across = sum(row["sent_across"] for row in found["collectives"].values())
    return Estimate(
        compute=found["flops"]["traced"] / found["chips"] / peak,
        state=state / chip.bandwidth,
        communication=within / chip.links + across / chip.network,
        memory=(found.get("moved") or 0) / chip.bandwidth,
        batch_size=found["batch_size"],
        chips=found["chips"],
        model_flops=found["flops"]["model"],
        peak=peak,
    )
