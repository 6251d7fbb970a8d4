"""Group relative policy optimisation: the whole training loop.

What it is: prompts go to the engines, scored groups come back, become advantages, the trainer takes a step, the engines
get the new weights. What it is not: it knows nothing of GPUs, tokens, images or files; see workers.py for how each verb
is carried out, backends/fsdp.py for the update, algo/losses.py for the loss.

    python -m timemaster.grpo --help
    python -m timemaster.grpo trainer.val_only=true ...    evaluates instead (timemaster/evaluate.py)
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from timemaster.cli import launch
from timemaster.config import Config
from timemaster.environments import environment_metrics
from timemaster.judge import ChatRefused
from timemaster.metrics.summary import shown_in_training, training_numbers
from timemaster.types import InputError

if TYPE_CHECKING:
    from timemaster.data.stream import Order
    from timemaster.metrics.summary import Evaluations
    from timemaster.run.folder import Run
    from timemaster.run.inputs import Job
    from timemaster.tokens.render import Renderer
    from timemaster.types import Group, Sample, Sampling
    from timemaster.workers.handle import Workers

SHOWN = (  # on the console, behind the rewards
    "actor/kl",
    "actor/entropy",
    "response/tokens_mean",
    "rollout/logprob_diff_mean",
    "throughput/tokens_per_second",
)


def train(cfg: Config) -> None:
    """Train until the last step, Ctrl-C or a failure; a run that has a checkpoint continues from it."""
    from timemaster.algo.advantages import to_samples
    from timemaster.evaluate import validate
    from timemaster.rollout.engines import resolve_engine
    from timemaster.run.folder import Run, due, is_done, save
    from timemaster.run.inputs import check_inputs, load_jobs, make_renderer, order_of_rows, rows_identity
    from timemaster.tasks.scorer import check_rewards
    from timemaster.workers.handle import Workers

    check_inputs(cfg, cfg.data.train_files + cfg.data.val_files)
    with ExitStack() as opened:
        run = opened.enter_context(Run(cfg, "grpo"))  # first: from here on the folder is this process's alone
        check_rewards(cfg)
        workers = opened.enter_context(Workers(cfg, resolve_engine(cfg.rollout.name), trainers=True))
        renderer = make_renderer(cfg)
        jobs = load_jobs(cfg, cfg.data.train_files, renderer, run.folder)
        val_jobs = load_jobs(cfg, cfg.data.val_files, renderer, run.folder)
        stream = order_of_rows(cfg, [example for example, _ in jobs])
        total = cfg.trainer.total_training_steps or stream.num_steps(cfg.trainer.total_epochs)
        resume, first = run.resume_point(rows_identity([example for example, _ in jobs]))
        if is_done(run, first, total):
            return
        start(run, workers, renderer, jobs + val_jobs, stream, (resume, first, total))
        workers.sync_weights(verify=True)
        run.say("the first push of weights is verified: the engines were wiped and came back equal")
        if cfg.trainer.val_before_train and first == 0:
            validate(run, workers, val_jobs, step=0)
        run.start_bar(first, total)
        for step in range(first + 1, total + 1):
            prompts = [jobs[row] for row in stream.batch(step - 1)]
            groups = explore(run, workers, prompts, step, unsaved=step - 1 > first and not due(cfg, step - 1))
            advantages = advantages_of(cfg, groups)
            learnt = [to_samples(group, own) for group, own in zip(groups, advantages, strict=True)]
            if cfg.actor.use_kl_loss:
                with run.phase("reference"):
                    learnt = with_reference(workers, learnt)
            with run.phase("update"):
                updates = [workers.update(mini) for mini in mini_batches(cfg, learnt)]
            if updates:
                with run.phase("sync"):
                    workers.sync_weights()
            metrics = measure(groups, updates, sum(run.seconds.values()), run.evaluations) | workers.peak_memory()
            refused = validated(run, workers, val_jobs, (step, total), metrics)
            run.write_rollouts(step, groups, advantages)
            run.log_step(step, metrics, ("reward/mean", *shown_in_training(run.evaluations), *SHOWN))
            check_difference(cfg, step, metrics)
            stop = step == total or run.stop_requested or refused is not None
            if stop or due(cfg, step):
                save(run, workers, step)
            if refused:
                raise refused
            if stop:
                break


def explore(run: Run, workers: Workers, prompts: list[Job], step: int, unsaved: bool) -> list[Group]:
    """The scored answers of a step. When the judge refuses for good, what is `unsaved` is saved before the run ends."""
    from timemaster.run.folder import save

    cfg = run.cfg
    try:
        with run.phase("rollout"):
            groups = workers.rollout(prompts, sampling(cfg), version=step - 1, seed=f"{cfg.data.seed}/{step}")
    except ChatRefused:
        if unsaved:
            save(run, workers, step - 1)
        raise
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    unknown = [r.score.error for r in rollouts if r.score and r.score.unknown and not r.failure]
    if unknown:
        run.say(f"step {step}: {len(unknown)} of {len(rollouts)} answers could not be graded; the first: {unknown[0]}")
    failures = [rollout.failure for rollout in rollouts if rollout.failure]
    if failures:
        run.say(f"step {step}: {len(failures)} of {len(rollouts)} rollouts failed; the first: {failures[0]}")
    return groups


def validated(
    run: Run, workers: Workers, jobs: list[Job], at: tuple[int, int], metrics: dict[str, float]
) -> ChatRefused | None:
    """Validate when it is time (`at`: step, steps in all), into `metrics`. When the judge refuses, why: the step itself
    is done.
    """
    from timemaster.evaluate import validate

    (step, total), freq = at, run.cfg.trainer.test_freq
    if not jobs or not freq or (step < total and step % freq):
        return None
    try:
        with run.phase("validate"):
            metrics |= validate(run, workers, jobs, step)
    except ChatRefused as error:
        return error
    return None


def start(
    run: Run,
    workers: Workers,
    renderer: Renderer,
    jobs: list[Job],
    stream: Order,
    steps: tuple[str, int, int],
) -> None:
    """Start engines and trainer, print what is about to happen. `steps`: checkpoint to resume, steps done, in all."""
    from timemaster.models.folder import load_model_config
    from timemaster.rollout.engines import resolve_engine
    from timemaster.run.inputs import decoded, describe, engine_spec, most_images
    from timemaster.run.memory_estimate import report
    from timemaster.tokens.plan import describe_micro_batches

    cfg, (resume, first, total) = run.cfg, steps
    name = resolve_engine(cfg.rollout.name)
    updates = cfg.data.train_batch_size // cfg.actor.ppo_mini_batch_size * cfg.actor.ppo_epochs
    model = f"{resume}/huggingface" if resume else cfg.model.path
    spec = engine_spec(cfg, workers.device, model, most_images(cfg, jobs), renderer.end_of_turn)
    if workers.device == "cuda" and name == "vllm":  # hf takes no share of a GPU
        for line in report(cfg, load_model_config(cfg.model.path, cfg.model.revision), "grpo", workers.gpu_gib()):
            run.say(line)
    run.say(f"starting engines and trainer ranks on {workers.device}")
    probes = [prompt for _, prompt in jobs[:4]]
    table = workers.start(spec, training=(total * updates, cfg.actor.use_kl_loss, resume), probes=probes)
    rows: list[tuple[str, object]] = [
        ("run folder", run.folder),
        ("train rows", stream.num_rows),
        ("steps", f"{first} done, {total} in all ({stream.num_rows / cfg.data.train_batch_size:.1f} an epoch)"),
        ("sequences a step", f"{cfg.data.train_batch_size} prompts x {cfg.rollout.n} answers"),
        ("optimizer updates a step", updates),
        ("micro-batches", describe_micro_batches(cfg, workers.device)),
        (
            "engines",
            f"{len(workers.engines)} x {name}, {spec.dtype}, weights by {spec.wire}",
        ),
        ("reference model", "loaded, for the KL term" if cfg.actor.use_kl_loss else "none"),
    ]
    describe(cfg, rows, table, decoded(renderer, jobs[0][1].token_ids))


def sampling(cfg: Config) -> Sampling:
    """How the policy explores: from its whole distribution, which is the one the trainer computes log-probs of."""
    from timemaster.types import Sampling

    r = cfg.rollout
    limit = cfg.data.max_response_length
    return Sampling(n=r.n, temperature=r.temperature, max_tokens=limit)


def advantages_of(cfg: Config, groups: list[Group]) -> list[list[float | None]]:
    """The advantage of each rollout of each group, None for those that are not learnt from."""
    from timemaster.algo.advantages import group_advantages

    how = (cfg.algorithm.adv_estimator, cfg.algorithm.norm_adv_by_std_in_grpo, cfg.reward.on_unknown)
    return [group_advantages(group, *how) for group in groups]


def with_reference(workers: Workers, learnt: list[list[Sample]]) -> list[list[Sample]]:
    """The samples of each group with the reference model's log-probs put at their trained tokens."""
    values = iter(workers.logprobs([sample for own in learnt for sample in own], "reference"))
    return [[_with_reference(sample, next(values)) for sample in own] for own in learnt]


