"""What a run needs of each GPU and of a node's memory, by arithmetic from the model's config.json and the settings.

A run is refused only for what is exact: weights, gradients, optimizer state, the engine's share. Activations and what
processes hold beside are estimates, printed with the rest. Knows nothing of torch, Ray or where the numbers come from.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timemaster.config import Config, compute_dtype, world_size
from timemaster.config.checks import get
from timemaster.tokens.plan import micro_batch_tokens
from timemaster.types import InputError

GIB = 2**30
HEAD_CHUNK_TOKENS = 1024  # of timemaster/backends/policy.py
# Assumed, not yet measured on a GPU: CUDA context and NCCL of a trainer rank; what an engine keeps while it sleeps; an
# engine's activations and graphs; host memory of a process with its libraries.
RANK_GIB, ASLEEP_GIB, ENGINE_GIB, PROCESS_GIB = 1.0, 1.5, 3.0, 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """Parameters and sizes of a Qwen2.5-VL. Example: 3B has language=3085938688, vision=668684288, hidden=2048."""

    language: int  # parameters, embeddings and head included
    vision: int  # parameters of the vision tower
    root: int  # parameters that are gathered for the whole of a step: embeddings, head
    hidden: int
    intermediate: int
    layers: int
    kv_width: int  # of the keys of a token in one layer
    vocabulary: int
    vision_hidden: int
    vision_intermediate: int
    vision_depth: int
    stored_bytes: int  # of a parameter in the model's folder


def shapes(config: Mapping[str, Any]) -> Shapes:
    """From a config.json, in the published flat form or in transformers' nested one."""
    text, vision = {**config, **config.get("text_config", {})}, config["vision_config"]
    h, i, layers, vocabulary = (
        int(text[k]) for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    )
    kv = h // text["num_attention_heads"] * text["num_key_value_heads"]
    attention = 2 * h * h + h + 2 * (h * kv + kv)  # q and o, bias of q; k and v with biases
    embeddings = vocabulary * h * (1 if config.get("tie_word_embeddings", False) else 2)
    vh, vi, depth = (int(vision[k]) for k in ("hidden_size", "intermediate_size", "depth"))
    block = 4 * vh * vh + 4 * vh + 3 * vh * vi + 2 * vi + vh + 2 * vh  # qkv and projection, gated MLP, two norms
    merged = vh * vision.get("spatial_merge_size", 2) ** 2
    merger = vh + merged * merged + merged + merged * h + h
    patch = vision.get("temporal_patch_size", 2) * vision.get("patch_size", 14) ** 2 * vision.get("in_channels", 3)
    dtype = config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    return Shapes(
        language=layers * (attention + 3 * h * i + 2 * h) + h + embeddings,
        vision=depth * block + patch * vh + merger,
        root=embeddings,
        hidden=h,
        intermediate=i,
        layers=layers,
        kv_width=kv,
        vocabulary=vocabulary,
        vision_hidden=vh,
        vision_intermediate=vi,
        vision_depth=depth,
        stored_bytes=4 if dtype == "float32" else 2,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """GiB on each GPU of a trainer rank and of an engine, and of each node's host memory."""

    states: dict[str, float]  # what a rank keeps between steps, by name
    gradients: float
    working: float  # activations, gathered weights, logits; an estimate
    beside: float  # of the CUDA context, and of an engine that sleeps beside; assumed
    engine_needs: float  # weights and the cache of one sequence of the greatest length
    cache_bytes: float  # of one token on each of the engine's GPUs
    engine_weights: float
    share: float  # of each GPU, that an engine takes
    shared: bool  # engine and trainer take turns on a GPU
    stays: bool  # the trainer's states stay on the GPU while engines run
    host: dict[str, float]  # by cause

    def least(self, gpu_gib: float) -> dict[str, float]:
        """GiB that are needed for certain, by when."""
        needs = {"an update": sum(self.states.values()) + self.gradients}
        if self.shared and self.stays:
            needs["a rollout (engine and trainer)"] = self.share * gpu_gib + sum(self.states.values())
        return needs

    def fits(self, gpu_gib: float) -> bool:
        """Whether all fits, by the estimate."""
        least = self.least(gpu_gib)
        update = least["an update"] + self.working + self.beside
        return max(update, *least.values()) <= gpu_gib and self.engine_needs <= self.share * gpu_gib

    def cannot(self, gpu_gib: float) -> str:
        """Why this cannot run for certain, or ""."""
        for when, gib in self.least(gpu_gib).items():
            if gib > gpu_gib:
                return f"{when} needs more than {gib:.1f} GiB on a GPU of {gpu_gib:.1f} GiB"
        if self.engine_needs > self.share * gpu_gib:
            return (
                f"an engine needs more than {self.engine_needs:.1f} GiB (weights, one sequence), its share of a GPU is "
                f"{self.share * gpu_gib:.1f} GiB"
            )
        return ""


def estimate(cfg: Config, model: Shapes, job: str) -> Estimate:
    """For "grpo" or "sft" on GPUs."""
    ranks, per_node, width = world_size(cfg), cfg.trainer.n_gpus_per_node, _width(cfg)
    frozen = cfg.model.freeze_vision_tower
    trained = model.language + (0 if frozen else model.vision)
    whole = model.language + model.vision
    with_reference = job == "grpo" and cfg.actor.use_kl_loss
    tower = width * model.vision * frozen  # whole on every rank, once a model
    states = {"weights": 4 * trained / ranks + tower, "optimizer": 8 * trained / ranks}
    if with_reference:
        states["reference"] = model.stored_bytes * trained / ranks + tower
    tp = cfg.rollout.tensor_model_parallel_size
    cache = 2 * model.layers * model.kv_width * width / tp
    longest = cfg.data.max_prompt_length + cfg.data.max_response_length
    shared = job == "grpo" and cfg.rollout.placement == "colocated"
    moved = shared and cfg.actor.offload
    engines = per_node // tp if shared else 0
    host = {
        "processes": PROCESS_GIB * GIB * (per_node + engines),
        "sleeping engines' weights": float(width * whole * engines),
        # one after the other: every rank loads the whole model, then what is offloaded waits there
        "loading or offloaded": max(model.stored_bytes * whole, sum(states.values()) * moved) * per_node,
    }
    return Estimate(
        states={name: size / GIB for name, size in states.items()},
        gradients=4 * trained / ranks / GIB,
        working=_working(cfg, model) / GIB,
        beside=RANK_GIB + ASLEEP_GIB * shared,
        engine_needs=(width * whole / tp + cache * longest) / GIB if job == "grpo" else 0.0,
        cache_bytes=cache,
        engine_weights=width * whole / tp / GIB,
        share=cfg.rollout.gpu_memory_utilization,
        shared=shared,
        stays=not moved,
        host={name: size / GIB for name, size in host.items()},
    )


def _width(cfg: Config) -> int:
    return 4 if compute_dtype(cfg, "cuda") == "float32" else 2


def _working(cfg: Config, model: Shapes) -> float:
    """Bytes at the peak of an update beside states and gradients.

    What a decoder layer and a vision block keep of a token for their backward pass was counted with torch's
    saved_tensors_hooks in bfloat16: 20.6 hidden + 4 kv + 8 intermediate, and 32 hidden + 8 intermediate of a patch.
    """
    h, width = model.hidden, _width(cfg) / 2
    tokens = micro_batch_tokens(cfg, "cuda")
    tokens = max(tokens, cfg.data.max_prompt_length + cfg.data.max_response_length)
    layer = (20.6 * h + 4 * model.kv_width + 8 * model.intermediate) * width
    block = (32 * model.vision_hidden + 8 * model.vision_intermediate) * width
    prompts = cfg.data.max_prompt_length / (cfg.data.max_prompt_length + cfg.data.max_response_length)
    patches = 0 if cfg.model.freeze_vision_tower else 4 * tokens * prompts  # at most: prompts of image tokens alone
    if cfg.model.enable_gradient_checkpointing:  # the input of every layer, and one layer again
        kept = tokens * (model.layers * 2 * h * width + layer)
        kept += patches * (model.vision_depth * 2 * model.vision_hidden * width + block)
    else:
        kept = tokens * model.layers * layer + patches * model.vision_depth * block
    logits = 5 * 4 * HEAD_CHUNK_TOKENS * model.vocabulary  # float32: logits, scaled, without banned, two of gradients
    gathered = (2 * width + 2 * width + 4) * model.root  # weights and their gradients, and float32 to be reduced
    return kept + logits + gathered


# What may help, in the order it is proposed; a number of GPUs and the engine's share are looked for.
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


def remedies(cfg: Config, model: Shapes, job: str, gpu_gib: float) -> list[str]:
    """Settings with which the run fits by the estimate, the smallest change of each kind."""
    found: dict[tuple[str, ...], str] = {}
    for change in REMEDIES:
        changed = _with(cfg, change)
        ours = changed.trainer.n_gpus_per_node
        more = all(get(cfg, key) != value for key, value in change.items()) and ours >= cfg.trainer.n_gpus_per_node
        divides = ours % changed.rollout.tensor_model_parallel_size == 0
        if more and divides and tuple(change) not in found and estimate(changed, model, job).fits(gpu_gib):
            text = " with ".join(f"{key}={str(value).lower()}" for key, value in change.items())
            found[tuple(change)] = text
    single = [text for keys, text in found.items() if len(keys) == 1]
    return single or list(found.values())


def _with(cfg: Config, change: Mapping[str, Any]) -> Config:
    changed = copy.deepcopy(cfg)
    for key, value in change.items():
        section, name = key.rsplit(".", 1)
        setattr(get(changed, section), name, value)
    return changed


def report(cfg: Config, config: Mapping[str, Any], job: str, gpu_gib: float) -> list[str]:
    """Lines for the console. Raises InputError when the run cannot fit GPUs of this size."""
    model = shapes(config)
    needs = estimate(cfg, model, job)
    states = ", ".join(f"{name} {gib:.1f}" for name, gib in needs.states.items())
    update = needs.least(gpu_gib)["an update"] + needs.working + needs.beside
    lines = [
        f"memory of a trainer rank, in GiB of {gpu_gib:.1f}: about {update:.1f} in an update ({states}, gradients "
        f"{needs.gradients:.1f}, activations and gathered weights about {needs.working:.1f}, assumed beside "
        f"{needs.beside:.1f})"
    ]
    if job == "grpo":
        room = needs.share * gpu_gib - needs.engine_weights - ENGINE_GIB
        stay = sum(needs.states.values()) if needs.shared and needs.stays else 0.0
        lines.append(
            f"memory of an engine: {needs.share * gpu_gib:.1f} (weights {needs.engine_weights:.1f}, cache of about "
            f"{max(room, 0) * GIB / needs.cache_bytes:,.0f} tokens), beside it {stay:.1f} of the trainer's"
        )
    causes = ", ".join(f"{name} {gib:.1f}" for name, gib in needs.host.items())
    lines.append(f"host memory of a node: about {sum(needs.host.values()):.0f} ({causes})")
    helps = remedies(cfg, model, job, gpu_gib) if not needs.fits(gpu_gib) else []
    advice = f"What would fit: {'; or '.join(helps)}." if helps else "No single setting helps: more or larger GPUs."
    why = needs.cannot(gpu_gib)
    if why:
        raise InputError(f"{why}: this cannot fit. {advice}\n" + "\n".join(lines))
    if not needs.fits(gpu_gib):
        lines.append(f"this may run out of memory. {advice} Or lower actor.ppo_max_token_len_per_gpu.")
    return lines
