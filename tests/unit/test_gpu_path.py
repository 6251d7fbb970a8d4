"""What the trainer does on GPUs, as far as a CPU can tell: float32 logits, fused AdamW, parked memory, cheap masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import spec_for
from tests.helpers import full, random_samples, trained_tokens
from timemaster.backends.fsdp import FsdpBackend
from timemaster.backends.policy import _Float32Linear
from timemaster.config import Config, compute_dtype, head_dtype
from timemaster.tokens.plan import describe_micro_batches, micro_batch_tokens, spread
from timemaster.tokens.render import Renderer
from timemaster.types import Prompt, Sample, Sampling


def relative(found: torch.Tensor, true: torch.Tensor) -> float:
    return float((found.double() - true).norm() / true.norm())


# ---- logits in float32


def test_a_float32_head_keeps_what_bfloat16_rounds_away_and_has_the_same_gradient() -> None:
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 256).bfloat16().requires_grad_() for n in (16, 512))
    true = F.linear(hidden.double(), weight.double())
    true.logsumexp(-1).sum().backward()
    gradients = [x.grad.double() for x in (hidden, weight)]
    # bfloat16 keeps 8 bits: an error of up to 2^-9 = 0.2 % of each logit. float32 keeps 24: 6e-8.
    assert relative(F.linear(hidden, weight), true) > 1e-3
    logits = _Float32Linear.apply(hidden, weight)
    assert logits.dtype == torch.float32
    assert relative(logits, true) < 1e-6
    for x in (hidden, weight):
        x.grad = None
    logits.logsumexp(-1).sum().backward()
    for x, gradient in zip((hidden, weight), gradients, strict=True):
        assert x.grad.dtype == torch.bfloat16
        assert relative(x.grad, gradient) < 1e-2


def test_logits_are_float32_on_a_gpu_and_as_the_model_on_a_cpu_unless_set() -> None:
    config = Config()
    assert [(compute_dtype(config, d), head_dtype(config, d)) for d in ("cuda", "cpu")] == [
        ("bfloat16", "float32"),
        ("float32", "model"),
    ]
    config.model.head_dtype = "float32"
    assert head_dtype(config, "cpu") == "float32"
    config.model.head_dtype = "model"
    assert head_dtype(config, "cuda") == "model"


@pytest.mark.parametrize(("head", "error"), [("float32", 1e-4), ("model", 2e-2)])
def test_the_trainers_log_probs_follow_the_heads_dtype(cfg: Config, process_group, head: str, error: float) -> None:
    cfg.model.dtype, cfg.model.head_dtype = "bfloat16", head
    backend = FsdpBackend(cfg, "cpu", num_updates=10, with_reference=False)
    samples = random_samples(Renderer(cfg.model.path, backend.spec), num_prompts=2, group=2)
    seen = []
    norm = backend.policy.model.model.language_model.norm
    hook = norm.register_forward_hook(lambda module, args, out: seen.append(out))
    found = torch.tensor([value for row in backend.logprobs([samples], "policy")[0] for value in row])
    hook.remove()
    batch = backend.collate(samples)
    hidden = seen[0].flatten(0, 1)[batch.select]
    weight = full(backend.policy.model.lm_head.weight).bfloat16()
    logits = F.linear(hidden.double(), weight.double()).index_fill(-1, backend.policy.banned, -torch.inf)
    true = logits.log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
    worst = float((found - true).abs().max())
    assert worst < error
    assert head == "float32" or worst > 1e-4  # what is rounded away shows


def test_the_hf_engines_log_probs_agree_with_a_float32_head_too(cfg: Config, process_group) -> None:
    from timemaster.rollout.hf import HfEngine

    cfg.model.dtype, cfg.model.head_dtype = "bfloat16", "float32"
    backend = FsdpBackend(cfg, "cpu", num_updates=10, with_reference=False)
    prompt = list(range(5, 45))
    engine = HfEngine(replace(spec_for(cfg.model.path, stop=0), dtype="bfloat16", head_dtype="float32"))
    head = engine._model.lm_head
    assert head(torch.ones(1, head.in_features, dtype=torch.bfloat16)).dtype == torch.float32
    engine.submit(
        "a", Prompt(id="a", token_ids=prompt, media=[]), Sampling(n=8, temperature=1.0, max_tokens=16, seed=1)
    )
    ((_, answers),) = engine.step()
    samples = [
        Sample(id="a", token_ids=prompt + a.token_ids, mask=[0] * 40 + [1] * len(a.token_ids), media=[])
        for a in answers
    ]
    ours = [value for row in backend.logprobs([samples], "policy")[0] for value in row]
    theirs = [value for answer in answers for value in answer.logprobs]
    assert np.abs(np.array(ours) - np.array(theirs)).mean() < 0.03  # the layers below still round: 0.009 measured


# ---- memory that waits in host memory while engines run


def held_bytes(backend: FsdpBackend) -> int:
    return sum(full(tensor).untyped_storage().nbytes() for tensor in backend._movable().values())


def values(backend: FsdpBackend) -> dict[str, torch.Tensor]:
    return {name: full(tensor.detach()).clone() for name, tensor in backend._movable().items()}


def test_what_waits_in_host_memory_comes_back_whole_and_buffers_are_used_again(cfg, process_group) -> None:
    cfg.model.freeze_vision_tower = True  # its weights are no shards
    offloaded, twin = (FsdpBackend(cfg, "cpu", num_updates=10, with_reference=True) for _ in range(2))
    samples = random_samples(Renderer(cfg.model.path, twin.spec), num_prompts=2, group=2)
    addresses = []
    for _ in range(2):
        for backend in (offloaded, twin):
            backend.update([samples], trained_tokens(samples))
        offloaded.logprobs([samples], "policy")  # leaves the root gathered
        before = values(offloaded)
        offloaded.offload()
        assert held_bytes(offloaded) == 0
        addresses.append({name: buffer.data_ptr() for name, buffer in offloaded._host._buffers.items()})
        with pytest.raises(AssertionError, match="onload first"):
            offloaded.logprobs([samples], "reference")
        offloaded.onload()
        after = values(offloaded)
        assert before.keys() == after.keys()
        assert all(after[name].equal(value) for name, value in before.items())
    assert addresses[0] == addresses[1]
    assert any(name.startswith("optimizer.") for name in addresses[0])
    assert all(value.equal(values(twin)[name]) for name, value in values(offloaded).items())
    for which in ("policy", "reference"):
        assert offloaded.logprobs([samples], which) == twin.logprobs([samples], which)


def test_giving_and_taking_memory_twice_changes_nothing(cfg, process_group) -> None:
    """A change of turns that Ctrl-C broke off is begun again. An old host copy must not come back over new weights."""
    backend = FsdpBackend(cfg, "cpu", num_updates=10, with_reference=False)
    backend.onload()  # nothing waits yet
    backend.offload()
    backend.onload()
    samples = random_samples(Renderer(cfg.model.path, backend.spec), num_prompts=1, group=2)
    backend.update([samples], trained_tokens(samples))
    trained = values(backend)
    backend.onload()
    for move in (backend.offload, backend.offload, backend.onload, backend.onload):
        move()
    assert all(value.equal(trained[name]) for name, value in values(backend).items())


def test_the_reference_is_copied_to_host_memory_once(cfg, process_group) -> None:
    backend = FsdpBackend(cfg, "cpu", num_updates=10, with_reference=True)
    for _ in range(2):
        backend.offload()
        backend.onload()
    name = "model.model.language_model.embed_tokens.weight"
    for which in ("reference", "policy"):
        backend._host._buffers[f"{which}.{name}"].zero_()  # the next copy writes over it
    backend.offload()
    assert backend._host._buffers[f"policy.{name}"].any()
    assert not backend._host._buffers[f"reference.{name}"].any()


def test_adamw_is_the_fused_one_and_takes_the_same_steps(cfg, process_group) -> None:
    fused, plain = (FsdpBackend(cfg, "cpu", num_updates=10, with_reference=False) for _ in range(2))
    assert all(group["fused"] for group in fused.optimizer.param_groups)
    for group in plain.optimizer.param_groups:
        group["fused"] = False
    start = values(fused)
    for factor in (1.0, 0.1, -0.3):
        for backend in (fused, plain):
            for name, parameter in backend.policy.named_parameters():
                parameter.grad = factor * torch.ones_like(parameter) + factor * start[f"policy.{name}"].mean()
            backend.optimizer.step()
    ours, theirs = values(fused), values(plain)
    for name, first in start.items():
        moved = (theirs[name] - first).norm()
        assert moved > 0
        assert (ours[name] - theirs[name]).norm() <= 1e-4 * moved, name


# ---- no dense mask at long packed lengths


def planned(lengths: list[int], max_tokens: int) -> list[list[int]]:
    samples = [Sample(id=str(i), token_ids=[0] * n, mask=[0] * n, media=[]) for i, n in enumerate(lengths)]
    return [[lengths[i] for i in micro] for micro in spread(samples, 1, max_tokens, padded=False)[0]]


def test_without_flash_attn_micro_batches_on_a_gpu_are_small_and_a_line_says_so(cfg, monkeypatch) -> None:
    installed = False
    monkeypatch.setattr("importlib.util.find_spec", lambda name: installed and name == "flash_attn")
    cfg.actor.ppo_max_token_len_per_gpu = 16384
    assert micro_batch_tokens(cfg, "cpu") == 16384
    assert micro_batch_tokens(cfg, "cuda") == 4096
    assert "not actor.ppo_max_token_len_per_gpu=16384" in describe_micro_batches(cfg, "cuda")
    assert "actor." not in describe_micro_batches(cfg, "cpu")
    # 5,000 tokens are more than 4,096 but one sequence: alone, without a mask
    assert planned([2000, 2000, 5000, 90, 4006, 7], 4096) == [[2000, 2000], [5000], [90, 4006], [7]]
    installed = True
    assert micro_batch_tokens(cfg, "cuda") == 16384
    cfg.model.dtype = "float32"  # flash-attn knows half precision only
    assert micro_batch_tokens(cfg, "cuda") == 4096
    cfg.model.dtype, cfg.model.attn_implementation = "auto", "sdpa"
    assert micro_batch_tokens(cfg, "cuda") == 4096
    cfg.actor.ppo_max_token_len_per_gpu = 3000
    assert micro_batch_tokens(cfg, "cuda") == 3000


@pytest.mark.parametrize(("lengths", "masked"), [([12], False), ([12, 9], True)])
def test_one_sequence_needs_no_mask_and_several_in_a_row_do(cfg: Config, lengths: list[int], masked: bool) -> None:
    """What the size of micro-batches rests on, in transformers."""
    from transformers import AutoConfig
    from transformers.masking_utils import create_causal_mask

    text = AutoConfig.from_pretrained(cfg.model.path).text_config
    text._attn_implementation = "sdpa"
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    embeds = torch.zeros(1, sum(lengths), text.hidden_size)
    mask = create_causal_mask(text, embeds, None, None, position_ids=positions)
    assert (mask is not None) == masked
