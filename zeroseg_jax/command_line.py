"""What the commands `python -m zeroseg_jax...` have in common."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse, with one sentence for bad usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message}; see {self.prog} --help\n")


def make_parser(prog: str, doc: str | None, skipped: int = 2) -> Parser:
    """A parser whose help begins with the first paragraph of a module's `doc` and ends with what follows the first
    `skipped` ones, such as that and the usage, which argparse writes itself."""
    assert doc
    return Parser(
        prog=prog,
        description=doc.split("\n\n")[0],
        epilog=doc.split("\n\n", skipped)[skipped],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
