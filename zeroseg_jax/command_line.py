"""The argument parser of the commands `python -m zeroseg_jax...`."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse's parser. It reports bad usage in one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}; see {self.prog} --help\n")


def make_parser(prog: str, doc: str | None, skipped: int = 2) -> Parser:
    """A parser whose help is the docstring `doc` of a module.

    The first paragraph comes before the list of arguments. The paragraphs after the first `skipped` come behind it.
    Those between, such as the usage, are left out because argparse writes the usage itself.
    """
    assert doc
    return Parser(
        prog=prog,
        description=doc.split("\n\n")[0],
        epilog=doc.split("\n\n", skipped)[skipped],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
