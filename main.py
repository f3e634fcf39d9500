"""Trains, evaluates and prepares: the one command of zeroseg_jax.

    python main.py --config=configs/demo.py [--workdir=DIR] [--mode=train|eval|embed|check] [--config.KEY=VALUE ...]

train   distils a student (or trains a teacher) into DIR, resuming what DIR holds, and evaluates it at the end
eval    evaluates the newest checkpoint of DIR, or --config.model, on --config.eval
embed   stores the teacher's embeddings of the training images, for --config.teacher.source=cache
check   walks the evaluation dataset and reports what it finds

The exit status is 0 on success, 2 for bad input and 3 for a run that diverged; one sentence on stderr says why. A run
that SIGTERM or Ctrl-C has stopped is saved; it ends with --preempted_status or 130, and the same command goes on from
there. docs/config.md lists every KEY, and docs/launch.md is about clusters.
"""

import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from absl import app, flags
from absl import logging as absl_logging

import zeroseg_jax
from zeroseg_jax.errors import InputError, NotFiniteError

if TYPE_CHECKING:
    from zeroseg_jax.storage import AnyPath

CONFIG = flags.DEFINE_string("config", "", "Python file with get_config(); --config.KEY=VALUE sets one of its values")
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; runs/<name of the config file> if not given")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "embed", "check"], "what to do")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "join the other processes of a TPU pod, SLURM step or Kubernetes job, which JAX finds by itself",
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "elsewhere: host:port where process 0 listens for the others")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "elsewhere: how many processes there are")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "elsewhere: which of them this is, from 0 on")
PREEMPTED_STATUS = flags.DEFINE_integer(
    "preempted_status", 0, "exit status of a run that SIGTERM has stopped, for a launcher that starts it again"
)
FLAGS = (CONFIG, WORKDIR, MODE, DISTRIBUTED, COORDINATOR, NUM_PROCESSES, PROCESS_ID, PREEMPTED_STATUS)

overrides: list[tuple[str, str]] = []


def parse_flags(argv: list[str]) -> list[str]:
    """Takes the `--config.KEY=VALUE` out of `argv` and lets absl parse the others."""
    if {"-h", "-help", "--help", "--helpshort", "--helpfull"} & set(argv[1:]):
        print_help()
    others = []
    for argument in argv:
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name.startswith("config."):
            if not equals:
                fail(f"write --{name}=VALUE, with an equals sign")
            overrides.append((name.removeprefix("config."), value))
        else:
            others.append(argument)
    try:
        rest = flags.FLAGS(others)
    except flags.UnrecognizedFlagError as error:
        fail(f"{error.args[0].split('. Did')[0]}; {suggestion(error.flagname, others)}")
    except flags.Error as error:
        fail(str(error))
    if rest[1:]:
        fail(f"unexpected argument {rest[1]!r}; see python main.py --help")
    if not CONFIG.value:
        fail("--config is missing, such as --config=configs/demo.py")
    return rest


def print_help() -> NoReturn:
    """What main.py does and its flags, without those of libraries."""
    print(__doc__)
    for flag in FLAGS:
        print(f"--{flag.name}\n    {flags.FLAGS[flag.name].help}")
    sys.exit(0)


def suggestion(name: str, argv: list[str]) -> str:
    """What was meant by a flag that does not exist: a key of the config, or else another flag."""
    from zeroseg_jax.config import default_config, flatten, load_config, nearest, similarity

    flags = dict(argument.lstrip("-").partition("=")[::2] for argument in argv if argument.startswith("-"))
    try:
        keys = flatten(load_config(flags.get("config", "")))
    except InputError:
        keys = flatten(default_config())
    key = nearest(name, keys)
    flag = nearest(name, [flag.name for flag in FLAGS])
    if similarity(name, flag) > max(similarity(name, key), 0.6):
        return f"did you mean --{flag}?"
    if similarity(name, key) > 0.6:
        return f"did you mean --config.{key}={flags[name] or 'VALUE'}?"
    return "python main.py --help lists the flags, and docs/config.md the keys that --config.KEY=VALUE sets"


def fail(sentence: str) -> NoReturn:
    print(" ".join(sentence.split()), file=sys.stderr)
    sys.exit(2)


Place = tuple[str | None, int | None, int | None]
"""Coordinator, number of processes and which of them this is; None for what JAX finds by itself."""


