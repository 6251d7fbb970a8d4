"""Group relative policy optimisation (GRPO): the whole training loop.

In each step, engines answer prompts, the answers are scored, scores become advantages, the trainer updates the policy,
and the engines are given the new weights. See workers/handle.py for how each verb is carried out, backends/fsdp.py for
the update, algo/losses.py for the loss. This file knows nothing of GPUs, images or files.

    timemaster grpo --help
    timemaster evaluate ...    the same with trainer.val_only=true: evaluates instead (timemaster/evaluate.py)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from timemaster.cli import launch
from timemaster.config import Config
from timemaster.environments import environment_metrics
from timemaster.metrics.summary import shown_in_training, training_numbers
from timemaster.types import InputError

if TYPE_CHECKING:
    from timemaster.metrics.summary import Evaluations
    from timemaster.run.folder import Run, StepPlan
    from timemaster.tokens.render import Renderer
    from timemaster.types import Group, PromptRow, Sample
    from timemaster.workers.handle import Workers


def train(cfg: Config) -> None:
    """Train until the last step, Ctrl-C or a failure. A run that has a checkpoint continues from it."""
    from timemaster.algo.advantages import to_samples
    from timemaster.evaluate import validate
    from timemaster.rollout.engines import resolve_engine
    from timemaster.run.folder import Run, is_done, save, save_due, saved_when_judge_refuses, validation_due
    from timemaster.run.inputs import check_inputs, load_prompts, make_renderer, order_of_rows
    from timemaster.tasks.scorer import check_rewards
    from timemaster.workers.handle import Workers

    cfg = check_inputs(cfg, cfg.data.train_files + cfg.data.val_files)
    with ExitStack() as opened:
        run = opened.enter_context(Run(cfg, "grpo"))  # first: from here on no other run may write to this folder
        check_rewards(cfg)
        workers = opened.enter_context(Workers(cfg, resolve_engine(cfg.rollout.name), trainers=True))
        renderer = make_renderer(cfg)
        rows = load_prompts(cfg, cfg.data.train_files, renderer, run.folder)
        val_rows = load_prompts(cfg, cfg.data.val_files, renderer, run.folder)
        order = order_of_rows(cfg, [row.example for row in rows])
        plan = run.plan_steps(order, [row.example for row in rows])
        if is_done(run, plan):
            return
        start_workers(run, workers, renderer, rows + val_rows, plan)
        opened.enter_context(saved_when_judge_refuses(run, workers))
        if cfg.trainer.val_before_train and plan.resume.step == 0:
            validate(run, workers, val_rows, step=0)
        run.start_bar(plan)
        for step in range(plan.resume.step + 1, plan.total + 1):
            groups = sample_groups(run, workers, [rows[i] for i in order.batch(step - 1)], step)
            advantages = advantages_of(cfg, groups)
            samples = [to_samples(group, values) for group, values in zip(groups, advantages, strict=True)]
            if cfg.actor.use_kl_loss:
                with run.phase("reference"):
                    samples = with_reference(workers, samples)
            with run.phase("update"):
                updates = [workers.update(mini_batch) for mini_batch in mini_batches(cfg, samples)]
            if updates:
                with run.phase("sync"):
                    workers.sync_weights()
            metrics = step_metrics(groups, updates, sum(run.seconds.values()), run.evaluations) | workers.peak_memory()
            run.write_rollouts(step, groups, advantages)
            try:
                if val_rows and validation_due(cfg, step, plan.total):
                    with run.phase("validate"):
                        metrics |= validate(run, workers, val_rows, step)
            finally:  # the step is done, even if its validation fails
                run.log_step(step, metrics, shown_metrics(run))
            check_logprob_difference(cfg, step, metrics)
            is_last = step == plan.total or run.stop_requested
            if is_last or save_due(cfg, step):
                save(run, workers, step)
            if is_last:
                break


def start_workers(run: Run, workers: Workers, renderer: Renderer, rows: Sequence[PromptRow], plan: StepPlan) -> None:
    """Start engines and trainer ranks, describe the run on the console, and verify the first push of weights."""
    from timemaster.backends.spec import TrainerSpec
    from timemaster.models.folder import load_model_config
    from timemaster.rollout.engines import resolve_engine
    from timemaster.run.inputs import decoded, describe, engine_spec, most_images
    from timemaster.run.memory_estimate import report
    from timemaster.tokens.plan import describe_micro_batches

    cfg, resume = run.cfg, plan.resume
    name = resolve_engine(cfg.rollout.name)
    updates = cfg.data.train_batch_size // cfg.actor.ppo_mini_batch_size * cfg.actor.ppo_epochs
    model = f"{resume.checkpoint}/huggingface" if resume.checkpoint else cfg.model.path
    spec = engine_spec(cfg, workers.device, model, most_images(cfg, rows), renderer.end_of_turn)
    if workers.device == "cuda" and name == "vllm":  # the hf engine reserves no share of a GPU
        for line in report(cfg, load_model_config(cfg.model.path, cfg.model.revision), "grpo", workers.gpu_gib()):
            run.say(line)
    run.say(f"starting engines and trainer ranks on {workers.device}")
    training = TrainerSpec(
        num_updates=plan.total * updates,
        with_reference=cfg.actor.use_kl_loss,
        checkpoint=resume.checkpoint,
        updates_done=resume.updates_done,
    )
    table = workers.start(spec, training, probes=[row.prompt for row in rows[:4]])
    lines: list[tuple[str, object]] = [
        *run.plan_lines(plan),
        ("sequences a step", f"{cfg.data.train_batch_size} prompts x {cfg.rollout.n} answers"),
        ("optimizer updates a step", updates),
        ("micro-batches", describe_micro_batches(cfg, workers.device)),
        ("engines", f"{len(workers.engines)} x {name}, {spec.dtype}, weights by {spec.wire}"),
        ("reference model", "loaded, for the KL term" if cfg.actor.use_kl_loss else "none"),
    ]
    describe(cfg, lines, table, decoded(renderer, rows[0].prompt.token_ids))
    workers.sync_weights(verify=True)
    run.say("the first push of weights is verified: the engines were wiped and came back equal")


def sample_groups(run: Run, workers: Workers, rows: Sequence[PromptRow], step: int) -> list[Group]:
    """The scored answers of a step, one group per row, in the order of `rows`.

    The policy samples from its whole distribution, because the trainer computes log-probs of that distribution.
    """
    from timemaster.types import Sampling

    cfg = run.cfg
    sampling = Sampling(n=cfg.rollout.n, temperature=cfg.rollout.temperature, max_tokens=cfg.data.max_response_length)
    with run.phase("rollout"):
        by_row = dict(workers.rollout(rows, sampling, version=step - 1, seed=f"{cfg.data.seed}/{step}"))
    groups = [by_row[i] for i in range(len(rows))]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    unknown = [r.score.error for r in rollouts if r.score and r.score.unknown and not r.failure]
    if unknown:
        run.say(f"step {step}: {len(unknown)} of {len(rollouts)} answers could not be graded; the first: {unknown[0]}")
    failures = [rollout.failure for rollout in rollouts if rollout.failure]
    if failures:
        run.say(f"step {step}: {len(failures)} of {len(rollouts)} rollouts failed; the first: {failures[0]}")
    return groups


def advantages_of(cfg: Config, groups: list[Group]) -> list[list[float | None]]:
    """The advantage of each rollout of each group; None for rollouts that are not trained on."""
    from timemaster.algo.advantages import group_advantages

    return [group_advantages(group, cfg.algorithm, cfg.reward.on_unknown) for group in groups]


def with_reference(workers: Workers, samples: list[list[Sample]]) -> list[list[Sample]]:
    """The samples of each group with the reference model's log-probs of their trained tokens."""
    values = iter(workers.logprobs([sample for group in samples for sample in group], "reference"))
    return [[_with_ref_logprobs(sample, next(values)) for sample in group] for group in samples]


