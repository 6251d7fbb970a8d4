"""The memory that a run needs on each GPU and on each node, computed from the model's config.json and the settings.

A run is refused only because of exact numbers: weights, gradients, optimizer state, the engine's share. Activations and
the overhead of processes are estimates, printed with the rest. Knows nothing of torch or Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timemaster.config import Config, compute_dtype, world_size
from timemaster.config.keys import get, with_settings
from timemaster.models.family import ModelSizes, family_of
from timemaster.tokens.plan import micro_batch_tokens
from timemaster.types import InputError

GIB = 2**30
HEAD_CHUNK_TOKENS = 1024  # of timemaster/backends/policy.py
# Assumed, not yet measured on a GPU: CUDA context and NCCL of a trainer rank; memory of a sleeping engine; activations
# and CUDA graphs of an engine; host memory of a process with its libraries.
RANK_GIB, ASLEEP_GIB, ENGINE_GIB, PROCESS_GIB = 1.0, 1.5, 3.0, 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """GiB on each GPU, for a trainer rank and for an engine, and GiB of each node's host memory."""

    states: dict[str, float]  # kept by a rank between steps, by name
    gradients: float
    working: float  # activations, gathered weights, logits; an estimate
    overhead: float  # CUDA context, and the engine that sleeps on the same GPU; assumed
    engine_needs: float  # weights, and the cache of one sequence of the maximum length
    cache_bytes: float  # cache of one token on each of the engine's GPUs
    engine_weights: float
    share: float  # share of each GPU's memory that an engine takes
    shares_gpus: bool  # engine and trainer take turns on a GPU
    states_stay: bool  # the trainer's states stay on the GPU while engines run
    host: dict[str, float]  # by cause

    def minimum(self, gpu_gib: float) -> dict[str, float]:
        """GiB that are certainly needed, by phase of a step."""
        needs = {"an update": sum(self.states.values()) + self.gradients}
        if self.shares_gpus and self.states_stay:
            needs["a rollout (engine and trainer)"] = self.share * gpu_gib + sum(self.states.values())
        return needs

    def fits(self, gpu_gib: float) -> bool:
        """Whether everything fits, by the estimate."""
        minimum = self.minimum(gpu_gib)
        update = minimum["an update"] + self.working + self.overhead
        return max(update, *minimum.values()) <= gpu_gib and self.engine_needs <= self.share * gpu_gib

    def why_refused(self, gpu_gib: float) -> str:
        """The reason why this certainly cannot run, or ""."""
        for when, gib in self.minimum(gpu_gib).items():
            if gib > gpu_gib:
                return f"{when} needs more than {gib:.1f} GiB on a GPU of {gpu_gib:.1f} GiB"
        if self.engine_needs > self.share * gpu_gib:
            return (
                f"an engine needs more than {self.engine_needs:.1f} GiB (weights, one sequence), its share of a GPU is "
                f"{self.share * gpu_gib:.1f} GiB"
            )
        return ""


def estimate(cfg: Config, model: ModelSizes, job: str) -> Estimate:
    """The estimate for `job`, "grpo" or "sft", on GPUs."""
    ranks, per_node, width = world_size(cfg), cfg.trainer.n_gpus_per_node, _width(cfg)
    frozen = cfg.model.freeze_vision_tower
    trained = model.language + (0 if frozen else model.vision)
    whole = model.language + model.vision
    with_reference = job == "grpo" and cfg.actor.use_kl_loss
    tower = width * model.vision * frozen  # whole on every rank, for the policy and for the reference
    states = {"weights": 4 * trained / ranks + tower, "optimizer": 8 * trained / ranks}
    if with_reference:
        states["reference"] = model.stored_bytes * trained / ranks + tower
    tp = cfg.rollout.tensor_model_parallel_size
    cache = 2 * model.layers * model.kv_width * width / tp
    longest = cfg.data.max_prompt_length + cfg.data.max_response_length
    shares_gpus = job == "grpo" and cfg.rollout.placement == "colocated"
    moved = shares_gpus and cfg.actor.offload
    engines = per_node // tp if shares_gpus else 0
    host = {
        "processes": PROCESS_GIB * GIB * (per_node + engines),
        "sleeping engines' weights": float(width * whole * engines),
        # Not at the same time: every rank first loads the whole model; later it holds what is offloaded.
        "loading or offloaded": max(model.stored_bytes * whole, sum(states.values()) * moved) * per_node,
    }
    return Estimate(
        states={name: size / GIB for name, size in states.items()},
        gradients=4 * trained / ranks / GIB,
        working=_working(cfg, model) / GIB,
        overhead=RANK_GIB + ASLEEP_GIB * shares_gpus,
        engine_needs=(width * whole / tp + cache * longest) / GIB if job == "grpo" else 0.0,
        cache_bytes=cache,
        engine_weights=width * whole / tp / GIB,
        share=cfg.rollout.gpu_memory_utilization,
        shares_gpus=shares_gpus,
        states_stay=not moved,
        host={name: size / GIB for name, size in host.items()},
    )


def _width(cfg: Config) -> int:
    return 4 if compute_dtype(cfg, "cuda") == "float32" else 2


