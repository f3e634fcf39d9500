"""One measured side: a process that runs its row whenever the parent says so, and tells what it took."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Outputs = dict[str, np.ndarray]
"""What a run made. Of floats close, of integers nearly all equal, to those of the other side, under the same name."""


def serve(start: Callable[[str, str, Path], Callable[[int], Outputs]]) -> None:
    """Reads the row, the variant and the inputs' folder from the command line, and repeats from standard input.

    Each line there is the number of a repeat and, where its outputs are wanted, a file for them. Each answer is a line
    of JSON: CPU-seconds of all threads, and seconds of wall time.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    row, variant, folder = sys.argv[1:]
    run = start(row, variant, Path(folder))
    for line in sys.stdin:
        index, _, path = line.strip().partition(" ")
        cpu, wall = time.process_time(), time.perf_counter()
        outputs = run(int(index))
        taken = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        if path:
            np.savez(path, **outputs)  # type: ignore[arg-type]
        print(json.dumps(taken), file=answers, flush=True)
