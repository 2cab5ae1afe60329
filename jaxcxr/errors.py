"""The one error a user sees."""


class UserError(Exception):
    """A mistake in what the user gave: a path, a key, an option, a data set.

    The message is one line that names the thing and the mend. The command line prints it without a
    traceback and exits with code 2; anything else that escapes a verb is a bug and keeps its traceback.
    """
