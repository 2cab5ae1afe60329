"""The one error a user sees."""

_MOST = 300  # characters of what a message quotes


class UserError(Exception):
    """A mistake in what the user gave: a path, a key, an option, a data set.

    The message is one line that names the thing and the mend. The command line prints it without a
    traceback and exits with code 2; anything else that escapes a verb is a bug and keeps its traceback.
    """


def one_line(said: BaseException | str) -> str:
    """An exception, with its type, or a text, as a part of a message: one line, cut if it is long.

    Halves of surrogate pairs, which a terminal cannot print, are escaped.
    """
    text = f"{type(said).__name__}: {said}" if isinstance(said, BaseException) else said
    return " ".join(text.split())[:_MOST].encode("utf-8", "backslashreplace").decode()
