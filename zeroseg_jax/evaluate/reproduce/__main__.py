"""Runs published results again, and puts ours beside them.

    python -m zeroseg_jax.evaluate.reproduce --root DATA [--rows NAME,...] [--list] [--out DIR]

A row is a method on a data set, such as sclip-voc21. Without --rows, all rows with a published figure run whose data
and weights are at hand. --rows takes names with commas between, where * stands for any text: "naclip*,demo-*-scenes".
--list says what each row needs, and about how long it takes on the devices of this machine.

DATA holds the data sets in their usual layout (--list says where each is looked for) and the folder weights. Weights
are DATA/weights/ID, or come from the cache of the Hugging Face hub; with --download they are fetched.

DIR gets results.md, and a folder for each row with its full results. A row that is finished is kept, and does not run
again unless its settings change. A command that was stopped goes on with the next row.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from zeroseg_jax.chips import measured_flops
from zeroseg_jax.command_line import make_parser
from zeroseg_jax.errors import InputError
from zeroseg_jax.evaluate.reproduce import run
from zeroseg_jax.evaluate.reproduce.rows import Row, choose_rows, read_rows
from zeroseg_jax.progress import spoken
from zeroseg_jax.storage import disk_path


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser("python -m zeroseg_jax.evaluate.reproduce", __doc__)
    parser.add_argument("--root", type=Path, default=Path(), help="folder of the data sets and weights; this folder")
    parser.add_argument("--rows", default="", metavar="NAME,...", help="only these rows")
    parser.add_argument("--list", action="store_true", help="say what each row needs, and run nothing")
    parser.add_argument("--out", type=Path, default=Path("reproduce"), help="folder of the results; %(default)s")
    parser.add_argument("--limit", type=int, default=0, help="only so many images of each data set; 0: all")
    parser.add_argument("--download", action="store_true", help="fetch weights from the Hugging Face hub")
    return parser.parse_args(argv)


def list_rows(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """Prints the rows, with what each needs and its estimated time."""
    flops = measured_flops()
    table, sentences = Table(), dict[str, str]()
    for title in ("row", "published", "time, about", "needs"):
        table.add_column(title, no_wrap=title == "row")
    for row in rows:
        lacking = run.needs(row, arguments.root, arguments.download)
        state = "finished" if run.finished(row, arguments.out, arguments.limit) else "ready"
        published = "" if row.published is None else f"{row.published:g}"
        seconds = run.estimated_seconds(row, flops, arguments.limit)
        table.add_row(row.name, published, spoken(seconds), ", ".join(lacking) or state)
        sentences |= {sentence: key for key, sentence in lacking.items()}
    Console().print(table, markup=False, highlight=False)
    print_needs(sentences)


def print_needs(sentences: Mapping[str, str]) -> None:
    """Prints what is lacking, each thing once."""
    for sentence, key in sentences.items():
        print(f"{key}: {sentence}")


def run_rows(rows: Sequence[Row], arguments: argparse.Namespace) -> int:
    """Runs the rows that are not finished, and reports each. Returns the exit status."""
    root, out, limit = arguments.root, disk_path(arguments.out), arguments.limit
    named = bool(arguments.rows.strip())
    lacking = {row.name: run.needs(row, root, arguments.download) for row in rows}
    unfinished = {row.name: run.finished(row, out, limit) is None for row in rows}
    ready = [row for row in rows if not (lacking[row.name] and unfinished[row.name])]
    if len(ready) < len(rows):
        print(f"{len(rows) - len(ready)} of {len(rows)} rows cannot run yet:")
        print_needs({s: key for row in rows if row not in ready for key, s in lacking[row.name].items()})
    if not ready:
        raise InputError(f"no row can run with what is in {root}; it says above what to download, and where to put it")
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for row in ready:
        result = run.finished(row, out, limit)
        if result is None:
            print(f"{row.name}: {row.method}, {row.weights.title}, {row.data.title}", flush=True)
            try:
                result = run.run_row(row, root, out, limit, arguments.download)
            except InputError as error:
                failed.append(f"{row.name}: {error}")
                print(f"{row.name} failed: {error}", file=sys.stderr)
                continue
        run.write_report(read_rows(), out, limit)
        said = zip(run.TITLES[4:9], run.cells(row, result, limit)[4:9], strict=True)
        print(f"{row.name}: " + ", ".join(f"{title} {text}" for title, text in said if text), flush=True)
    print(f"the table is in {out / 'results.md'}")
    return 2 if failed or (named and len(ready) < len(rows)) else 0


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    try:
        if arguments.limit < 0:
            raise InputError(f"--limit is {arguments.limit}; it must be at least 0")
        arguments.root = arguments.root.expanduser()
        if not arguments.root.is_dir():
            raise InputError(f"there is no folder {arguments.root}; give the folder of the data sets as --root")
        rows = read_rows()
        chosen = choose_rows(rows, arguments.rows)
        if arguments.list:
            list_rows(chosen if arguments.rows.strip() else rows, arguments)
            return 0
        return run_rows(chosen, arguments)
    except InputError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
