"""The one error that means: the caller can mend this."""


class InputError(ValueError):
    """A bad argument, file or option. The message names the thing, its value and the remedy.

    The scripts and the console command print it on one line, without a traceback, and exit with status 2.
    """
