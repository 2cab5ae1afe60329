"""Losses and gradients that are not finite."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

# Steps; by then their values are there. The same for all processes, so that they stop together.
_LATE = 8


class Watch:
    """Stops a run after more than `allowed` steps in a row whose loss or gradient is not finite.

    Each step is looked at some steps late, so that nothing is waited for; before a state is kept, `catch_up`.
    """

    def __init__(self, allowed: int, places: Callable[[int], Sequence[int]]):
        """`places` gives the places of a step's batch among the records, as a record's id may be a patient's."""
        self._allowed, self._places = allowed, places
        self._waiting: deque[tuple[int, Mapping[str, Any]]] = deque()

    def see(self, step: int, values: Mapping[str, Any]) -> None:
        """Takes the values of a step, which may still be on their way; raises as `catch_up`, for an earlier one."""
        self._waiting.append((step, values))
        while len(self._waiting) > _LATE:
            self._check(*self._waiting.popleft())

    def catch_up(self) -> None:
        """Looks at all steps so far.

        Raises:
          FloatingPointError: in one line the step, the groups of parameters, as in `grad_norm/<group>`, whose gradient
            is not finite, and where the records of its batch are.
        """
        while self._waiting:
            self._check(*self._waiting.popleft())

    def _check(self, step: int, values: Mapping[str, Any]) -> None:
        in_a_row = int(values["nonfinite/in_a_row"])
        if in_a_row <= self._allowed:
            return
        prefix = "grad_norm/"
        groups = [name.removeprefix(prefix) for name in values if name.startswith(prefix)]
        bad = [group for group in groups if not np.isfinite(float(values[prefix + group]))]
        found = [f"the loss is {float(values['loss'])}"]
        if bad:
            found.append(f"the gradient is not finite in {', '.join(bad)}")
        elif not np.isfinite(float(values["grad_norm"])):
            found.append(f"the norm of the gradient is {float(values['grad_norm'])}")
        if self._allowed:
            found.append(f"as in {in_a_row} steps in a row (config.skip_nonfinite={self._allowed})")
        places = ", ".join(map(str, self._places(step)))
        raise FloatingPointError(
            f"at step {step} {', '.join(found)}; the last checkpoint is kept;"
            f" the places of its batch's records in the split train, from 0: {places}"
        )
