"""Supervised fine-tuning on rows that end with an assistant turn: the same samples, backend and checkpoints as GRPO.

Prompt and image tokens are context; the assistant's tokens and its end of turn are trained. One optimizer step takes
data.train_batch_size rows.

    timemaster sft data.train_files=data/ctu_image/sft.parquet model.path=... trainer.experiment_name=sft
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from timemaster.cli import launch
from timemaster.config import Config

if TYPE_CHECKING:
    from timemaster.types import Sample
    from timemaster.workers.handle import Workers

SHOWN = ("sft/loss", "sft/entropy", "sft/grad_norm", "sft/lr", "val/loss", "throughput/tokens_per_second")


def train(cfg: Config) -> None:
    """Train until the last step, Ctrl-C or a failure; a run that has a checkpoint continues from it."""
    from timemaster.models.folder import load_model_config
    from timemaster.run.folder import Run, due, is_done, save
    from timemaster.run.inputs import (
        check_inputs,
        decoded,
        describe,
        load_samples,
        make_renderer,
        order_of_rows,
        rows_identity,
    )
    from timemaster.run.memory_estimate import report
    from timemaster.tokens.plan import describe_micro_batches
    from timemaster.workers.handle import Workers

    check_inputs(cfg, cfg.data.train_files + cfg.data.val_files)
    with Run(cfg, "sft") as run, Workers(cfg, engine="", trainers=True) as workers:
        renderer = make_renderer(cfg)
        rows = load_samples(cfg, cfg.data.train_files, renderer, run.folder)
        samples = [sample for _, sample in rows]
        val_samples = [sample for _, sample in load_samples(cfg, cfg.data.val_files, renderer, run.folder)]
        stream = order_of_rows(cfg, [example for example, _ in rows])
        total = cfg.trainer.total_training_steps or stream.num_steps(cfg.trainer.total_epochs)
        resume, first = run.resume_point(rows_identity([example for example, _ in rows]))
        if is_done(run, first, total):
            return
        if workers.device == "cuda":
            for line in report(cfg, load_model_config(cfg.model.path, cfg.model.revision), "sft", workers.gpu_gib()):
                run.say(line)
        run.say(f"starting trainer ranks on {workers.device}")
        table = workers.start(None, training=(total, False, resume))
        lines: list[tuple[str, object]] = [
            ("run folder", run.folder),
            ("train rows", stream.num_rows),
            ("steps", f"{first} done, {total} in all ({stream.num_rows / cfg.data.train_batch_size:.1f} an epoch)"),
            ("rows a step", cfg.data.train_batch_size),
            ("micro-batches", describe_micro_batches(cfg, workers.device)),
        ]
        describe(cfg, lines, table, decoded(renderer, samples[0].token_ids))
        run.start_bar(first, total)
        for step in range(first + 1, total + 1):
            batch = [samples[row] for row in stream.batch(step - 1)]
            with run.phase("update"):
                update = workers.update_sft(batch)
            metrics = measure(batch, update, run.seconds["update"]) | workers.peak_memory()
            stop = step == total or run.stop_requested
            if val_samples and cfg.trainer.test_freq and (step == total or step % cfg.trainer.test_freq == 0):
                with run.phase("validate"):
                    metrics |= validate(workers, val_samples)
            run.log_step(step, metrics, SHOWN)
            if stop or due(cfg, step):
                save(run, workers, step)
            if stop:
                break


def measure(batch: list[Sample], update: dict[str, float], seconds: float) -> dict[str, float]:
    """A step's metrics."""
    tokens = sum(len(sample.token_ids) for sample in batch)
    metrics = {f"sft/{name}": value for name, value in mixed(update, batch).items() if name != "update_seconds"}
    return metrics | {"throughput/tokens_per_second": tokens / seconds}


def validate(workers: Workers, samples: list[Sample]) -> dict[str, float]:
    """Mean loss per token over the validation rows, and over those of each data source where there are several."""
    found = mixed(workers.evaluate_sft(samples), samples)
    return {f"val/{name}": value for name, value in found.items() if name.partition("@")[0] == "loss"}


def mixed(means: dict[str, float], samples: list[Sample]) -> dict[str, float]:
    """`means`, with those by data source only where there are several."""
    several = len({sample.data_source for sample in samples}) > 1
    return {name: value for name, value in means.items() if several or "@" not in name}


def main(cfg: Config) -> None:
    """Train."""
    train(cfg)


if __name__ == "__main__":
    launch(main, "sft")