def _with_ref_logprobs(sample: Sample, values: list[float]) -> Sample:
    following = iter(values)
    return replace(sample, ref_logprobs=[next(following) if trained else 0.0 for trained in sample.mask])


def mini_batches(cfg: Config, samples: list[list[Sample]]) -> list[list[Sample]]:
    """The samples of each optimizer update of a step. A mini-batch holds whole groups.

    All mini-batches are repeated actor.ppo_epochs times. Those without a sample are left out.
    """
    size = cfg.actor.ppo_mini_batch_size
    batches = [[sample for group in samples[i : i + size] for sample in group] for i in range(0, len(samples), size)]
    return [batch for batch in batches if batch] * cfg.actor.ppo_epochs


def step_metrics(
    groups: list[Group], updates: list[dict[str, float]], seconds: float, evaluations: Evaluations
) -> dict[str, float]:
    """A step's metrics. `seconds`: the duration of the step, for the throughput.

    The log-prob difference is that of the first update: later ones train a policy that differs from the one that
    sampled.
    """
    metrics = rollout_metrics(groups, evaluations)
    num_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    metrics["throughput/tokens_per_second"] = num_tokens / seconds
    sources = sorted({group.example.data_source for group in groups})
    for source in sources if len(sources) > 1 else []:
        of_source = rollout_metrics([group for group in groups if group.example.data_source == source], evaluations)
        metrics |= {f"{name}@{source}": value for name, value in of_source.items()}
    for key in sorted({key for update in updates for key in update} - {"update_seconds"}):
        name, at, source = key.partition("@")
        if at and len(sources) < 2:
            continue
        if not name.startswith("logprob_diff"):
            metrics[f"actor/{key}"] = fmean(update[key] for update in updates if key in update)
        elif key in updates[0]:  # not every source needs to have samples in the first update
            metrics[f"rollout/{name}" + ("_mean" if name == "logprob_diff" else "") + at + source] = updates[0][key]
    return metrics