def _working(cfg: Config, model: ModelSizes) -> float:
    """Bytes at the peak of an update, in addition to states and gradients: activations, logits, gathered weights."""
    h, width = model.hidden, _width(cfg) / 2
    tokens = micro_batch_tokens(cfg, "cuda")
    tokens = max(tokens, cfg.data.max_prompt_length + cfg.data.max_response_length)
    layer, block = model.layer_bytes * width, model.block_bytes * width
    prompts = cfg.data.max_prompt_length / (cfg.data.max_prompt_length + cfg.data.max_response_length)
    # Upper bound: prompts that consist of image tokens only.
    patches = 0 if cfg.model.freeze_vision_tower else model.patches_per_token * tokens * prompts
    if cfg.model.enable_gradient_checkpointing:  # the input of every layer, and one layer that is computed again
        kept = tokens * (model.layers * 2 * h * width + layer)
        kept += patches * (model.vision_depth * 2 * model.vision_hidden * width + block)
    else:
        kept = tokens * model.layers * layer + patches * model.vision_depth * block
    logits = 5 * 4 * HEAD_CHUNK_TOKENS * model.vocabulary  # float32: logits, scaled, without banned ones, two gradients
    gathered = (2 * width + 2 * width + 4) * model.root  # weights, gradients, float32 gradients to be reduced
    return kept + logits + gathered


# Changes of settings that may help, in the order in which they are proposed.
REMEDIES: tuple[dict[str, Any], ...] = (
    {"actor.offload": True},
    {"rollout.gpu_memory_utilization": 0.5},
    {"rollout.gpu_memory_utilization": 0.4},
    {"rollout.gpu_memory_utilization": 0.3},
    {"rollout.gpu_memory_utilization": 0.9},
    {"rollout.tensor_model_parallel_size": 2},
    {"rollout.tensor_model_parallel_size": 4},
    {"actor.use_kl_loss": False},
    {"model.freeze_vision_tower": True},
    {"trainer.n_gpus_per_node": 2},
    {"trainer.n_gpus_per_node": 4},
    {"trainer.n_gpus_per_node": 8},
    {"actor.offload": True, "trainer.n_gpus_per_node": 2},
    {"actor.offload": True, "trainer.n_gpus_per_node": 4},
    {"actor.offload": True, "trainer.n_gpus_per_node": 8},
)


def remedies(cfg: Config, model: ModelSizes, job: str, gpu_gib: float) -> list[str]:
    """Changes of settings with which the run fits by the estimate: the smallest of each kind."""
    fitting: dict[tuple[str, ...], str] = {}
    for change in REMEDIES:
        changed = with_settings(cfg, change)
        num_gpus = changed.trainer.n_gpus_per_node
        is_change = (
            all(get(cfg, key) != value for key, value in change.items()) and num_gpus >= cfg.trainer.n_gpus_per_node
        )
        divides = num_gpus % changed.rollout.tensor_model_parallel_size == 0
        if is_change and divides and tuple(change) not in fitting and estimate(changed, model, job).fits(gpu_gib):
            text = " with ".join(f"{key}={str(value).lower()}" for key, value in change.items())
            fitting[tuple(change)] = text
    single = [text for keys, text in fitting.items() if len(keys) == 1]
    return single or list(fitting.values())


def report(cfg: Config, config: Mapping[str, Any], job: str, gpu_gib: float) -> list[str]:
    """Lines for the console. Raises InputError when the run cannot fit GPUs of this size."""
    model = family_of(config).sizes(config)
    needs = estimate(cfg, model, job)
    states = ", ".join(f"{name} {gib:.1f}" for name, gib in needs.states.items())
    update = needs.minimum(gpu_gib)["an update"] + needs.working + needs.overhead
    lines = [
        f"memory of a trainer rank, in GiB of {gpu_gib:.1f}: about {update:.1f} in an update ({states}, gradients "
        f"{needs.gradients:.1f}, activations and gathered weights about {needs.working:.1f}, assumed overhead "
        f"{needs.overhead:.1f})"
    ]
    if job == "grpo":
        room = needs.share * gpu_gib - needs.engine_weights - ENGINE_GIB
        stay = sum(needs.states.values()) if needs.shares_gpus and needs.states_stay else 0.0
        lines.append(
            f"memory of an engine: {needs.share * gpu_gib:.1f} (weights {needs.engine_weights:.1f}, cache of about "
            f"{max(room, 0) * GIB / needs.cache_bytes:,.0f} tokens), and {stay:.1f} of the trainer on the same GPU"
        )
    causes = ", ".join(f"{name} {gib:.1f}" for name, gib in needs.host.items())
    lines.append(f"host memory of a node: about {sum(needs.host.values()):.0f} ({causes})")
    changes = remedies(cfg, model, job, gpu_gib) if not needs.fits(gpu_gib) else []
    advice = f"What would fit: {'; or '.join(changes)}." if changes else "No single setting helps: more or larger GPUs."
    why = needs.why_refused(gpu_gib)
    if why:
        raise InputError(f"{why}: this cannot fit. {advice}\n" + "\n".join(lines))
    if not needs.fits(gpu_gib):
        lines.append(f"this may run out of memory. {advice} Or lower actor.ppo_max_token_len_per_gpu.")
    return lines
