"""How a run is asked to stop, and how all of its processes come to stop at the same step."""

import atexit
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax

from jaxcxr.errors import UserError
from jaxcxr.parallel import processes


class Stopped(BaseException):
    """The run was asked to stop while there was nothing to save."""


class Stopping:
    """A context in which SIGTERM (preemption), SIGINT (Ctrl-C) and SIGHUP (the terminal is gone) ask the run to stop.

    Asked twice, it is interrupted. A SIGHUP that is ignored at the start, as under nohup, stays so.

    Until `started` a request raises `Stopped` at once. From then on any of several processes may be asked: JAX tells
    the others, and `agreed` is true on all of them at the same step.
    """

    def __init__(self) -> None:
        self.asked = False
        self._several = jax.process_count() > 1
        self._started = False
        self._waiting = False
        self._left_behind = False
        self._restore: list[Callable[[], None]] = []

    def __enter__(self) -> "Stopping":
        hangup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
        for number in (signal.SIGINT, *hangup, signal.SIGTERM):  # SIGTERM last: `started` gives back that one
            self._restore.append(processes.kept_handler(number))
            signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        for restore in self._restore:
            restore()
        if self._left_behind and kind is not None and kind is not Stopped:
            # What is registered last goes first: a state that could not be saved is no success.
            atexit.register(processes.leave, 2 if issubclass(kind, UserError) else 1)

    def started(self) -> None:
        """From here on there is something to save: requests are noted and `agreed` tells of them."""
        self._started = True
        if self._several:
            self._restore.pop()()  # JAX has taken SIGTERM when the processes joined, and hears it from now on

    def agreed(self, step: int) -> bool:
        """Whether to stop after `step`; to be asked at every step."""
        if not self._several:
            return self.asked
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    def unless_asked(self, do: Callable[..., Any], *args: Any) -> Any:
        """`do(*args)`, or None as soon as the run is asked to stop, which a compiler would not listen to for minutes.

        What it was at is left behind in a thread. Of several processes none leaves alone when there is something to
        save, and it is done.

        Raises:
          Stopped: asked before the run has `started`.
        """
        if (self._several and self._started) or threading.current_thread() is not threading.main_thread():
            return do(*args)
        result: list[Any] = []
        failure: list[BaseException] = []

        def work() -> None:
            try:
                result.append(do(*args))
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=work, daemon=True)
        try:
            self._waiting = True
            if self.asked:
                return None
            thread.start()
            thread.join()
        except Stopped:
            # Leaving Python with a compiler at work would end in a crash.
            atexit.register(processes.leave, 0)
            self._left_behind = True
            if not self._started:
                raise
            return None
        finally:
            self._waiting = False
        if failure:
            raise failure[0]
        return result[0]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._several and self._started:
            # As if it were a preemption, for the others to know; a second time JAX would not say anything.
            signal.signal(number, signal.default_int_handler)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self._several:
            # At its exit JAX would wait for the others; they end when they miss this one, if they are not asked too.
            atexit.register(processes.leave, 0)
        if self._waiting or not self._started:
            raise Stopped
