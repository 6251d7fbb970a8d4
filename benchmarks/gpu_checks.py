"""The checks of benchmarks/gpu_smoke.py. Each one returns the rows that it adds to the table.

A check runs in a process of its own, which gpu_smoke.py starts and stops. Heavy imports stay inside the checks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timemaster.config import Config

ROOT = Path(__file__).resolve().parents[1]
OK, FAILED, SKIPPED = "ok", "failed", "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. Example: Row(check="sleep", figure="answers changed", value="0 of 12", bar="0", ...)"""

    check: str
    figure: str
    value: str
    bar: str  # what is asked of the value; "" for a figure alone
    outcome: str  # ok, failed or skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a check runs."""

    device: str
    model: str  # folder or hub id
    small: str  # the model of GRPO runs
    folder: Path  # for its files


def judged(check: str, figure: str, value: float, limit: float) -> Row:
    """A figure that must not exceed a limit."""
    outcome = OK if value <= limit else FAILED
    return Row(check=check, figure=figure, value=f"{value:.3g}", bar=f"at most {limit:g}", outcome=outcome)


def told(check: str, figure: str, value: str) -> Row:
    """A figure alone."""
    return Row(check=check, figure=figure, value=value, bar="", outcome=OK)


def needs_gpu(check: str) -> list[Row]:
    return [Row(check=check, figure="needs a GPU", value="", bar="", outcome=SKIPPED)]


def settings(place: Place) -> Config:
    config = Config()
    config.model.path = place.model
    config.data.max_prompt_length, config.data.max_response_length, config.data.min_pixels = 192, 64, 784
    config.data.max_pixels = 50176
    config.rollout.gpu_memory_utilization, config.rollout.cpu_kv_cache_gib = 0.4, 0.25
    config.rollout.enforce_eager = True  # graphs take half a minute to record
    return config


def start_group(device: str) -> None:
    from timemaster.backends.fsdp import init_distributed

    init_distributed(0, 1, "127.0.0.1", 29400 + os.getpid() % 1000, device, 0)


def start_engine(place: Place, config: Config) -> tuple[Any, Any, list[Any]]:
    """An engine in this process, its renderer, and prompts with and without pictures."""
    from tests.helpers import picture, question
    from timemaster.rollout.engines import make_engine, preload
    from timemaster.run.inputs import engine_spec, make_renderer

    preload("vllm", place.device)
    renderer = make_renderer(config)
    spec = engine_spec(config, place.device, place.model, 2, renderer.end_of_turn)
    engine = make_engine("vllm", replace(spec, wire="object_store"))  # "ipc" is between processes; GRPO uses it
    engine.init_weight_transfer_engine({})
    media = [[picture(1)], [picture(2, 140, 112), picture(3)], []]
    examples = [question(str(i), own) for i, own in enumerate(media)]
    return engine, renderer, [(example, renderer.prompt(example)) for example in examples]


def greedy(engine: Any, jobs: Sequence[Any]) -> list[list[int]]:
    from timemaster.types import Sampling

    found = {}
    for k, (_, prompt) in enumerate(jobs):
        engine.submit(str(k), prompt, Sampling(temperature=0.0, max_tokens=32))
    while engine.busy():
        found |= {key: answers[0].token_ids for key, answers in engine.step()}
    return [found[str(k)] for k in range(len(jobs))]


def difference(check: str, place: Place, head: str) -> list[Row]:
    """Mean and largest |trainer - engine| log-prob of what the engine sampled."""
    from tests.helpers import settled
    from timemaster.backends.fsdp import FsdpBackend
    from timemaster.rollout.loop import RolloutLoop
    from timemaster.types import Sample, Sampling, Score

    config = settings(place)
    config.model.head_dtype = head
    start_group(place.device)
    engine, renderer, jobs = start_engine(place, config)
    loop = RolloutLoop(
        engine=engine,
        renderer=renderer,
        score=settled(Score(total=0.0, parts={})),
        environment=lambda example: None,
        max_model_len=config.data.max_prompt_length + config.data.max_response_length,
    )
    rollouts = [r for group in loop.run(jobs, Sampling(n=8, max_tokens=48), 0, "smoke") for r in group.rollouts]
    backend = FsdpBackend(config, place.device, num_updates=1, with_reference=False)
    samples = [Sample(id=r.id, token_ids=r.token_ids, mask=r.mask, media=r.media) for r in rollouts]
    ours = [value for sample in samples for value in backend.logprobs([[sample]], "policy")[0][0]]
    theirs = [value for r in rollouts for value, trained in zip(r.logprobs, r.mask, strict=True) if trained]
    apart = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    limit = 1e-4 if backend.dtype.itemsize == 4 else 0.05
    return [
        judged(check, f"mean log-prob difference over {len(apart)} tokens", sum(apart) / len(apart), limit),
        told(check, "largest", f"{max(apart):.3g}"),
    ]


