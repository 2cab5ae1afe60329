"""The processes of a run, one or many."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxcxr.errors import UserError


def on_first(do: Callable[[], Any]) -> None:
    """Runs `do` on the first process; all go on when it is done.

    Raises:
      UserError: on the first process, what `do` raised; on the others, that it did.
    """
    failure: UserError | None = None
    if jax.process_index() == 0:
        try:
            do()
        except UserError as error:
            failure = error
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        failed = bool(multihost_utils.broadcast_one_to_all(np.array(failure is not None)))
        if failed and failure is None:
            raise UserError("the first process has stopped; its message says why")
    if failure is not None:
        raise failure
