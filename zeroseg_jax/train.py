"""Distils a student, from the config to the results. `train` shows the steps in order.

A run starts from the newest checkpoint of its workdir. Without one it starts from an earlier student
(`config.init.student`), the image tower of the teacher (`config.student.encoder`), MAE weights (`config.init.mae`), or
from scratch.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from zeroseg_jax import sharding
from zeroseg_jax.checkpoint import Checkpoints, checkpoint_folder, saved_steps, write_student
from zeroseg_jax.config import to_json, validate
from zeroseg_jax.config_ranges import parse_steps
from zeroseg_jax.data.pipeline import TrainIterator, train_iterator
from zeroseg_jax.data.sources.open import ImageSource, open_held_out, open_source
from zeroseg_jax.distill.forecast import forecast
from zeroseg_jax.distill.model_flops import image_flops
from zeroseg_jax.distill.plan import Plan, make_plan
from zeroseg_jax.distill.step import TrainState
from zeroseg_jax.distill.teacher import Teacher, load_teacher
from zeroseg_jax.distill.teacher_cache import augmentation_of, open_cache
from zeroseg_jax.errors import InputError, NotFiniteError
from zeroseg_jax.evaluate import zero_shot
from zeroseg_jax.evaluate.baselines import check_baselines
from zeroseg_jax.evaluate.benchmarks import open_benchmark
from zeroseg_jax.evaluate.photo_gallery import draw_photo_gallery, read_gallery_labels
from zeroseg_jax.log import RunLog, start_wandb
from zeroseg_jax.models.clip import CLIP
from zeroseg_jax.models.clip_encoder import load_clip
from zeroseg_jax.models.student import Student
from zeroseg_jax.models.student_config import make_student_config, with_teacher_sizes
from zeroseg_jax.models.weights.mae import check_mae, load_mae
from zeroseg_jax.monitor import Goodput, Profiler, Watchdog
from zeroseg_jax.preemption import Preemption
from zeroseg_jax.progress import announced
from zeroseg_jax.segment.io import load, load_earlier_student
from zeroseg_jax.segment.options import from_config
from zeroseg_jax.storage import AnyPath, to_path
from zeroseg_jax.workdir import check_workdir, hold, open_workdir


def train(config: ConfigDict, workdir: str | AnyPath) -> dict[str, Any] | None:
    """Trains until `config.steps` and returns the results of the final evaluation. Resumes the run in `workdir`.

    `workdir` then holds config.json, checkpoints/, metrics.jsonl, TensorBoard events and, unless `config.eval.dataset`
    is empty, what `zero_shot.evaluate` writes: results.json, report.html and others.

    Raises:
        InputError: a config, path, data set or workdir that cannot be used.
        NotFiniteError: the run diverged. The message names the step, the loss terms and the last good checkpoint.
        Preempted: SIGTERM or Ctrl-C stopped the run after a step, which is saved.
    """
    goodput = Goodput()
    # ---- Config, devices, workdir
    config = with_teacher_sizes(config)
    validate(config)
    workdir = to_path(workdir)
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(config.batch_size // config.optimizer.accumulate, mesh)
    part, part_count = sharding.process_part(mesh)
    check_workdir(config, workdir)

    # ---- Teacher, MAE weights and data. Mistakes are found before anything is compiled; cheap checks come first
    teacher = load_teacher(config)
    done = max(saved_steps(checkpoint_folder(workdir)), default=0)
    if config.init.mae and config.student.encoder != "clip" and not done:
        check_mae(make_student_config(config, teacher.embed_dim, teacher.sizes), config.init.mae)
    if config.eval.dataset:  # mistakes here are found before the training, not after it
        open_benchmark(config.eval)
        if config.eval.readout:
            raise InputError(
                f"eval.readout is {config.eval.readout!r}, but a run evaluates its student, and only a CLIP has"
                " readouts; leave it empty"
            )
        from_config(config.eval)
        check_baselines(config.eval)
        zero_shot.load_compared(config)
    source = open_source(config.data)
    logging.info("training on %d images of %s", len(source), config.data.source)
    batches = train_iterator(
        source,
        batch_size=config.batch_size // part_count,
        augmentation=augmentation_of(config),
        workers=config.data.workers,
        process_index=part,
        process_count=part_count,
        max_broken_share=config.data.max_broken_share,
    )

    # ---- Student, optimiser and step: shapes only, no arrays yet
    plan = make_plan(config, teacher, mesh)
    earlier = None if done or not config.init.student else load_earlier_student(config.init.student, plan.student)
    labels = () if config.eval.dataset or not config.data.held_out else read_gallery_labels(config)
    logging.info("%s", forecast(config, plan, teacher, len(source), done))

    # ---- Everything is checked. From here the run writes files
    with open_workdir(config, workdir):
        write_student(workdir, plan.student)
        distil(config, workdir, mesh, plan, teacher, source, batches, earlier, goodput)
        if not config.eval.dataset:
            if config.data.held_out and jax.process_index() == 0:
                draw_photo_gallery(load(workdir), open_held_out(config.data), labels, workdir / "gallery.png")
            return None
        return zero_shot.evaluate(load(workdir), config, workdir, zero_shot.load_compared(config))


def distil(
    config: ConfigDict,
    workdir: AnyPath,
    mesh: Mesh,
    plan: Plan,
    teacher: Teacher,
    source: ImageSource,
    batches: TrainIterator,
    earlier: Student | None,
    goodput: Goodput,
) -> None:
    """Takes the steps of `train`, from the newest checkpoint to the last."""
    # ---- The stored embeddings of the teacher, if the run uses them
    flops = config.batch_size * image_flops(config, plan.student, teacher.sizes, teacher.boxes)
    cached = open_cache(teacher, source, config, workdir) if config.teacher.source == "cache" else None
    if cached:
        teacher = teacher._replace(params=None)  # its weights are no longer needed
    teacher_params = jax.device_put(teacher.params, sharding.replicated(mesh))

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(workdir, keep=config.keep_checkpoints))
        stack.enter_context(batches)
        preemption = stack.enter_context(Preemption())
        profiler = stack.enter_context(Profiler(parse_steps(config.profile_steps), workdir))
        wandb = start_wandb(config.wandb, workdir, to_json(config))

        # ---- State
        start = checkpoints.latest or 0
        if start:
            state, position = checkpoints.restore(start, plan.state)
            batches.set_state(position)
            logging.info("resumed at step %d of %d", start, config.steps)
        else:
            state = first_state(config, plan, earlier)

        log = RunLog(
            workdir,
            start=start,
            steps=config.steps,
            images_per_step=config.batch_size,
            images=len(source),
            flops_per_step=flops,
            waited=lambda: batches.waited,
            wandb=wandb,
        )
        stack.enter_context(log)
        watchdog = stack.enter_context(Watchdog())

        def settle(step: int, arrays: dict[str, jax.Array]) -> None:
            metrics = {name: float(value) for name, value in jax.device_get(arrays).items()}
            if not all(math.isfinite(value) for value in metrics.values()):
                raise NotFiniteError(not_finite(step, metrics, checkpoints, workdir))
            if step % config.log_every == 0 or step in (start + 1, config.steps):
                log.write(step, metrics)

        # ---- Loop. The metrics of a step are fetched while the next one runs
        waiting: tuple[int, dict[str, jax.Array]] | None = None
        goodput.started()
        for step in range(start + 1, config.steps + 1):
            batch = next(batches)
            host = {"image": batch["image"]}
            if cached:
                host["teacher"] = cached(batch["index"], batch["epoch"], batch["flip"])
            arrays = sharding.to_devices(host, mesh)
            profiler.before(step)
            with compiling(goodput) if step == start + 1 else contextlib.nullcontext():
                state, metrics = plan.train_step(state, arrays, teacher_params)
            profiler.after(step, metrics)
            if waiting:
                settle(*waiting)
            waiting = step, metrics
            stop = preemption.after(step)
            if step % config.checkpoint_every == 0 or step == config.steps or stop:
                settle(*waiting)  # checks the metrics first, so that the state of a bad step is never saved
                waiting = None
                with goodput.other("saving"):
                    checkpoints.save(step, state, batches.get_state())
            watchdog.step()
            if stop:
                with goodput.other("saving"):
                    checkpoints.wait()
                logging.info("%s", goodput.summary(step - start, batches.waited))
                raise preemption.stopped(f"after step {step} of {config.steps}, which is saved")
        with goodput.other("saving"):
            checkpoints.wait()
    logging.info("%s", goodput.summary(config.steps - start, batches.waited))
    if batches.broken:
        logging.warning("%d broken images were skipped; the log above names them", len(batches.broken))


@contextlib.contextmanager
def compiling(goodput: Goodput) -> Iterator[None]:
    """A context manager for the first step. Logs that it compiles, and counts the time."""
    with announced("compiling the training step"), goodput.other("compiling"):
        yield


def first_state(config: ConfigDict, plan: Plan, earlier: Student | None) -> TrainState:
    """The state before the first step. It starts from `earlier`, the teacher's tower, MAE's weights, or scratch."""
    state = jax.jit(plan.initial_state, out_shardings=plan.shardings)()
    if earlier:
        state["params"] = jax.device_put(nnx.to_pure_dict(nnx.state(earlier)), plan.shardings["params"])
        logging.info("started from the student %s", config.init.student)
    elif config.student.encoder == "clip":
        student = nnx.merge(plan.graphdef, state["params"])
        teacher = load_clip(config.teacher.path).model  # read again, because `teacher.params` may not be float32
        assert isinstance(teacher, CLIP)  # as its config said when the student's was made
        student.copy_from_teacher(teacher)
        state["params"] = jax.device_put(nnx.to_pure_dict(nnx.state(student)), plan.shardings["params"])
    elif config.init.mae:
        student = nnx.merge(plan.graphdef, state["params"])
        parts = load_mae(student, config.init.mae)
        state["params"] = nnx.to_pure_dict(nnx.state(student))
        logging.info("started the %s from %s", " and ".join(parts), config.init.mae)
    return state


def not_finite(step: int, metrics: dict[str, float], checkpoints: Checkpoints, workdir: AnyPath) -> str:
    """The message about a step that is not finite."""
    checkpoints.wait()
    terms = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
    last = (
        f"the last good checkpoint is step {checkpoints.latest}" if checkpoints.latest else "there is no checkpoint yet"
    )
    return f"step {step} is not finite ({terms}); {last} in {workdir}; lower optimizer.lr, or look at the data"


def evaluate(config: ConfigDict, workdir: str | AnyPath, source: str | AnyPath) -> dict[str, Any] | None:
    """Evaluates a model on `config.eval`, and writes the results to `workdir`.

    `source` is anything that `zeroseg_jax.load` takes. Returns the content of results.json in the first process, and
    None in the others.

    Raises:
        InputError: the source, the dataset or the workdir cannot be used, or another run uses the workdir.
    """
    open_benchmark(config.eval)
    check_baselines(config.eval)
    model, compared = load(source), zero_shot.load_compared(config)
    workdir = to_path(workdir)
    with hold(workdir, "evaluates"):
        return zero_shot.evaluate(model, config, workdir, compared)


def embed(config: ConfigDict, workdir: AnyPath) -> None:
    """Stores the teacher's embeddings of the training images, for runs with `config.teacher.source="cache"`."""
    config = with_teacher_sizes(config)
    validate(config)
    open_cache(load_teacher(config), open_source(config.data), config, to_path(workdir))
