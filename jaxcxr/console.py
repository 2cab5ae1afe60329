"""Standard output and error that may go away: a closed pipe or terminal never stops the work."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ECONNRESET)  # nothing reads it any more
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Lasting:
    """A text stream whose writes are dropped once nothing reads them any more.

    After the first failure the stream's file descriptor points to the null device, so that what is buffered, native
    code and the interpreter's exit do not fail either.

    Attributes:
      lost: why output is missing that was to be kept, as on a full disk; empty if none is.
    """

    def __init__(self, stream: Any):
        self._stream, self.lost = stream, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, or drops the text."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes what can be written."""
        self._try(self._stream.flush)

    def _try(self, do: Any) -> None:
        try:
            do()
        except (OSError, ValueError) as error:
            # ValueError: of a stream that is closed. Others, as of a character that cannot be encoded, are bugs.
            if isinstance(error, OSError) and error.errno in _FULL:
                self.lost = os.strerror(error.errno)
            elif isinstance(error, OSError) and error.errno not in _GONE:
                raise
            if isinstance(error, ValueError) and not self._stream.closed:
                raise
            with contextlib.suppress(OSError, ValueError, AttributeError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self._stream.fileno())
                os.close(nothing)


@contextlib.contextmanager
def lasting_streams() -> Iterator[list[str]]:
    """Within it `sys.stdout` and `sys.stderr` are `Lasting`; both are flushed at its end.

    Yields a list, which at the end gets the reasons why output was lost that was to be kept; standard error says so.
    """
    before = sys.stdout, sys.stderr
    lasting: Any = [None if stream is None else Lasting(stream) for stream in before]  # None: was closed at the start
    sys.stdout, sys.stderr = lasting
    lost: list[str] = []
    try:
        yield lost
    finally:
        for stream in lasting:
            if stream is not None:
                stream.flush()
                lost += [stream.lost] if stream.lost else []
        if lost and sys.stderr is not None:
            print(f"jaxcxr: a part of the output could not be written ({lost[0]})", file=sys.stderr, flush=True)
        sys.stdout, sys.stderr = before
