"""Where a step's metrics are written besides metrics.jsonl: TensorBoard, Weights & Biases."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

from timemaster.config import Config
from timemaster.config.registries import SINKS
from timemaster.system.files import replacing
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
    """The sinks that trainer.logger names. The console is not a sink."""
    return [resolve_name(SINKS[name])(cfg, folder) for name in cfg.trainer.logger if name in SINKS]


class TensorBoard:
    """TensorBoard events under the run's folder."""

    def __init__(self, cfg: Config, folder: Path) -> None:
        self._folder = folder / "tensorboard"
        self._writer: Any = None  # opened at the first event, which comes after `forget_after`

    def forget_after(self, step: int) -> None:
        """Remove the events of steps after `step`."""
        from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        for path in self._folder.glob("events.out.tfevents.*"):
            records = list(RawEventFileLoader(str(path)).Load())  # up to a record that a kill cut short
            kept = [record for record in records if Event.FromString(record).step <= step]
            if len(kept) == len(records):
                continue
            with replacing(path) as temporary, open(temporary, "wb") as file:
                writer = RecordWriter(file)
                for record in kept:
                    writer.write(record)
                writer.flush()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        from tensorboard.summary import Writer

        self._writer = self._writer or Writer(str(self._folder))
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step=step)
        self._writer.flush()  # so that a killed run keeps its curves, and a full disk raises its error here

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
        id_file = folder / "wandb_id"  # a resumed run continues the same curves
        run_id = id_file.read_text(encoding="utf-8") if id_file.exists() else None
        self._run = wandb.init(dir=str(folder), config=asdict(cfg), id=run_id, resume="allow", **names)
        id_file.write_text(self._run.id, encoding="utf-8")

    def forget_after(self, step: int) -> None:
        """Nothing to do: the service ignores steps that it has already."""

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()
