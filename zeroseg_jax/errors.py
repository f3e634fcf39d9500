"""The exception of this package for input that cannot be used."""


class InputError(ValueError):
    """Input that the user can mend: a path, an image, a label, a weight file or a config value.

    Its message is one sentence that says what is wrong, where, and how to mend it. The commands print it on
    stderr and end with exit status 2.
    """

    def __str__(self) -> str:
        # halves of surrogate pairs, as in names of files that are no UTF-8, cannot be printed or written to a log
        return super().__str__().encode("utf-8", "backslashreplace").decode()
