"""The exception of this package for input that cannot be used."""


class InputError(ValueError):
    """Input that the user can mend: a path, an image, a label, a weight file or a config value.

    Its message is one sentence that says what is wrong, where, and how to mend it. The commands print it on
    stderr and end with exit status 2.
    """
