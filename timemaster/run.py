"""A run's folder and voice: config, metrics, TensorBoard or wandb, rollouts, console line, progress bar, Ctrl-C.

checkpoints/<project>/<experiment>/
    config.yaml  overrides.yaml  metrics.jsonl  tensorboard/  rollouts/step_<N>.jsonl  global_step_<N>/  eval/step_<N>/
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import yaml
from tqdm import tqdm

from timemaster.backends.checkpoint import begin, commit, latest, no_space, read_state
from timemaster.cli import overrides
from timemaster.config import Config, run_dir, world_size
from timemaster.data.media import web_image
from timemaster.judge import encoded
from timemaster.tasks import Task, load_tasks, predict
from timemaster.types import Group, InputError, Media, WorkerDied

if TYPE_CHECKING:
    from timemaster.workers import Workers

log = logging.getLogger(__name__)


class ConsoleHandler(logging.Handler):
    """Log lines that do not tear the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


def setup_logging() -> None:
    """Our lines bare, warnings marked; other libraries only from errors on."""
    handler = ConsoleHandler()
    handler.setFormatter(_Format())
    logging.basicConfig(level=logging.ERROR, handlers=[handler], force=True)
    for name in ("timemaster", "recipes", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)


class _Format(logging.Formatter):
    """Minutes and seconds since the program started, then the message; warnings and errors are marked."""

    def format(self, record: logging.LogRecord) -> str:
        mark = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        if not record.getMessage().strip() or record.getMessage().startswith((" ", "\n")):
            return record.getMessage()  # a line of a table
        minutes, seconds = divmod(int(record.relativeCreated / 1000), 60)
        return f"{minutes:02d}:{seconds:02d} {mark}{super().format(record)}"


class Run:
    """One run on disk and on the console. Use as a context; `stop_requested` turns True on Ctrl-C."""

    def __init__(self, cfg: Config, mode: str) -> None:
        self.cfg, self.mode = cfg, mode
        self.folder = Path(run_dir(cfg))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.identity: dict[str, Any] = {}  # what a run must keep to be continued; set by `resume_point`
        self.tasks = load_tasks(cfg.data.recipes)
        self.stop_requested = False
        self.seconds: dict[str, float] = {}
        self._bar: tqdm[Any] | None = None
        self._sinks: list[Any] = []
        self._old_handler: Any = None

    def __enter__(self) -> Run:
        if self.mode == "eval":  # leaves the record of the training run alone, and has nothing to save on Ctrl-C
            return self
        if self.cfg.trainer.resume_mode == "disable" and latest(self.folder):
            raise InputError(
                f"{self.folder} already holds {latest(self.folder)} and trainer.resume_mode=disable: remove the "
                "folder, choose another trainer.experiment_name, or set trainer.resume_mode=auto to continue it."
            )
        write_config(self.folder, self.cfg)
        self._sinks = [TensorBoard(self.folder)] if "tensorboard" in self.cfg.trainer.logger else []
        if "wandb" in self.cfg.trainer.logger:
            self._sinks.append(Wandb(self.cfg, self.folder))
        self._old_handler = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        if self._old_handler is not None:
            signal.signal(signal.SIGINT, self._old_handler)
        if self._bar is not None:
            self._bar.close()
        for sink in self._sinks:
            sink.close()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        log.warning("Ctrl-C: this step is finished and saved, then the run ends. Press again to end at once.")

    def say(self, text: str) -> None:
        """A line on the console."""
        log.info("%s", text)

    def resume_point(self, num_rows: int) -> tuple[str, int]:
        """(checkpoint folder, step) to continue from, ("", 0) for a new run.

        Raises InputError when the checkpoint is of another kind of run, or its rows came in another order.
        """
        data = self.cfg.data
        self.identity = {"mode": self.mode, "rows": num_rows, "train_batch_size": data.train_batch_size}
        self.identity |= {"seed": data.seed, "shuffle": data.shuffle, "mixture": dict(data.mixture)}
        model = self.cfg.model.path  # from here, so that a project may be moved
        self.identity |= {"modality": data.modality, "model": os.path.relpath(model) if os.path.isdir(model) else model}
        found = latest(self.folder)
        if found is None:
            self._forget_after(0)
            return "", 0
        state = read_state(found)
        changed = [f"{k} {state[k]!r}, now {v!r}" for k, v in self.identity.items() if state.get(k, v) != v]
        if changed:
            raise InputError(
                f"{found} cannot be continued: it was written with {'; '.join(changed)}. Restore these, or choose "
                "another trainer.experiment_name."
            )
        step = int(state["step"])
        self._forget_after(step)
        log.info("resuming after step %d from %s", step, found)
        return str(found), step

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
        """Drop metrics rows and rollouts of steps after `step`: a resumed run does them again."""
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
        (folder / "media").mkdir(parents=True, exist_ok=True)
        with open(folder / f"step_{step}.jsonl", "w", encoding="utf-8") as file:
            for group, own in list(zip(groups, advantages, strict=True))[:num_shown]:
                rows = rollout_rows(group, self.tasks.get(group.example.data_source))
                for row, advantage in zip(rows, own, strict=True):
                    file.write(json.dumps({**row, "step": step, "advantage": advantage}) + "\n")
        for media in (media for group in groups[:num_shown] for media in images(group)):
            path = folder / "media" / media.uid
            if not path.exists():
                path.write_bytes(web_image(encoded(media))[1])


