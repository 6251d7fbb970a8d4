"""Where a step's metrics go beside metrics.jsonl: TensorBoard, Weights & Biases."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from timemaster.config import Config
from timemaster.config.registries import SINKS, load
from timemaster.types import InputError


class Sink(Protocol):
    """Where metrics are written. Made from the run's settings and folder; `SINKS` has its import path and name."""

    def forget_after(self, step: int) -> None:
        """Remove what was written for steps after `step`: a resumed run does them again."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of a step, so that they survive when the process is killed."""

    def close(self) -> None:
        """Called once, at the end of the run."""


def make_sinks(cfg: Config, folder: Path) -> list[Sink]:
    """The sinks that trainer.logger names. The console is none of them."""
    return [load(SINKS[name])(cfg, folder) for name in cfg.trainer.logger if name in SINKS]


class TensorBoard:
    """TensorBoard events under the run's folder."""

    def __init__(self, cfg: Config, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: Any = None  # opened at the first event, after `forget_after`

    def forget_after(self, step: int) -> None:
        """Drop events of steps after `step`."""
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        for path in self._folder.glob("events.out.tfevents.*"):
            records = list(RawEventFileLoader(str(path)).Load())  # up to where a kill cut one
            kept = [record for record in records if Event.FromString(record).step <= step]
            if len(kept) == len(records):
                continue
            half = path.with_name(f"tmp_{path.name}")
            with open(half, "wb") as file:
                writer = RecordWriter(file)
                for record in kept:
                    writer.write(record)
                writer.flush()
            half.replace(path)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        from tensorboard.summary import Writer

        self._writer = self._writer or Writer(str(self._folder))
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step=step)
        self._writer.flush()  # a killed run keeps its curves, and a full disk is seen here

    def close(self) -> None:
        if self._writer is not None:
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

    def forget_after(self, step: int) -> None:
        """Nothing to do: the service leaves out steps that it has."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()