def head_float32(place: Place) -> list[Row]:
    return difference("head_float32", place, "float32")


def head_model(place: Place) -> list[Row]:
    return difference("head_model", place, "model")


def attention(place: Place) -> list[Row]:
    """Packed rows under each back end against sequences alone, which need no mask."""
    import importlib.util

    from tests.helpers import random_samples
    from timemaster.backends.fsdp import FsdpBackend
    from timemaster.run.inputs import make_renderer

    config = settings(place)
    config.model.attn_implementation = "sdpa"
    start_group(place.device)
    backend = FsdpBackend(config, place.device, num_updates=1, with_reference=False)
    samples = random_samples(make_renderer(config), num_prompts=8, group=4)

    def logprobs(micros: Sequence[Any]) -> list[float]:
        return [value for micro in backend.logprobs(micros, "policy") for row in micro for value in row]

    alone = logprobs([[sample] for sample in samples])
    limit = 1e-4 if backend.dtype.itemsize == 4 else 0.05
    rows = []
    for name in ("sdpa", "eager", "flash_attention_2"):
        if name == "flash_attention_2" and (place.device == "cpu" or not importlib.util.find_spec("flash_attn")):
            figure = "flash_attention_2: not installed, or no GPU"
            rows.append(Row(check="attention", figure=figure, value="", bar="", outcome=SKIPPED))
            continue
        backend.policy.model.set_attn_implementation(name)
        logprobs([samples])
        started = time.perf_counter()
        packed = logprobs([samples])
        seconds = time.perf_counter() - started
        mean = sum(abs(a - b) for a, b in zip(packed, alone, strict=True)) / len(alone)
        num_tokens = sum(len(sample.token_ids) for sample in samples)
        rows.append(judged("attention", f"{name}, packed against alone, mean log-prob difference", mean, limit))
        rows.append(told("attention", f"{name}, seconds for {num_tokens} tokens", f"{seconds:.3f}"))
    return rows


def push(place: Place) -> list[Row]:
    """Weights wiped in the engine and sent again."""
    from timemaster.models.weights import read_layers
    from timemaster.rollout.wire import pack

    engine, _, jobs = start_engine(place, settings(place))
    before, answers = engine.checksums(), greedy(engine, jobs)
    engine.wipe_weights()
    wiped = engine.checksums()
    num_wiped = sum(wiped[name] != digest for name, digest in before.items())  # not biases of zero, nor what CPUs pack
    started = time.perf_counter()
    engine.start_weight_update()
    for layer in read_layers(place.model):
        engine.update_weights({"chunk": pack(layer)})
    engine.finish_weight_update()
    seconds = time.perf_counter() - started
    after = engine.checksums()
    lost = sum(after[name] != digest for name, digest in before.items())
    changed = sum(a != b for a, b in zip(greedy(engine, jobs), answers, strict=True))
    return [
        judged("push", "wipe that changed nothing", float(not num_wiped), 0),
        told("push", "weights that the wipe changed", f"{num_wiped} of {len(before)}"),
        judged("push", "weights that did not come back equal", lost, 0),
        judged("push", f"greedy answers of {len(jobs)} that changed", changed, 0),
        told("push", "seconds", f"{seconds:.2f}"),
    ]


def sleep(place: Place) -> list[Row]:
    """Sleep gives memory back, and waking answers as before."""
    if place.device == "cpu":
        return needs_gpu("sleep")
    import torch

    engine, _, jobs = start_engine(place, settings(place))
    answers = greedy(engine, jobs)
    awake = torch.cuda.mem_get_info()[0]
    engine.sleep()
    asleep = torch.cuda.mem_get_info()[0]
    started = time.perf_counter()
    for tag in ("weights", "kv_cache"):
        engine.wake([tag])
    seconds = time.perf_counter() - started
    changed = sum(a != b for a, b in zip(greedy(engine, jobs), answers, strict=True))
    held = (torch.cuda.mem_get_info()[1] - asleep) / 2**30
    return [
        judged("sleep", f"greedy answers of {len(jobs)} that changed", changed, 0),
        told("sleep", "GiB given back", f"{(asleep - awake) / 2**30:.1f}"),
        told("sleep", "GiB of the GPU in use while asleep", f"{held:.1f}"),
        told("sleep", "seconds to wake", f"{seconds:.2f}"),
    ]


