"""A run's folder and voice: config, metrics, TensorBoard or wandb, rollouts, console line, progress bar, signals.

A training run holds the lock of its folder from before it changes anything there until it ends.

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
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import yaml
from tqdm import tqdm

from timemaster.backends.checkpoint import begin, checkpoints, commit, latest, no_space, read_state
from timemaster.config import Config, run_dir
from timemaster.config.overrides import overrides
from timemaster.judge import encoded
from timemaster.media.images import web_image
from timemaster.metrics.answers import to_row
from timemaster.metrics.evaluation import answers_of
from timemaster.run.inputs import forget_lists
from timemaster.run.sinks import TensorBoard, Wandb
from timemaster.system.locks import folder_lock
from timemaster.system.signals import handled
from timemaster.tasks import evaluations_of, load_tasks
from timemaster.types import Group, InputError, Media, WorkerDied

if TYPE_CHECKING:
    from timemaster.workers.handle import Workers

log = logging.getLogger(__name__)


class Run:
    """One run on disk and on the console. Use as a context; `stop_requested` turns True on Ctrl-C and SIGTERM."""

    def __init__(self, cfg: Config, mode: str) -> None:
        self.cfg, self.mode = cfg, mode
        self.folder = Path(run_dir(cfg))
        self.identity: dict[str, Any] = {}  # what a run must keep to be continued; set by `resume_point`
        self.evaluations = evaluations_of(load_tasks(cfg.data.recipes))
        self.stop_requested = False
        self.seconds: dict[str, float] = {}
        self._bar: tqdm[Any] | None = None
        self._sinks: list[Any] = []
        self._open = ExitStack()

    def __enter__(self) -> Run:
        if self.mode == "eval":  # leaves the record of the training run alone, and has nothing to save on Ctrl-C
            return self
        with ExitStack() as opened:
            opened.enter_context(folder_lock(self.folder, "a training run"))
            if self.cfg.trainer.resume_mode == "disable" and (found := latest(self.folder)):
                raise InputError(
                    f"{self.folder} already holds {found} and trainer.resume_mode=disable: remove the folder, choose "
                    "another trainer.experiment_name, or set trainer.resume_mode=auto to continue it."
                )
            forget_lists(self.folder)
            if "tensorboard" in self.cfg.trainer.logger:
                self._sinks.append(TensorBoard(self.folder))
            if "wandb" in self.cfg.trainer.logger:
                self._sinks.append(Wandb(self.cfg, self.folder))
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
        if self.stop_requested or number == signal.SIGALRM or self._bar is None:  # no step has begun: nothing to save
            raise KeyboardInterrupt(name)
        self.stop_requested = True
        limit = ""
        if number == signal.SIGTERM and self.cfg.trainer.stop_seconds:
            signal.setitimer(signal.ITIMER_REAL, self.cfg.trainer.stop_seconds)
            limit = f", if it takes no more than trainer.stop_seconds={self.cfg.trainer.stop_seconds:g}"
        log.warning(
            "%s: this step is finished and saved%s, then the run ends. A second one ends it at once.", name, limit
        )

    def say(self, text: str) -> None:
        """A line on the console."""
        log.info("%s", text)

    def resume_point(self, rows: dict[str, Any]) -> tuple[str, int]:
        """(checkpoint folder, step) to continue from, ("", 0) for a new run. `rows`: see `inputs.rows_identity`.

        Raises InputError when the checkpoint is of another kind of run, or of other rows or another order of them.
        """
        data = self.cfg.data
        self.identity = {"mode": self.mode, **rows, "train_batch_size": data.train_batch_size}
        self.identity |= {"seed": data.seed, "shuffle": data.shuffle, "mixture": dict(data.mixture)}
        model = self.cfg.model.path  # from here, so that a project may be moved
        self.identity |= {"modality": data.modality, "model": os.path.relpath(model) if os.path.isdir(model) else model}
        found, step = latest(self.folder), 0
        if found is not None:
            step = self._check_same(found, rows)
            log.info("resuming after step %d from %s", step, found)
        self._forget_after(step)
        with full_disk(self.folder):
            write_config(self.folder, self.cfg)
        return str(found or ""), step

    def _check_same(self, found: Path, rows: dict[str, Any]) -> int:
        """The step of a checkpoint. InputError when it is not of a run like this one."""
        state = read_state(found)
        changed = _changes(state, self.identity)
        if not rows.keys() <= state.keys():
            log.warning("%s is of an older version, which kept no digest of its rows: taken as the same", found)
        if changed:
            raise InputError(
                f"{found} cannot be continued: it was written with {'; '.join(changed)}. Restore these, or choose "
                "another trainer.experiment_name."
            )
        return int(state["step"])

    def start_bar(self, first: int, total: int) -> None:
        """Show progress over steps, with the time left."""
        self._bar = tqdm(total=total, initial=first, desc=self.mode, unit="step", dynamic_ncols=True, disable=None)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase of the current step."""
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def log_step(self, step: int, metrics: dict[str, float], shown: Sequence[str]) -> None:
        """Write a step's metrics everywhere and one line with those in `shown` to the console."""
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

    def _forget_after(self, step: int) -> None:
        """Drop metrics rows, events and rollouts of steps after `step`: a resumed run does them again."""
        for sink in self._sinks:
            sink.forget_after(step)
        for rollouts in self.folder.glob("rollouts/step_*.jsonl"):
            if int(rollouts.stem[5:]) > step:
                rollouts.unlink()
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        rows = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
        temporary.replace(path)

    def write_rollouts(self, step: int, groups: Sequence[Group], advantages: Sequence[Sequence[float | None]]) -> None:
        """rollouts/step_<N>.jsonl: what was asked, answered, scored and learnt; the images in rollouts/media/, once.

        Whole groups, so that an answer stands beside all it was compared with; advantage null: not learnt from.
        """
        num_shown = -(-self.cfg.trainer.rollouts_to_log // max(len(groups[0].rollouts), 1))
        folder = self.folder / "rollouts"
        with full_disk(self.folder):
            (folder / "media").mkdir(parents=True, exist_ok=True)
            with open(folder / f"step_{step}.jsonl", "w", encoding="utf-8") as file:
                for group, own in list(zip(groups, advantages, strict=True))[:num_shown]:
                    answers = answers_of(group, self.evaluations.get(group.example.data_source))
                    for answer, advantage in zip(answers, own, strict=True):
                        file.write(json.dumps({**to_row(answer), "step": step, "advantage": advantage}) + "\n")
            for media in (media for group in groups[:num_shown] for media in images(group)):
                path = folder / "media" / media.uid
                if not path.exists():
                    half = path.with_suffix(".tmp")  # a kill must not leave a part of a picture under its name
                    half.write_bytes(web_image(encoded(media))[1])
                    half.replace(path)


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of a run differs from its checkpoint, in words. Example: ["seed 1, now 2", "other answers in its rows"]"""
    differing = [name for name, value in now.items() if before.get(name, value) != value]
    out = [f"{name} {before[name]!r}, now {now[name]!r}" for name in differing if not name.startswith("row_")]
    if "rows" not in differing:  # else every digest differs, too
        if "row_set" in differing:
            out += [
                f"other {name[4:]} in its rows" for name in differing if name.startswith("row_") and name != "row_set"
            ]
        elif any(name.startswith("row_") for name in differing):
            out.append("its rows in another order")
    return out


def due(cfg: Config, step: int) -> bool:
    """Whether a checkpoint is to be written after `step`."""
    return bool(cfg.trainer.save_freq) and step % cfg.trainer.save_freq == 0


def save(run: Run, workers: Workers, step: int) -> None:
    """Write the checkpoint of a step: temporary name, sync, rename, then prune. Sharded state needs all ranks."""
    signal.setitimer(signal.ITIMER_REAL, 0)  # the limit after SIGTERM is that of a step
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
    log.info("saved %s (%.1f s)", final, time.perf_counter() - started)


def is_done(run: Run, first: int, total: int) -> bool:
    """Whether the `total` steps asked for are done already; then a line says which setting decides."""
    t = run.cfg.trainer
    if first < total:
        return False
    name = f"trainer.total_training_steps={t.total_training_steps}"
    if not t.total_training_steps:
        name = f"trainer.total_epochs={t.total_epochs}, which is {total} steps"
    run.say(f"nothing to do: {first} steps are done, and {name}. Raise it to go on.")
    return True


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the quota, the limit of a file's size


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A write below `folder` that finds no room becomes an InputError that says what to do."""
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
    """The resolved settings as config.yaml; those that the command line gave, in its words, as overrides.yaml."""
    (folder / "config.yaml").write_text(yaml.safe_dump(asdict(cfg), sort_keys=False), encoding="utf-8")
    given = yaml.safe_dump(overrides(), allow_unicode=True, width=math.inf)
    (folder / "overrides.yaml").write_text(given, encoding="utf-8")


def _step_of(line: str) -> float:
    """The step of a row of metrics.jsonl; infinity for a line that a full disk or a kill cut short."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def images(group: Group) -> list[Media]:
    """The distinct images of a group's prompt and turns."""
    found = {media.uid: media for rollout in group.rollouts for media in rollout.media if media.kind == "image"}
    return list(found.values())


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix("_mean")


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
