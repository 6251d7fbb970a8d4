"""Memory of a process tree on systems that tell less than Linux; what a run needs of GPUs, by arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from timemaster.config import Config
from timemaster.models.family import ModelSizes, family_of
from timemaster.run.memory_estimate import estimate, remedies, report
from timemaster.system.memory import num_bytes
from timemaster.types import InputError


class FakeProcess:
    """A process whose system tells `full`, or nothing but the resident set."""

    def __init__(self, **full: int) -> None:
        self.full = full

    def memory_full_info(self) -> SimpleNamespace:
        if not self.full:
            raise psutil.AccessDenied
        return SimpleNamespace(**self.full)

    def memory_info(self) -> SimpleNamespace:
        return SimpleNamespace(rss=3)


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        (FakeProcess(rss=3, uss=1, pss=2), 2),
        (FakeProcess(rss=3, uss=1), 1),
        (FakeProcess(rss=3), 3),
        (FakeProcess(), 3),
    ],
)
def test_the_best_figure_that_the_system_tells_is_taken(process: FakeProcess, expected: int) -> None:
    assert num_bytes(process) == expected  # type: ignore[arg-type]


def test_this_process_has_memory() -> None:
    assert num_bytes(psutil.Process()) > 2**20  # an interpreter has more than a mebibyte of its own


# ---- the estimate. Sizes as published in config.json.

VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_chans": 3}
PUBLISHED = {
    "3B": {
        "model_type": "qwen2_5_vl", "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "vision_config": VISION | {"out_hidden_size": 2048},
    },
    "7B": {
        "model_type": "qwen2_5_vl", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "vision_config": VISION | {"out_hidden_size": 3584},
    },
}  # fmt: skip
GPU_GIB = 79.2  # what a GPU sold with 80 GB has


def sizes(config: dict) -> ModelSizes:
    return family_of(config).sizes(config)


def settings(**changes: object) -> Config:
    config = Config()
    config.actor.use_kl_loss = True
    for key, value in changes.items():
        section, name = key.split("__")
        setattr(getattr(config, section), name, value)
    return config


def test_parameters_are_counted_as_published() -> None:
    # a layer of 3B: q, o 2 x 2048^2 + 2048, k, v 2 x (2048 x 256 + 256), MLP 3 x 2048 x 11008, norms 2 x 2048
    # = 77,076,992; x 36, + norm 2048, + embeddings 151936 x 2048 (tied) = 3,085,938,688. Published: 3.75 and 8.29 B.
    assert [(sizes(c).language, sizes(c).vision) for c in PUBLISHED.values()] == [
        (3_085_938_688, 668_684_288),
        (7_615_616_512, 676_550_144),
    ]


def test_parameters_are_counted_as_transformers_makes_them(tiny: str) -> None:
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny)
    found = sizes(json.loads(Path(tiny, "config.json").read_text(encoding="utf-8")))
    assert found.vision == sum(p.numel() for p in model.model.visual.parameters())
    assert found.language + found.vision == sum(p.numel() for p in model.parameters())
    assert found.stored_bytes == 4


def test_what_a_rank_keeps_by_hand() -> None:
    # 3.7546 B parameters: float32 masters x 4 = 13.99 GiB, Adam x 8 = 27.97, gradients x 4 = 13.99, reference in
    # bfloat16 x 2 = 6.99. Engine: weights x 2 = 6.99; cache 2 x 36 layers x 256 x 2 bytes = 36,864 a token.
    model = sizes(PUBLISHED["3B"])
    one = estimate(settings(), model, "grpo")
    assert one.states == pytest.approx({"weights": 13.99, "optimizer": 27.97, "reference": 6.99}, abs=0.01)
    assert one.gradients == pytest.approx(13.99, abs=0.01)
    assert one.engine_weights == pytest.approx(6.99, abs=0.01)
    assert one.cache_bytes == 36_864
    # together with the engine's 0.6 x 79.2 = 47.52: 47.52 + 48.95 = 96.47
    assert one.minimum(GPU_GIB) == pytest.approx(
        {"an update": 62.94, "a rollout (engine and trainer)": 96.47}, abs=0.02
    )
    two = estimate(settings(trainer__n_gpus_per_node=2), model, "grpo")
    assert sum(two.states.values()) == pytest.approx(sum(one.states.values()) / 2)
    # frozen tower: 3.0859 B trained; 2 x 0.6687 B x 2 bytes whole with each of the two models = 1.245
    frozen = estimate(settings(model__freeze_vision_tower=True), model, "grpo")
    assert frozen.states == pytest.approx(
        {"weights": 11.50 + 1.245, "optimizer": 22.99, "reference": 5.75 + 1.245}, abs=0.01
    )
    assert estimate(settings(), model, "sft").states.keys() == {"weights", "optimizer"}


def test_3b_with_kl_on_one_gpu_is_refused_with_what_helps() -> None:
    with pytest.raises(InputError) as error:
        report(settings(), PUBLISHED["3B"], "grpo", GPU_GIB)
    says = str(error.value)
    assert "a rollout (engine and trainer) needs more than 96.5 GiB on a GPU of 79.2 GiB" in says
    assert "actor.offload=true" in says
    assert "trainer.n_gpus_per_node=2" in says
    assert "use_kl_loss" not in says  # 47.5 + 42.0 is still too much
    config = settings()
    config.actor.offload = True
    lines = report(config, PUBLISHED["3B"], "grpo", GPU_GIB)
    assert not [line for line in lines if "may run out" in line]
    # offloaded 48.95, more than the 6.99 of loading; the sleeping engine's 6.99; two processes of 4
    assert "host memory of a node: about 64" in lines[-1]


@pytest.mark.parametrize(
    ("size", "changes", "outcome"),
    [
        ("3B", {"trainer__n_gpus_per_node": 4}, "fits"),  # states 12.2 + 47.5
        ("7B", {}, "refused"),  # states and gradients of 8.29 B x 18 bytes = 139
        ("7B", {"trainer__n_gpus_per_node": 8}, "fits"),  # 13.5 + 3.9, and 13.5 + 47.5
        ("7B", {"trainer__n_gpus_per_node": 2, "actor__offload": True}, "may"),  # 69.5 for certain, with activations more
        ("7B", {"trainer__n_gpus_per_node": 8, "rollout__gpu_memory_utilization": 0.1}, "refused"),  # 7.9 for 15.4
        ("7B", {"trainer__n_gpus_per_node": 8, "rollout__gpu_memory_utilization": 0.1, "rollout__tensor_model_parallel_size": 4}, "fits"),
    ],
)  # fmt: skip
def test_what_fits(size: str, changes: dict, outcome: str) -> None:
    if outcome == "refused":
        with pytest.raises(InputError, match="this cannot fit"):
            report(settings(**changes), PUBLISHED[size], "grpo", GPU_GIB)
        return
    lines = report(settings(**changes), PUBLISHED[size], "grpo", GPU_GIB)
    assert bool([line for line in lines if "may run out of memory" in line]) == (outcome == "may")


@pytest.mark.parametrize(("size", "gpus"), [("3B", 1), ("7B", 1), ("7B", 2)])
def test_every_remedy_is_one(size: str, gpus: int) -> None:
    model = sizes(PUBLISHED[size])
    found = remedies(settings(trainer__n_gpus_per_node=gpus), model, "grpo", GPU_GIB)
    assert found
    for text in found:
        pairs = [pair.split("=") for pair in text.split(" with ")]
        changes = {"trainer__n_gpus_per_node": gpus}
        changes |= {key.replace(".", "__"): json.loads(value) for key, value in pairs}
        assert estimate(settings(**changes), model, "grpo").fits(GPU_GIB), text


def test_checkpointing_gradients_saves_most_of_the_activations() -> None:
    # 36 layers of 20.6 x 2048 + 4 x 256 + 8 x 11008 = 131,277 bytes a token, against 36 x 2 x 2048 + 131,277
    model = sizes(PUBLISHED["3B"])
    with_it, without = (
        estimate(
            settings(model__enable_gradient_checkpointing=on, model__freeze_vision_tower=True), model, "grpo"
        ).working
        for on in (True, False)
    )
    tokens = 4096  # no flash-attn here
    assert without - with_it == pytest.approx(tokens * (35 * 131_277 - 36 * 4096) / 2**30, rel=1e-3)
