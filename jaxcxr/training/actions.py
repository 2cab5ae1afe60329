"""What a run does every so many steps."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Action(NamedTuple):
    """Something that is done every so many steps, and after the last one.

    Attributes:
      name: its own.
      every: steps; 0 is never.
      do: what is done, after a step of that number.
      waits: whether the devices stand still meanwhile, so that the time it takes is none of the steps'.
    """

    name: str
    every: int
    do: Callable[[int], Any]
    waits: bool = True


def is_due(every: int, step: int, steps: int) -> bool:
    """Whether what is done every so many steps is done after this one, of `steps` in all."""
    return bool(every) and (step == steps or step % every == 0)


def is_ahead(every: int, start: int, last: int, steps: int) -> bool:
    """Whether what is done every so many steps is done at some step from `start` to `last`, of `steps` in all."""
    return bool(every) and (last == steps or last // every * every >= start)
