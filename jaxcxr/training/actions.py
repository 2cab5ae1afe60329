"""What a run does every so many steps."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Action(NamedTuple):
    """Something that is done every so many steps, and after the last one.

    Attributes:
      name: its own.
      every: steps; 0 is never.
      do: what is done, after a step of that number; what it takes of time is none of the steps' where it `waits`.
      waits: whether the devices stand still meanwhile.
    """

    name: str
    every: int
    do: Callable[[int], Any]
    waits: bool = True

    def due(self, step: int, steps: int) -> bool:
        """Whether it is done after a step, of `steps` in all."""
        return bool(self.every) and (step == steps or step % self.every == 0)

    def ahead(self, start: int, last: int, steps: int) -> bool:
        """Whether it is done at some step from `start` to `last`, of `steps` in all."""
        return bool(self.every) and (last == steps or last // self.every * self.every >= start)
