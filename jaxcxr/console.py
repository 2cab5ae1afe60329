"""Standard output and error that may go away: a closed pipe or terminal never stops the work."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENOSPC, errno.ECONNRESET)


class Lasting:
    """A text stream whose writes are dropped once nothing reads them any more.

    After the first failure the stream's file descriptor points to the null device, so that what is buffered, native
    code and the interpreter's exit do not fail either.
    """

    def __init__(self, stream: Any):
        self._stream = stream

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
            if isinstance(error, OSError) and error.errno not in _GONE:
                raise
            if isinstance(error, ValueError) and not self._stream.closed:
                raise
            with contextlib.suppress(OSError, ValueError, AttributeError):
                nothing = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nothing, self._stream.fileno())
                os.close(nothing)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Within it `sys.stdout` and `sys.stderr` are `Lasting`; both are flushed at its end."""
    before = sys.stdout, sys.stderr
    lasting: Any = [None if stream is None else Lasting(stream) for stream in before]  # None: was closed at the start
    sys.stdout, sys.stderr = lasting
    try:
        yield
    finally:
        for stream in lasting:
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before
