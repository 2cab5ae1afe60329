"""What a training method is."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

Loss = Callable[[Mapping[str, jax.Array], Mapping[str, jax.Array], jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""(parameters by full name, batch, a key for each example (B,)) -> (an error for each example (B,), means to log).

An example's randomness is of its own key, so that a batch in parts is the batch as a whole.
"""

STATISTICS = "statistics"
"""Among the means to log: parameters by full name, of those that learn, which an update sets to these values."""


class Validation(NamedTuple):
    """How a method is evaluated on images that it does not learn from.

    Attributes:
      loss: as `Loss`, but with arrays (B, …) by name in place of the means.
      measure: what is made of those arrays of N images in all; values by name.
    """

    loss: Loss
    measure: Callable[[Mapping[str, np.ndarray]], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Method:
    """A training method: one loss, and what the one train loop has to know besides.

    Attributes:
      networks: those that it needs, by their keys in a pipeline.
      further: config -> those that a config asks for besides.
      reads: the fields of a batch that it needs; a cache has others in the place of some.
      trains: a regular expression for the whole names of the parameters that its loss depends on.
      make_loss: (pipeline, config) -> its loss.
      make_sheet: (pipeline, config, mesh, batch) -> a function of parameters that draws a sheet, uint8 (H, W).
      of_images: whether its sheet shows a batch of validation images; `batch` is None otherwise.
      cached: whether a cache may stand in for images.
      make_validation: (pipeline, config) -> how it is evaluated, where that is not by its loss alone.
      caption: what its sheets show.
      unet_inputs: channels that its U-Net sees of so many channels of latents.
      of_base: whether its loss is given what adapters change as it was too, under `adaptation.BASE` and its name.
    """

    networks: tuple[str, ...]
    reads: tuple[str, ...]
    trains: str
    make_loss: Callable[[Any, Any], Loss]
    make_sheet: Callable[..., Callable[[Mapping[str, jax.Array]], Any]]
    of_images: bool
    cached: bool
    make_validation: Callable[[Any, Any], Validation] | None = None
    caption: str = "Samples, a row a prompt"
    further: Callable[[Any], tuple[str, ...]] = lambda config: ()
    unet_inputs: Callable[[int], int] = lambda latents: latents
    of_base: bool = False