def _with_reference(sample: Sample, values: list[float]) -> Sample:
    queue = iter(values)
    return replace(sample, ref_logprobs=[next(queue) if trained else 0.0 for trained in sample.mask])


def mini_batches(cfg: Config, learnt: list[list[Sample]]) -> list[list[Sample]]:
    """The samples of a step in optimizer-step portions, whole groups each, once per epoch over them.

    A portion of which nothing is learnt is left out.
    """
    size = cfg.actor.ppo_mini_batch_size
    portions = [[sample for own in learnt[i : i + size] for sample in own] for i in range(0, len(learnt), size)]
    return [portion for portion in portions if portion] * cfg.actor.ppo_epochs


def measure(
    groups: list[Group], updates: list[dict[str, float]], seconds: float, evaluations: Evaluations
) -> dict[str, float]:
    """A step's metrics. The log-prob difference is the first update's: later ones train another policy than sampled."""
    metrics = answers(groups, evaluations)
    num_tokens = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
    metrics["throughput/tokens_per_second"] = num_tokens / seconds
    sources = sorted({group.example.data_source for group in groups})
    for source in sources if len(sources) > 1 else []:
        own = answers([group for group in groups if group.example.data_source == source], evaluations)
        metrics |= {f"{name}@{source}": value for name, value in own.items()}
    for key in sorted({key for update in updates for key in update} - {"update_seconds"}):
        name, at, source = key.partition("@")
        if at and len(sources) < 2:
            continue
        if not name.startswith("logprob_diff"):
            metrics[f"actor/{key}"] = fmean(update[key] for update in updates if key in update)
        elif key in updates[0]:  # of several sources, the first update may have seen one
            metrics[f"rollout/{name}" + ("_mean" if name == "logprob_diff" else "") + at + source] = updates[0][key]
    return metrics