def run(
    mode: str, config_path: str, workdir: str | None, overrides: list[tuple[str, str]], place: Place | None = None
) -> None:
    """One mode; `place` among other processes, None for a process of its own."""
    # imported here, so that --help and a misspelt flag answer at once
    from zeroseg_jax.config import load_config, read_config
    from zeroseg_jax.resources import explained_exhaustion
    from zeroseg_jax.storage import check_paths

    config = load_config(config_path, overrides)
    check_paths(config)
    folder = run_folder(config_path, workdir)
    if place is not None:
        join_processes(*place)
    with explained_exhaustion(config, mode):
        if mode == "check":
            from zeroseg_jax.evaluate.benchmarks import check

            check(config)
        elif config.task == "eval" and mode != "eval":
            raise InputError(f"{config_path} trains nothing; add --mode=eval")
        elif config.task == "teacher" and mode != "train":
            raise InputError(f"{config_path} trains a teacher; --mode={mode} does not apply to it")
        elif config.task == "teacher":
            import jax

            from zeroseg_jax.train_clip import train_teacher

            if jax.process_count() > 1:
                raise InputError(f"{config_path} trains a teacher, which takes one process; leave --distributed out")
            train_teacher(config, folder)
            print(f"Results: {folder / 'clip'}, a CLIP in Hugging Face form", file=sys.stderr)
        elif mode == "train":
            from zeroseg_jax.train import train

            report(train(config, folder), folder)
        elif mode == "eval":
            if not config.eval.dataset:
                raise InputError("there is nothing to evaluate on; set --config.eval.dataset")
            if not config.model:
                read_config(folder)  # tells where there is no run
            from zeroseg_jax.train import evaluate

            report(evaluate(config, folder, config.model or folder), folder)
        elif mode == "embed":
            from zeroseg_jax.train import embed

            embed(config, folder)


def run_folder(config_path: str, workdir: str | None) -> "AnyPath":
    """The folder of the run, with `~` as the user's home."""
    from zeroseg_jax.storage import to_path

    try:
        return to_path(workdir or Path("runs") / Path(config_path).stem)
    except RuntimeError as error:
        raise InputError(f"--workdir={workdir} names a user whose home is unknown; write the whole path") from error


def join_processes(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes. From now on a line of the log says whose it is; those but the first only warn."""
    import jax

    from zeroseg_jax import processes

    processes.join(coordinator, num_processes, process_id)
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(logging.Formatter(f"process {jax.process_index()}: %(message)s"))
    handler.setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)


def report(results: dict | None, folder: "AnyPath") -> None:
    """The last line on stdout: the figures as one JSON object. On stderr: where the rest of them is."""
    if results is None:
        if (folder / "gallery.png").is_file():
            print(f"Results: {folder / 'gallery.png'}", file=sys.stderr, flush=True)
        return
    figures = {key: results[key] for key in ("dataset", "images", "miou", "pixel_accuracy", "iou")}
    for others in ("compare", "baselines"):
        figures[others] = {name: {"miou": row["miou"]} for name, row in results[others].items()}
    print(json.dumps(figures), flush=True)
    print(f"Results: {folder / 'report.html'}", file=sys.stderr, flush=True)


def is_wanted(record: logging.LogRecord) -> bool:
    """orbax and TFDS tell every step that they take, and orbax each failure several times before it raises it."""
    path = Path(record.pathname)
    return Path(zeroseg_jax.__file__).parent in path.parents or (
        record.levelno >= logging.ERROR and "orbax" not in path.parts
    )


def main(argv: list[str]) -> None:
    del argv
    handler = absl_logging.get_absl_handler()
    handler.addFilter(is_wanted)
    handler.setFormatter(logging.Formatter("%(message)s"))
    assert MODE.value is not None  # as parsed
    import jax

    from zeroseg_jax import processes

    place = (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    together = DISTRIBUTED.value or place != (None, None, None)
    try:
        run(MODE.value, CONFIG.value, WORKDIR.value, overrides, place if together else None)
    except InputError as error:
        processes.exit_process(" ".join(str(error).split()), 2)
    except NotFiniteError as error:
        processes.exit_process(str(error), processes.DIVERGED)
    except processes.Preempted as error:
        if jax.process_index() == 0:
            print(f"{error}; the same command goes on from there", file=sys.stderr)
        sys.exit(processes.INTERRUPTED if isinstance(error, processes.Interrupted) else PREEMPTED_STATUS.value)
    except KeyboardInterrupt:
        processes.exit_process(STOPPED, processes.INTERRUPTED)
    except ModuleNotFoundError as error:
        processes.exit_process(
            f"the package {error.name} is missing; pip install 'zeroseg_jax[train]' (here: '.[train]')", 2
        )
    except Exception:
        processes.exit_process(traceback.format_exc(), 1)


STOPPED = "stopped by Ctrl-C; the same command goes on from what is saved"

if __name__ == "__main__":
    try:
        app.run(main, flags_parser=parse_flags)
    except KeyboardInterrupt:  # before `main`, or after it
        print(STOPPED, file=sys.stderr, flush=True)
        os._exit(130)
