"""The only error that the local stack raises: a sentence that a person can act on, printed as it is."""


class LocalStackError(Exception):
    """A local server could not be started, reached or used.

    The message says what was being done, to what, and the next step; the command line prints it without a
    traceback.
    """