def answers(groups: list[Group], evaluations: Evaluations) -> dict[str, float]:
    """What the answers were worth, and their lengths. Unknown scores are counted; of theirs only known parts are."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    scores = [rollout.score for rollout in rollouts if rollout.score is not None and not rollout.failure]
    known = [score for score in scores if not score.unknown]
    tokens = [sum(rollout.mask) for rollout in rollouts]
    spreads = [{r.score.total for r in group.rollouts if r.score and not r.score.unknown} for group in groups]
    metrics = {
        "reward/errors": float(sum(bool(score.error) for score in known)),
        "reward/unknown": float(len(scores) - len(known)),
        "response/tokens_mean": fmean(tokens),
        "response/tokens_max": float(max(tokens)),
        "response/cut_off": fmean(rollout.finish_reason == "length" for rollout in rollouts),
    }
    if known:
        metrics["reward/mean"] = fmean(score.total for score in known)
        metrics["reward/zero_spread_groups"] = fmean(len(spread) == 1 for spread in spreads if spread)
    metrics |= environment_metrics(groups)
    for name in sorted({name for score in scores for name in score.parts}):
        metrics[f"reward/{name}"] = fmean(score.parts[name] for score in scores if name in score.parts)
    return training_numbers(groups, evaluations) | metrics


def check_difference(cfg: Config, step: int, metrics: dict[str, float]) -> None:
    """Stop when engine and trainer disagree on the same tokens by more than rollout.limit_logprob_diff in mean."""
    limit, found = cfg.rollout.limit_logprob_diff, metrics.get("rollout/logprob_diff_mean", 0.0)  # none: no update
    if limit and found > limit:
        raise InputError(
            f"step {step}: engine and trainer log-probs differ by {found:.2e} in mean on the same tokens, allowed is "
            f"rollout.limit_logprob_diff={limit:g}. Look for stale weights or caches, other pixel limits or positions."
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