def due(cfg: Config, step: int) -> bool:
    """Whether a checkpoint is to be written after `step`."""
    return bool(cfg.trainer.save_freq) and step % cfg.trainer.save_freq == 0


def save(run: Run, workers: Workers, step: int) -> None:
    """Write the checkpoint of a step: temporary name, sync, rename, then prune. Sharded state needs all ranks."""
    started = time.perf_counter()
    folder = begin(run.folder, step, workers.checkpoint_bytes)
    try:
        workers.save(str(folder))
        state = {"step": step, "updates_done": workers.updates_done, **run.identity}
        final = commit(folder, state, world_size(run.cfg), run.cfg.trainer.max_ckpt_to_keep)
    except (WorkerDied, OSError) as error:
        if "No space left" not in str(error):
            raise
        raise no_space(run.folder, step, workers.checkpoint_bytes) from error
    log.info("saved %s (%.1f s)", final, time.perf_counter() - started)


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


def rollout_rows(group: Group, task: Task | None) -> list[dict[str, Any]]:
    """A group as JSON rows, with what its task reads in the answer; `media` are the names of its images, by content."""
    prompt = "\n".join(part.text or f"[{part.kind}]" for m in group.example.messages for part in m.parts)
    return [
        {
            "id": rollout.id,
            **({"prediction": predict(task, rollout.text)} if task else {}),
            "data_source": group.example.data_source,
            "prompt": prompt,
            "media": [media.uid for media in rollout.media],
            "response": rollout.text,
            "truth": group.example.answer,
            "score": rollout.score.total if rollout.score else None,
            "parts": rollout.score.parts if rollout.score else {},
            "error": rollout.score.error if rollout.score else "",
            "unknown": list(rollout.score.unknown) if rollout.score else [],
            "tokens": sum(rollout.mask),
            "finish_reason": rollout.finish_reason,
        }
        for rollout in group.rollouts
    ]


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix("_mean")


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class TensorBoard:
    """TensorBoard events under the run's folder."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary import Writer

        self._writer = Writer(str(folder / "tensorboard"))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step=step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """Weights & Biases, when trainer.logger names it."""

    def __init__(self, cfg: Config, folder: Path) -> None:
        try:
            import wandb
        except ImportError as error:
            raise InputError("trainer.logger has wandb, which is not installed: uv pip install wandb") from error
        names = {"project": cfg.trainer.project_name, "name": cfg.trainer.experiment_name}
        known = folder / "wandb_id"  # a resumed run goes on in the same curves
        one = known.read_text(encoding="utf-8") if known.exists() else None
        self._run = wandb.init(dir=str(folder), config=asdict(cfg), id=one, resume="allow", **names)
        known.write_text(self._run.id, encoding="utf-8")

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()
