"""A run's folder and what it reports: config, metrics, rollouts, console, progress bar, checkpoints, signals.

A training run locks its folder before it changes anything there. It keeps the lock until it ends.

checkpoints/<project>/<experiment>/
    config.yaml  overrides.yaml  metrics.jsonl  tensorboard/  rollouts/step_<N>.jsonl  global_step_<N>/  eval/step_<N>/
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import yaml
from tqdm import tqdm

from timemaster.config import Config, run_dir
from timemaster.config.overrides import overrides
from timemaster.data.stream import Order
from timemaster.judge import ChatRefused, encoded
from timemaster.media.images import web_image
from timemaster.metrics.answers import to_row
from timemaster.metrics.evaluation import answers_of
from timemaster.run.checkpoints import begin, checkpoints, commit, latest, no_space, read_state
from timemaster.run.inputs import forget_lists, rows_identity
from timemaster.run.sinks import Sink, make_sinks
from timemaster.run.step_names import by_step
from timemaster.system.files import replacing
from timemaster.system.locks import folder_lock
from timemaster.system.signals import handled
from timemaster.tasks import evaluations_of, load_tasks
from timemaster.types import Example, Group, InputError, Media, WorkerDied

if TYPE_CHECKING:
    from timemaster.workers.handle import Workers

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """Where a run continues. Example: ResumePoint(checkpoint="…/global_step_40", step=40, updates_done=80)"""

    checkpoint: str = ""  # its folder; "" for a new run
    step: int = 0  # the last step that is done
    updates_done: int = 0  # optimizer updates up to that step


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """Which steps a run does. Example: StepPlan(num_rows=768, total=72, resume=ResumePoint())"""

    num_rows: int  # rows that the run trains on
    total: int  # steps of the run, those before `resume` included
    resume: ResumePoint


class Run:
    """One run on disk and on the console. Use it in a `with`. `stop_requested` becomes True on Ctrl-C and SIGTERM."""

    def __init__(self, cfg: Config, mode: str) -> None:
        self.cfg, self.mode = cfg, mode
        self.folder = Path(run_dir(cfg))
        self.identity: dict[str, Any] = {}  # what must not change when the run is resumed; set by `resume_point`
        self.steps_done = self.steps_saved = 0
        self.tasks = load_tasks(cfg.data.recipes)
        self.evaluations = evaluations_of(self.tasks)
        self.stop_requested = False
        self.seconds: dict[str, float] = {}
        self._bar: tqdm[Any] | None = None
        self._sinks: list[Sink] = []
        self._open = ExitStack()

    def __enter__(self) -> Run:
        if self.mode == "eval":  # changes nothing of the training run, and has nothing to save on Ctrl-C
            return self
        with ExitStack() as opened:
            opened.enter_context(folder_lock(self.folder, "a training run"))
            if self.cfg.trainer.resume_mode == "disable" and (existing := latest(self.folder)):
                raise InputError(
                    f"{self.folder} already holds {existing} and trainer.resume_mode=disable: remove the folder, "
                    "choose another trainer.experiment_name, or set trainer.resume_mode=auto to continue it."
                )
            forget_lists(self.folder)
            self._sinks = make_sinks(self.cfg, self.folder)
            opened.callback(self._close_sinks)
            opened.enter_context(handled(self._interrupt))
            self._open = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        self._open.close()

    def _close_sinks(self) -> None:
        with full_disk(self.folder):
            for sink in self._sinks:
                sink.close()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGALRM:
            log.warning("the step takes longer than trainer.stop_seconds: the run ends without it")
        if self.stop_requested or number == signal.SIGALRM or self._bar is None:  # no step has begun
            raise KeyboardInterrupt(name)
        self.stop_requested = True
        limit = ""
        if number == signal.SIGTERM and self.cfg.trainer.stop_seconds:
            signal.setitimer(signal.ITIMER_REAL, self.cfg.trainer.stop_seconds)
            limit = f", if it takes no more than trainer.stop_seconds={self.cfg.trainer.stop_seconds:g}"
        log.warning(
            "%s: this step is finished and saved%s, then the run ends. A second signal ends it at once.", name, limit
        )

    def say(self, text: str) -> None:
        """A line on the console."""
        log.info("%s", text)

    def plan_steps(self, order: Order, rows: Sequence[Example]) -> StepPlan:
        """Which steps to do over `rows`. Raises what `resume_point` raises."""
        t = self.cfg.trainer
        total = t.total_training_steps or order.num_steps(t.total_epochs)
        return StepPlan(num_rows=order.num_rows, total=total, resume=self.resume_point(rows_identity(rows)))

    def plan_lines(self, plan: StepPlan) -> list[tuple[str, object]]:
        """What the console shows of the plan before the first step: (name, value)."""
        epochs = plan.num_rows / self.cfg.data.train_batch_size
        steps = f"{plan.resume.step} done, {plan.total} in all ({epochs:.1f} an epoch)"
        return [("run folder", self.folder), ("train rows", plan.num_rows), ("steps", steps)]

    def resume_point(self, rows: dict[str, Any]) -> ResumePoint:
        """Where to continue from. Drops what was logged after that point. `rows`: see `inputs.rows_identity`.

        Raises InputError when the checkpoint is of another kind of run, or of other rows or another order of them.
        """
        data = self.cfg.data
        self.identity = {"mode": self.mode, **rows, "train_batch_size": data.train_batch_size}
        self.identity |= {"seed": data.seed, "shuffle": data.shuffle, "mixture": dict(data.mixture)}
        model = self.cfg.model.path  # a relative path, so that a project may be moved
        self.identity |= {"modality": data.modality, "model": os.path.relpath(model) if os.path.isdir(model) else model}
        checkpoint, point = latest(self.folder), ResumePoint()
        if checkpoint is not None:
            point = self._check_same(checkpoint, rows)
            log.info("resuming after step %d from %s", point.step, checkpoint)
        self._forget_after(point.step)
        self.steps_done = self.steps_saved = point.step
        with full_disk(self.folder):
            write_config(self.folder, self.cfg)
        return point

    def _check_same(self, checkpoint: Path, rows: dict[str, Any]) -> ResumePoint:
        """The point where a checkpoint was written. Raises InputError when it is from a different run."""
        state = read_state(checkpoint)
        changed = _changes(state, self.identity)
        if not rows.keys() <= state.keys():
            log.warning(
                "%s was written by an older version and has no digest of its rows: they are taken as the same",
                checkpoint,
            )
        if changed:
            raise InputError(
                f"{checkpoint} cannot be continued: it was written with {'; '.join(changed)}. Restore these, or choose "
                "another trainer.experiment_name."
            )
        return ResumePoint(checkpoint=str(checkpoint), step=state["step"], updates_done=state["updates_done"])

    def start_bar(self, plan: StepPlan) -> None:
        """Show the progress over steps, with the time left."""
        settings: dict[str, Any] = {"desc": self.mode, "unit": "step", "dynamic_ncols": True, "disable": None}
        self._bar = tqdm(total=plan.total, initial=plan.resume.step, **settings)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase of the current step."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def log_step(self, step: int, metrics: dict[str, float], shown: Sequence[str]) -> None:
        """The step is done: write its metrics everywhere, and those in `shown` as one line to the console."""
        self.seconds["step"] = sum(self.seconds.values())
        row = {"step": step, **metrics, **{f"seconds/{name}": value for name, value in self.seconds.items()}}
        with full_disk(self.folder):
            with open(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            for sink in self._sinks:
                sink.write(step, {name: value for name, value in row.items() if name != "step"})
        if "console" in self.cfg.trainer.logger:
            parts = [f"{_short(name)} {_number(row[name])}" for name in shown if name in row]
            phases = " ".join(f"{name} {value:.1f}" for name, value in self.seconds.items() if name != "step")
            log.info("step %d | %s | %.1f s (%s)", step, " | ".join(parts), self.seconds["step"], phases)
        if self._bar is not None:
            self._bar.update(1)
        self.seconds = {}
        self.steps_done = step

    def _forget_after(self, step: int) -> None:
        """Remove metrics, events and rollouts of steps after `step`: a resumed run does these steps again."""
        for sink in self._sinks:
            sink.forget_after(step)
        for logged_step, rollouts in by_step(self.folder / "rollouts", "step_*.jsonl").items():
            if logged_step > step:
                rollouts.unlink()
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        rows = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        with replacing(path) as temporary:
            temporary.write_text("".join(row + "\n" for row in rows), encoding="utf-8")

    def write_rollouts(self, step: int, groups: Sequence[Group], advantages: Sequence[Sequence[float | None]]) -> None:
        """Write rollouts/step_<N>.jsonl: prompts, answers, scores, advantages (null: the answer is not trained on).

        Whole groups are written, because an answer's advantage comes from the comparison with its group. Each image is
        written once, to rollouts/media/.
        """
        num_shown = -(-self.cfg.trainer.rollouts_to_log // max(len(groups[0].rollouts), 1))
        folder = self.folder / "rollouts"
        with full_disk(self.folder):
            (folder / "media").mkdir(parents=True, exist_ok=True)
            with open(folder / f"step_{step}.jsonl", "w", encoding="utf-8") as file:
                for group, values in list(zip(groups, advantages, strict=True))[:num_shown]:
                    answers = answers_of(group, self.evaluations.get(group.example.data_source))
                    for answer, advantage in zip(answers, values, strict=True):
                        file.write(json.dumps({**to_row(answer), "step": step, "advantage": advantage}) + "\n")
            for media in (media for group in groups[:num_shown] for media in images(group)):
                path = folder / "media" / media.uid
                if not path.exists():
                    with replacing(path) as temporary:
                        temporary.write_bytes(web_image(encoded(media))[1])


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """How a run differs from its checkpoint, in words. Example: ["seed 1, now 2", "other answers in its rows"]"""
    differing = [name for name, value in now.items() if before.get(name, value) != value]
    out = [f"{name} {before[name]!r}, now {now[name]!r}" for name in differing if not name.startswith("row_")]
    if "rows" not in differing:  # with another number of rows every digest differs too
        if "row_set" in differing:
            parts = [name for name in differing if name.startswith("row_") and name != "row_set"]
            out += [f"other {name.removeprefix('row_')} in its rows" for name in parts]
        elif any(name.startswith("row_") for name in differing):
            out.append("its rows in another order")
    return out


def save_due(cfg: Config, step: int) -> bool:
    """Whether trainer.save_freq asks for a checkpoint after `step`."""
    return bool(cfg.trainer.save_freq) and step % cfg.trainer.save_freq == 0


def validation_due(cfg: Config, step: int, total: int) -> bool:
    """Whether trainer.test_freq asks for a validation after `step`. If it is set, the last step has one, too."""
    return bool(cfg.trainer.test_freq) and (step == total or step % cfg.trainer.test_freq == 0)


def save(run: Run, workers: Workers, step: int) -> None:
    """Write the checkpoint of a step; see timemaster/run/checkpoints.py. All ranks take part."""
    signal.setitimer(signal.ITIMER_REAL, 0)  # trainer.stop_seconds limits the step, not the checkpoint
    started = time.perf_counter()
    folder = begin(run.folder, step, workers.checkpoint_bytes)
    try:
        files = workers.save(str(folder))
        state = {"step": step, "updates_done": workers.updates_done, **run.identity}
        final = commit(folder, state, files, run.cfg.trainer.max_ckpt_to_keep)
    except (WorkerDied, OSError) as error:
        if not any(os.strerror(number) in str(error) for number in FULL):
            raise
        raise no_space(run.folder, step, workers.checkpoint_bytes) from error
    run.steps_saved = step
    log.info("saved %s (%.1f s)", final, time.perf_counter() - started)


@contextmanager
def saved_when_judge_refuses(run: Run, workers: Workers) -> Iterator[None]:
    """A judge that refuses permanently ends the run. The finished steps are saved first."""
    try:
        yield
    except ChatRefused:
        if run.steps_done > run.steps_saved:
            save(run, workers, run.steps_done)
        raise


def is_done(run: Run, plan: StepPlan) -> bool:
    """Whether all steps of the plan are done already. If so, a line on the console names the setting to raise."""
    t, done = run.cfg.trainer, plan.resume.step
    if done < plan.total:
        return False
    name = f"trainer.total_training_steps={t.total_training_steps}"
    if not t.total_training_steps:
        name = f"trainer.total_epochs={t.total_epochs}, which is {plan.total} steps"
    run.say(f"nothing to do: {done} steps are done, and {name}. Raise it to go on.")
    return True


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk or the quota is full, or a file is at its size limit


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Raises InputError, which says what to do, when a write below `folder` fails because the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        whole = checkpoints(folder)
        kept = f"The last checkpoint is {whole[-1][1]}" if whole else "There is no checkpoint yet"
        raise InputError(
            f"{folder} cannot be written any more: {error.strerror}. {kept}; free some space and start the same "
            "command again. trainer.rollouts_to_log and trainer.max_ckpt_to_keep lower what a run takes."
        ) from error


def write_config(folder: Path, cfg: Config) -> None:
    """Write all settings as config.yaml, and those of the command line, as they were typed, as overrides.yaml."""
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(cfg), sort_keys=False), encoding="utf-8")
    typed = yaml.safe_dump(overrides(), allow_unicode=True, width=math.inf)
    (folder / "overrides.yaml").write_text(typed, encoding="utf-8")


def _step_of(line: str) -> float:
    """The step of a line of metrics.jsonl; infinity for a line that was cut short by a full disk or a kill."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def images(group: Group) -> list[Media]:
    """The distinct images of a group's prompt and turns."""
    by_uid = {media.uid: media for rollout in group.rollouts for media in rollout.media if media.kind == "image"}
    return list(by_uid.values())


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix("_mean")


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
