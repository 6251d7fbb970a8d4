"""Supervised fine-tuning (SFT) on rows that end with an assistant turn.

The prompt and its images are context. The assistant's tokens and its end of turn are trained. One optimizer update
takes data.train_batch_size rows. Samples, backend and checkpoints are the same as in GRPO.

    timemaster sft data.train_files=data/ctu_image/sft.parquet model.path=... trainer.experiment_name=sft
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from timemaster.cli import launch
from timemaster.config import Config

if TYPE_CHECKING:
    from timemaster.run.folder import Run, StepPlan
    from timemaster.tokens.render import Renderer
    from timemaster.types import Sample
    from timemaster.workers.handle import Workers

SHOWN = ("sft/loss", "sft/entropy", "sft/grad_norm", "sft/lr", "val/loss", "throughput/tokens_per_second")


def train(cfg: Config) -> None:
    """Train until the last step, Ctrl-C or a failure. A run that has a checkpoint continues from it."""
    from timemaster.run.folder import Run, is_done, save, save_due, validation_due
    from timemaster.run.inputs import check_inputs, load_samples, make_renderer, order_of_rows
    from timemaster.workers.handle import Workers

    cfg = check_inputs(cfg, cfg.data.train_files + cfg.data.val_files)
    with Run(cfg, "sft") as run, Workers(cfg, engine="", trainers=True) as workers:
        renderer = make_renderer(cfg)
        rows = load_samples(cfg, cfg.data.train_files, renderer, run.folder)
        val_samples = [row.sample for row in load_samples(cfg, cfg.data.val_files, renderer, run.folder)]
        order = order_of_rows(cfg, [row.example for row in rows])
        plan = run.plan_steps(order, [row.example for row in rows])
        if is_done(run, plan):
            return
        start_workers(run, workers, renderer, rows[0].sample, plan)
        run.start_bar(plan)
        for step in range(plan.resume.step + 1, plan.total + 1):
            batch = [rows[i].sample for i in order.batch(step - 1)]
            with run.phase("update"):
                update = workers.update_sft(batch)
            metrics = step_metrics(batch, update, run.seconds["update"]) | workers.peak_memory()
            if val_samples and validation_due(cfg, step, plan.total):
                with run.phase("validate"):
                    metrics |= validate(workers, val_samples)
            run.log_step(step, metrics, SHOWN)
            is_last = step == plan.total or run.stop_requested
            if is_last or save_due(cfg, step):
                save(run, workers, step)
            if is_last:
                break


def start_workers(run: Run, workers: Workers, renderer: Renderer, first: Sample, plan: StepPlan) -> None:
    """Start the trainer ranks and describe the run on the console. `first`: the row that is shown."""
    from timemaster.backends.spec import TrainerSpec
    from timemaster.models.folder import load_model_config
    from timemaster.run.inputs import decoded, describe
    from timemaster.run.memory_estimate import report
    from timemaster.tokens.plan import describe_micro_batches

    cfg, resume = run.cfg, plan.resume
    if workers.device == "cuda":
        for line in report(cfg, load_model_config(cfg.model.path, cfg.model.revision), "sft", workers.gpu_gib()):
            run.say(line)
    run.say(f"starting trainer ranks on {workers.device}")
    training = TrainerSpec(
        num_updates=plan.total,
        with_reference=False,
        checkpoint=resume.checkpoint,
        updates_done=resume.updates_done,
    )
    table = workers.start(None, training)
    lines: list[tuple[str, object]] = [
        *run.plan_lines(plan),
        ("rows a step", cfg.data.train_batch_size),
        ("micro-batches", describe_micro_batches(cfg, workers.device)),
    ]
    describe(cfg, lines, table, decoded(renderer, first.token_ids))


def step_metrics(batch: list[Sample], update: dict[str, float], seconds: float) -> dict[str, float]:
    """A step's metrics. `seconds`: the duration of the update, for the throughput."""
    tokens = sum(len(sample.token_ids) for sample in batch)
    metrics = {
        f"sft/{name}": value for name, value in without_single_source(update, batch).items() if name != "update_seconds"
    }
    return metrics | {"throughput/tokens_per_second": tokens / seconds}


def validate(workers: Workers, samples: list[Sample]) -> dict[str, float]:
    """Mean loss per token over the validation rows; with several data sources, also for each source."""
    means = without_single_source(workers.evaluate_sft(samples), samples)
    return {f"val/{name}": value for name, value in means.items() if name.partition("@")[0] == "loss"}


def without_single_source(means: dict[str, float], samples: list[Sample]) -> dict[str, float]:
    """`means`, without the entries name@data_source when there is only one source."""
    several = len({sample.data_source for sample in samples}) > 1
    return {name: value for name, value in means.items() if several or "@" not in name}


def main(cfg: Config) -> None:
    """Train."""
    train(cfg)


if __name__ == "__main__":
    launch(main, "sft")
