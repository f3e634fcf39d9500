"""The command that trains and evaluates.

    python main.py --config=configs/demo.py [--workdir=DIR] [--mode=train|eval|embed|check] [--config.KEY=VALUE ...]

train   distils a student (or trains a teacher) into DIR and evaluates it; resumes the run that is in DIR
eval    evaluates the newest checkpoint in DIR, or --config.model, on the dataset of --config.eval
embed   stores the teacher's embeddings of the training images, for --config.teacher.source=cache
check   reads the whole evaluation dataset and reports its faults

The exit status is 0 on success, 2 for bad input, and 3 for a run that diverged. One sentence on stderr says why.
SIGTERM and Ctrl-C save the run and stop it, and the same command resumes it. The exit status is then
--preempted_status (SIGTERM) or 130 (Ctrl-C). docs/config.md lists every KEY. docs/launch.md is about clusters.
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
WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run; the default is runs/<name of the config file>")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval", "embed", "check"], "what to do")
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "join the other processes of a TPU pod, SLURM step or Kubernetes job; JAX finds them",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "outside such clusters: host:port where process 0 listens for the others"
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "outside such clusters: number of processes")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "outside such clusters: number of this process, from 0")
PREEMPTED_STATUS = flags.DEFINE_integer(
    "preempted_status", 0, "exit status of a run that SIGTERM stopped; a launcher can use it to start the run again"
)
FLAGS = (CONFIG, WORKDIR, MODE, DISTRIBUTED, COORDINATOR, NUM_PROCESSES, PROCESS_ID, PREEMPTED_STATUS)

overrides: list[tuple[str, str]] = []


def parse_flags(argv: list[str]) -> list[str]:
    """Collects the arguments `--config.KEY=VALUE` in `overrides`. absl parses the others."""
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
    """Prints what main.py does, and its flags without those of libraries."""
    print(__doc__)
    for flag in FLAGS:
        print(f"--{flag.name}\n    {flags.FLAGS[flag.name].help}")
    sys.exit(0)


def suggestion(name: str, argv: list[str]) -> str:
    """Suggests a key of the config, or another flag, in place of a flag that does not exist."""
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
"""The coordinator, the number of processes, and the number of this process. JAX finds those that are None."""


def run(
    mode: str, config_path: str, workdir: str | None, overrides: list[tuple[str, str]], place: Place | None = None
) -> None:
    """Runs one mode. `place` is None if there are no other processes."""
    # These imports are slow. --help and misspelt flags do not need them.
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
                read_config(folder)  # raises if the folder has no run
            from zeroseg_jax.train import evaluate

            report(evaluate(config, folder, config.model or folder), folder)
        elif mode == "embed":
            from zeroseg_jax.train import embed

            embed(config, folder)


def run_folder(config_path: str, workdir: str | None) -> "AnyPath":
    """The folder of the run. `~` is the user's home."""
    from zeroseg_jax.storage import to_path

    try:
        return to_path(workdir or Path("runs") / Path(config_path).stem)
    except RuntimeError as error:
        raise InputError(f"--workdir={workdir} names a user whose home is unknown; write the whole path") from error


def join_processes(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes. Lines of the log then name their process. All processes but the first only warn."""
    import jax

    from zeroseg_jax import processes

    processes.join(coordinator, num_processes, process_id)
    handler = absl_logging.get_absl_handler()
    handler.setFormatter(logging.Formatter(f"process {jax.process_index()}: %(message)s"))
    handler.setLevel(logging.INFO if jax.process_index() == 0 else logging.WARNING)


def report(results: dict | None, folder: "AnyPath") -> None:
    """Prints the figures on stdout as one line of JSON, and the path of the report on stderr."""
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
    """Whether a message is logged. Orbax and TFDS log every step, and orbax logs an error before it raises it."""
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

    from zeroseg_jax import preemption, processes

    place = (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    together = DISTRIBUTED.value or place != (None, None, None)
    try:
        run(MODE.value, CONFIG.value, WORKDIR.value, overrides, place if together else None)
    except InputError as error:
        processes.exit_process(" ".join(str(error).split()), 2)
    except NotFiniteError as error:
        processes.exit_process(str(error), processes.DIVERGED)
    except preemption.Preempted as error:
        if jax.process_index() == 0:
            print(f"{error}; the same command resumes it", file=sys.stderr)
        sys.exit(preemption.INTERRUPTED if isinstance(error, preemption.Interrupted) else PREEMPTED_STATUS.value)
    except KeyboardInterrupt:
        processes.exit_process(STOPPED, preemption.INTERRUPTED)
    except ModuleNotFoundError as error:
        processes.exit_process(
            f"the package {error.name} is missing; pip install 'zeroseg_jax[train]' (here: '.[train]')", 2
        )
    except Exception:
        processes.exit_process(traceback.format_exc(), 1)


STOPPED = "stopped by Ctrl-C; the same command resumes from the last checkpoint"

if __name__ == "__main__":
    try:
        app.run(main, flags_parser=parse_flags)
    except KeyboardInterrupt:  # before or after `main`
        print(STOPPED, file=sys.stderr, flush=True)
        os._exit(130)
