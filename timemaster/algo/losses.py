"""Losses: pure functions of per-token tensors, with the global denominator passed in.

Axes: N = trained tokens of one micro-batch. Every loss is a sum over N divided by the number of trained tokens of the
whole mini-batch on all ranks, so that gradients do not depend on how it was cut into micro-batches, packed or spread.
Metrics come back per token [N], for the backend to sum: over all of them and over those of each data source.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

LOG_RATIO_LIMIT = 20.0
K3_LIMIT = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """Per-token tensors [N] of one micro-batch."""

    logprobs: torch.Tensor  # of the policy, with gradient
    entropy: torch.Tensor  # of the policy's distribution at each token, with gradient
    old_logprobs: torch.Tensor | None  # of the policy that sampled
    ref_logprobs: torch.Tensor | None  # of the reference model
    advantages: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """The coefficients of `policy_loss`; see timemaster.config.ActorConfig."""

    policy_loss: str
    clip_ratio_low: float
    clip_ratio_high: float
    entropy_coeff: float
    kl_loss_type: str
    kl_coef: float  # 0.0 means no reference


LossResult = tuple[torch.Tensor, dict[str, torch.Tensor]]


def ppo_clip(x: LossInputs, low: float, high: float) -> LossResult:
    """-min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) per token [N], ratio = exp(logprob - old_logprob).

    Source: PPO (https://arxiv.org/abs/1707.06347), equation 7; a separate upper bound: DAPO
    (https://arxiv.org/abs/2503.14476), section 3.1.
    """
    assert x.old_logprobs is not None
    assert x.advantages is not None
    ratio = (x.logprobs - x.old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    free = -x.advantages * ratio
    held = -x.advantages * ratio.clamp(1 - low, 1 + high)
    clipped = held > free
    metrics = {
        "clip_fraction_high": (clipped & (x.advantages > 0)).float(),
        "clip_fraction_low": (clipped & (x.advantages < 0)).float(),
        "ratio_mean": ratio.detach(),
    }
    return torch.maximum(free, held), metrics


def k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """exp(d) - d - 1 per token [N] with d = ref - logprob, at most 10: unbiased, never negative, low variance.

    Source: http://joschu.net/blog/kl-approx.html
    """
    return _k3_of(ref_logprobs - logprobs).clamp(max=K3_LIMIT)


def _k3_of(log_ratio: torch.Tensor) -> torch.Tensor:
    """exp(d) - 1 - d, never negative, of a log-ratio d held within +-20.

    expm1, because exp(d) - 1 cancels: at |d| = 1e-4 its rounding error of 6e-8 exceeds the result, d^2 / 2 = 5e-9. The
    clamp, because expm1(d) may be off by a unit in the last place, which is more than d^2 / 2 where |d| < 1e-7.
    """
    d = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (torch.expm1(d) - d).clamp(min=0.0)


KL_LOSSES = {"low_var_kl": k3}
POLICY_LOSSES: dict[str, Callable[[LossInputs, float, float], LossResult]] = {"ppo_clip": ppo_clip}


def policy_loss(x: LossInputs, cfg: LossConfig, denominator: float) -> LossResult:
    """Surrogate - entropy_coeff * entropy + kl_coef * KL to the reference, summed over N, over `denominator`.

    Returns the loss (a scalar with gradient) and metrics [N] without.
    """
    per_token, metrics = POLICY_LOSSES[cfg.policy_loss](x, cfg.clip_ratio_low, cfg.clip_ratio_high)
    metrics["pg_loss"] = per_token.detach()
    metrics["entropy"] = x.entropy.detach()
    if cfg.entropy_coeff:
        per_token = per_token - cfg.entropy_coeff * x.entropy
    if cfg.kl_coef and x.ref_logprobs is not None:
        kl = KL_LOSSES[cfg.kl_loss_type](x.logprobs, x.ref_logprobs)
        per_token = per_token + cfg.kl_coef * kl
        metrics["kl"] = kl.detach()
    metrics["loss"] = per_token.detach()
    return per_token.sum() / denominator, metrics


def sft_loss(x: LossInputs, denominator: float) -> LossResult:
    """Negative log-likelihood of the demonstration's tokens, summed over N, over `denominator`."""
    per_token = -x.logprobs
    return per_token.sum() / denominator, {"loss": per_token.detach(), "entropy": x.entropy.detach()}


def difference(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    """|d|, k3 and, for the largest, |d| again, per token [N], of d = trainer's log-prob - engine's."""
    d = logprobs.detach() - old_logprobs
    return {"logprob_diff": d.abs(), "logprob_diff_k3": _k3_of(d), "logprob_diff_max": d.abs()}
