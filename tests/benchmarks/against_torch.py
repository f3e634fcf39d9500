"""This package against torch and transformers, on one CPU, in one run; in float32 where a row says no dtype.

    python tests/benchmarks/against_torch.py --out DIR [--rows image text] [--repeats 7] [--threads 1|all]

Prints a table and writes DIR/against_torch.json: for each row the CPU-seconds and seconds of each side, minimum and
median over the repeats, and the ratios ours / torch's (below 1: we are faster). "Plain" is torch as its documentation
shows it; "best" is the fastest of the ways tried, so that a slow library is no merit of ours: on processors of AMD,
MKL, which torch uses for linear layers, may be slower than oneDNN, which torch has too. `rows.py` says which ways.

Both sides read the same random weights of the published sizes and must give the same numbers before anything is timed.
Each is a process of its own; they take turns. First calls, in which things are compiled, are reported apart. Expect
a quarter of an hour or more, much of it `torch.compile`, which needs a C++ compiler (leave it out:
--skip compile). Nothing else should run meanwhile. `--tiny` is a trial of the script itself.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rows import ROWS, write_inputs

HERE = Path(__file__).parent
CLOSE = 1e-4
"""Largest difference of embeddings and scores."""
EQUAL = 0.99
"""Share of pixels that must have the same label; between labels of equal score rounding decides."""
Times = list[dict[str, float]]


class Side:
    """A process that measures itself; `first` is its first call."""

    def __init__(self, name: str, row: str, folder: Path, threads: str):
        self.name, self.times = name, Times()
        script = "zeroseg_side.py" if name == "ours" else "transformers_side.py"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
        one = None
        if threads == "1":
            environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
            flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
            environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
            core = max(os.sched_getaffinity(0))
            one = lambda: os.sched_setaffinity(0, {core})  # noqa: E731
        command = [sys.executable, str(HERE / script), row, name, str(folder)]
        self._process: Any = subprocess.Popen(
            command, env=environment, preexec_fn=one, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        outputs = folder / f"{name} {row}.npz"
        self.first = self.run(0, str(outputs))
        with np.load(outputs) as saved:
            self.outputs = dict(saved)

    def run(self, index: int, outputs: str = "") -> dict[str, float]:
        """One repeat: its CPU-seconds and seconds."""
        pipe: IO[str] = self._process.stdin
        print(index, outputs, file=pipe, flush=True)
        if not (line := self._process.stdout.readline()):
            raise RuntimeError(f"{self.name} ended with status {self._process.wait()}; its error is above")
        return json.loads(line)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def check(ours: Side, theirs: Side) -> dict[str, float]:
    """How far the outputs are apart; raises AssertionError where it is too much.

    Label maps are held against the scores of the other side, where it gives them: how much worse the label is there.
    """
    apart = {}
    for name, value in ours.outputs.items():
        other = theirs.outputs[name]
        assert value.shape == other.shape, f"{name}: {value.shape} and {theirs.name} {other.shape}"
        scores = theirs.outputs.get(f"{name}_scores")
        if scores is not None:
            chosen = np.take_along_axis(scores, value[:, None], axis=1)[:, 0]
            apart[f"{name}_scores"] = float((scores.max(axis=1) - chosen).max())
            assert apart[f"{name}_scores"] <= CLOSE, f"{name} of {theirs.name}: {apart}"
        elif np.issubdtype(value.dtype, np.integer):
            apart[f"{name}_equal"] = float((value == other).mean())
            assert apart[f"{name}_equal"] >= EQUAL, f"{name} of {theirs.name}: {apart}"
        else:
            apart[name] = float(np.abs(value - other).max())
            assert apart[name] <= CLOSE, f"{name} of {theirs.name}: {apart}"
    return apart


def measure(row: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All sides of a row, in turns."""
    variants = [v for v in ROWS[row].variants if not set(v.split()) & set(arguments.skip)]
    sides: list[Side] = []
    try:
        for name in ["ours", *variants]:
            sides.append(Side(name, row, folder, arguments.threads))
        apart = {side.name: check(sides[0], side) for side in sides[1:]}
        for index in range(1, arguments.repeats + 1):
            turn = index % len(sides)
            for side in sides[turn:] + sides[:turn]:
                side.times.append(side.run(index))
    finally:
        for side in sides:
            side.close()
    return {"sides": {side.name: _summary(side) for side in sides}, "difference": apart} | _ratios(sides)


def _summary(side: Side) -> dict[str, Any]:
    kinds: dict[str, Any] = {"min": np.min, "median": np.median}
    result = {
        f"{unit}_{kind}": float(f([t[unit] for t in side.times]))
        for unit in ("cpu", "wall")
        for kind, f in kinds.items()
    }
    return result | {"first_call": side.first, "repeats": side.times}


def _ratios(sides: list[Side]) -> dict[str, Any]:
    """Ours / torch's, each of the plain way and of that with the least (median) time."""
    ours, plain, *_ = result = [_summary(side) for side in sides]
    ratios: dict[str, Any] = {"plain": {}, "best": {}, "best_variant": {}}
    for name in ("cpu_min", "cpu_median", "wall_min", "wall_median"):
        best = min(range(1, len(sides)), key=lambda i: result[i][name])
        ratios["plain"][name] = ours[name] / plain[name]
        ratios["best"][name] = ours[name] / result[best][name]
        ratios["best_variant"][name] = sides[best].name
    return {"ratios": ratios}


def show(results: dict[str, Any], threads: str) -> None:
    """The table."""
    table = Table(title=f"ours / torch, min (median) over the repeats; threads: {threads}", show_lines=True)
    columns = ("", "ours, CPU s", "first call, s", "CPU / plain", "CPU / best", "wall / plain", "wall / best", "best")
    for column in columns:
        table.add_column(column, justify="left" if column in ("", "best") else "right")
    for row, result in results.items():
        ratios, ours = result["ratios"], result["sides"]["ours"]
        cells = [
            f"{ratios[way][f'{unit}_min']:.2f} ({ratios[way][f'{unit}_median']:.2f})"
            for unit in ("cpu", "wall")
            for way in ("plain", "best")
        ]
        taken = f"{ours['cpu_min']:.3f} ({ours['cpu_median']:.3f})"
        first = f"{ours['first_call']['wall']:.1f}"
        table.add_row(ROWS[row].title, taken, first, *cells, ratios["best_variant"]["cpu_median"])
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--repeats", type=int, default=7, choices=range(1, 20), metavar="1..19")
    parser.add_argument("--threads", choices=("1", "all"), default="1")
    parser.add_argument("--skip", nargs="*", choices=("compile", "onednn", "cached"), default=[])
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        write_inputs(Path(name), arguments.tiny)
        for row in arguments.rows:
            results[row] = measure(row, Path(name), arguments)
            content = {"threads": arguments.threads, "tiny": arguments.tiny, "rows": results}
            path = arguments.out / f"against_torch_{arguments.threads}.json"
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    show(results, arguments.threads)


if __name__ == "__main__":
    main()