def rollout_metrics(groups: list[Group], evaluations: Evaluations) -> dict[str, float]:
    """Rewards and lengths of rollouts. A score with unknown parts counts only in its known parts, by name."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scores = [rollout.score for rollout in rollouts if rollout.score is not None and not rollout.failure]
    known = [score for score in scores if not score.unknown]
    num_sampled = [sum(rollout.mask) for rollout in rollouts]
    totals = [{r.score.total for r in group.rollouts if r.score and not r.score.unknown} for group in groups]
    metrics = {
        "reward/errors": float(sum(bool(score.error) for score in known)),
        "reward/unknown": float(len(scores) - len(known)),
        "response/tokens_mean": fmean(num_sampled),
        "response/tokens_max": float(max(num_sampled)),
        "response/cut_off": fmean(rollout.finish_reason == "length" for rollout in rollouts),
    }
    if known:
        metrics["reward/mean"] = fmean(score.total for score in known)
        metrics["reward/zero_spread_groups"] = fmean(len(distinct) == 1 for distinct in totals if distinct)
    metrics |= environment_metrics(groups)
    for name in sorted({name for score in scores for name in score.parts}):
        metrics[f"reward/{name}"] = fmean(score.parts[name] for score in scores if name in score.parts)
    return training_numbers(groups, evaluations) | metrics


def shown_metrics(run: Run) -> list[str]:
    """The metrics that the console shows after a step, as far as the step has them."""
    parts = [f"reward/{part.name}" for task in run.tasks.values() for part in task.rewards]
    others = ["actor/kl", "actor/entropy", "response/tokens_mean", "rollout/logprob_diff_mean"]
    names = dict.fromkeys([*shown_in_training(run.evaluations), *parts])
    return ["reward/mean", *names, *others, "throughput/tokens_per_second"]


def check_logprob_difference(cfg: Config, step: int, metrics: dict[str, float]) -> None:
    """Raise InputError when engine and trainer log-probs differ by more than rollout.limit_logprob_diff in mean."""
    limit = cfg.rollout.limit_logprob_diff
    difference = metrics.get("rollout/logprob_diff_mean", 0.0)  # missing in a step without an update
    if limit and difference > limit:
        raise InputError(
            f"step {step}: engine and trainer log-probs differ by {difference:.2e} in mean on the same tokens, allowed "
            f"is rollout.limit_logprob_diff={limit:g}. Look for stale weights or caches, other pixel limits or "
            "positions."
        )


def main(cfg: Config) -> None:
    """Train, or evaluate with trainer.val_only=true."""
    from timemaster.evaluate import evaluate

    if cfg.trainer.val_only:
        evaluate(cfg)
    else:
        train(cfg)


if __name__ == "__main__":
    launch(main, "grpo")
