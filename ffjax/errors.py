"""The one exception for bad input: its message is one line that names the file (or setting) and the fault."""


class InputError(ValueError):
    """Something given from outside cannot be used. Drivers print its message as one line and exit with code 2."""
