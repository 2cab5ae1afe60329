"""What a training method is."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

Loss = Callable[[Mapping[str, jax.Array], Mapping[str, jax.Array], jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
"""(parameters by full name, batch, a key for each example (B,)) -> (an error for each example (B,), means to log).

An example's randomness is of its own key, so that a batch in parts is the batch as a whole.
"""


@dataclasses.dataclass(frozen=True)
class Method:
    """A training method: one loss, and what the one train loop has to know besides.

    Attributes:
      networks: those that it needs, by their keys in a pipeline.
      reads: the fields of a batch that it needs; a cache has others in the place of some.
      trains: a regular expression for the whole names of the parameters that its loss depends on.
      make_loss: (pipeline, config) -> its loss.
      make_sheet: (pipeline, config, mesh, images) -> a function of parameters that draws a sheet, uint8 (H, W).
      of_images: whether its sheet shows validation images, uint8 (N, S, S, 1); prompts otherwise.
      cached: whether a cache may stand in for images.
    """

    networks: tuple[str, ...]
    reads: tuple[str, ...]
    trains: str
    make_loss: Callable[[Any, Any], Loss]
    make_sheet: Callable[..., Callable[[Mapping[str, jax.Array]], Any]]
    of_images: bool
    cached: bool