def memory(place: Place) -> list[Row]:
    """The peak of an update against the estimate; what offload leaves behind."""
    if place.device == "cpu":
        return needs_gpu("memory")
    import torch

    from timemaster.backends.fsdp import FsdpBackend
    from timemaster.models.family import family_of
    from timemaster.models.folder import load_model_config
    from timemaster.run.memory_estimate import estimate
    from timemaster.tokens.plan import micro_batch_tokens
    from timemaster.types import Sample

    config = settings(place)
    config.data.max_prompt_length, config.data.max_response_length = 24, 1000  # hardly a picture: text below
    config.actor.use_kl_loss = True
    start_group(place.device)
    backend = FsdpBackend(config, place.device, num_updates=2, with_reference=True)
    micro = [
        Sample(
            id=str(i),
            token_ids=[(7 * i + k) % 250 for k in range(1024)],
            mask=[0] * 24 + [1] * 1000,
            media=[],
            logprobs=[-6.0] * 1024,
            ref_logprobs=[-6.0] * 1024,
            advantage=float(i % 2),
        )
        for i in range(micro_batch_tokens(config, "cuda") // 1024)
    ]
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        backend.update([micro, micro], 2000.0 * len(micro))
    model = load_model_config(place.model)
    needs = estimate(config, family_of(model).sizes(model), "grpo")
    guess = needs.minimum(0.0)["an update"] + needs.working
    peak = backend.peak_gpu_gib()
    torch.cuda.synchronize()
    started = time.perf_counter()
    backend.offload()
    down = time.perf_counter() - started
    left = torch.cuda.memory_allocated() / 2**30
    started = time.perf_counter()
    backend.onload()
    torch.cuda.synchronize()
    up = time.perf_counter() - started
    return [
        told("memory", "GiB at the peak of an update, estimated", f"{guess:.1f}"),
        judged("memory", f"measured {peak:.1f} GiB, apart from it by", abs(peak / guess - 1), 0.15),
        judged("memory", "GiB left on the GPU after offload", left, 1.0),
        told("memory", "seconds of the first offload, of onload", f"{down:.1f}, {up:.1f}"),
    ]


def grpo(place: Place) -> list[Row]:
    """Two steps, then a third in a second process that resumes."""
    from timemaster.tasks import load_task
    from timemaster.tasks.prepare import prepare

    task = load_task("recipes.italy_power")
    splits = {name: series[:32] for name, series in task.load(None).items()}
    data = prepare(replace(task, load=lambda source: splits), None, place.folder)
    run = place.folder / "run"
    command = [
        sys.executable, "-m", "timemaster.grpo", "data.recipes=recipes.italy_power", f"model.path={place.small}",
        f"data.train_files={data}/train.parquet", f"trainer.default_local_dir={run}", f"trainer.device={place.device}",
        "data.max_prompt_length=192", "data.max_response_length=32", "data.min_pixels=784", "data.max_pixels=50176",
        "data.train_batch_size=4", "actor.ppo_mini_batch_size=4", "rollout.n=4", "actor.ppo_max_token_len_per_gpu=2048",
        "actor.use_kl_loss=true", "actor.offload=true", "rollout.gpu_memory_utilization=0.4",
        "rollout.cpu_kv_cache_gib=0.25", "rollout.enforce_eager=true", "trainer.save_freq=0",
        "trainer.logger=[console]",
    ]  # fmt: skip
    rows = []
    for steps in (2, 3):
        started = time.perf_counter()
        done = subprocess.run(
            [*command, f"trainer.total_training_steps={steps}"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - started
        name = "two steps" if steps == 2 else "a third after resume"
        if done.returncode:
            raise RuntimeError(f"{name}: exit code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
        rows.append(told("grpo", f"seconds for {name}, start and end included", f"{seconds:.0f}"))
        if steps == 2:
            verified = "first push of weights is verified" in done.stdout + done.stderr
            rows.append(judged("grpo", "first push that is not verified", float(not verified), 0))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    limit = 1e-4 if place.device == "cpu" else 0.05
    apart = max(row["rollout/logprob_diff_mean"] for row in found)
    return [
        *rows,
        judged("grpo", "steps of 1, 2, 3 not in metrics.jsonl", len({1, 2, 3} - {row["step"] for row in found}), 0),
        judged("grpo", "mean log-prob difference, the worst of three steps", apart, limit),
        told("grpo", "GiB of the GPU that the trainer allocated", f"{found[-1].get('memory/gpu_gib', 0.0):.1f}"),
    ]


# The checks in order, each with its limit in seconds.
CHECKS: dict[str, tuple[Callable[[Place], list[Row]], int]] = {
    "head_float32": (head_float32, 75),
    "head_model": (head_model, 75),
    "attention": (attention, 60),
    "sleep": (sleep, 75),
    "push": (push, 75),
    "memory": (memory, 75),
    "grpo": (grpo, 240),
}
