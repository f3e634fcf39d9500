"""The exception that this package raises for input that it cannot use."""


class InputError(ValueError):
    """Input that the user can correct: a path, an image, a label, a weight file or a config value.

    The message is one sentence. It says what is wrong, where, and what to do. The commands print it on stderr and end
    with exit status 2.
    """

    def __str__(self) -> str:
        # file names that are not UTF-8 contain surrogates, which cannot be printed or logged
        return super().__str__().encode("utf-8", "backslashreplace").decode()


class NotFiniteError(RuntimeError):
    """A training step whose loss, loss terms or gradient are not finite numbers: the run diverged.

    Its message is one sentence. The commands print it on stderr and end with exit status 3.
    """
