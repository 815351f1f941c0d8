"""The base of every error that a user can mend."""


class UserError(Exception):
    """What was given cannot be used: the message says what was found and what would be right.

    Commands print the message of such an error and end with status 1. Every other exception is a
    fault of this program and keeps its traceback.
    """
