"""Losses: pure functions of per-token tensors, with the global denominator passed in.

Axes: N = trained tokens of one micro-batch. Every loss is a sum over N divided by the number of trained tokens of the
whole mini-batch on all ranks. So the gradients do not depend on how a mini-batch is split into micro-batches, packed or
distributed. Metrics are returned per token [N]; the backend adds them up, in total and by data source.

To add a policy loss: write a function like `ppo_clip`, add a line to `POLICY_LOSSES`, and a field to `LossConfig` for
each coefficient that it reads. `--help`, the checks and the trainer follow from these. Tensor methods instead of torch
functions keep this module free of torch, since the settings import it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from timemaster.fields import at_least, one_of, setting

if TYPE_CHECKING:
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


LossResult: TypeAlias = "tuple[torch.Tensor, dict[str, torch.Tensor]]"  # loss (per token [N] or a scalar), metrics [N]


def ppo_clip(x: LossInputs, cfg: LossConfig) -> LossResult:
    """-min(ratio * A, clip(ratio, 1 - low, 1 + high) * A) per token [N], ratio = exp(logprob - old_logprob).

    Source: PPO (https://arxiv.org/abs/1707.06347), equation 7; a separate upper bound: DAPO
    (https://arxiv.org/abs/2503.14476), section 3.1.
    """
    assert x.old_logprobs is not None
    assert x.advantages is not None
    ratio = (x.logprobs - x.old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    unclipped = -x.advantages * ratio
    clipped = -x.advantages * ratio.clamp(1 - cfg.clip_ratio_low, 1 + cfg.clip_ratio_high)
    is_clipped = clipped > unclipped
    metrics = {
        "clip_fraction_high": (is_clipped & (x.advantages > 0)).float(),
        "clip_fraction_low": (is_clipped & (x.advantages < 0)).float(),
        "ratio_mean": ratio.detach(),
    }
    return unclipped.maximum(clipped), metrics


def k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """exp(d) - d - 1 per token [N] with d = ref - logprob, at most 10: unbiased, never negative, low variance.

    Source: http://joschu.net/blog/kl-approx.html
    """
    return _k3_of(ref_logprobs - logprobs).clamp(max=K3_LIMIT)


def _k3_of(log_ratio: torch.Tensor) -> torch.Tensor:
    """exp(d) - 1 - d of a log-ratio d, which is clamped to +-20. Never negative.

    expm1 replaces exp(d) - 1, which loses digits: at |d| = 1e-4 its rounding error of 6e-8 exceeds the result,
    d^2 / 2 = 5e-9. The second clamp is needed since expm1(d) may be off by a unit in the last place, which is more
    than d^2 / 2 where |d| < 1e-7.
    """
    d = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return (d.expm1() - d).clamp(min=0.0)


POLICY_LOSSES: dict[str, Callable[[LossInputs, LossConfig], LossResult]] = {"ppo_clip": ppo_clip}
KL_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"low_var_kl": k3}


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """The settings that losses read: a part of actor."""

    policy_loss: str = setting("ppo_clip", "loss of the update; see timemaster/algo/losses.py", one_of(POLICY_LOSSES))
    clip_ratio_low: float = setting(0.2, "the probability ratio is clipped below at 1 - this", at_least(0))
    clip_ratio_high: float = setting(0.2, "the probability ratio is clipped above at 1 + this", at_least(0))
    entropy_coeff: float = setting(0.0, "coefficient of an entropy bonus, which is subtracted from the loss")
    use_kl_loss: bool = setting(False, "add a KL term to the reference model, which is then loaded")
    kl_loss_coef: float = setting(0.01, "coefficient of the KL term", at_least(0))
    kl_loss_type: str = setting(
        "low_var_kl", "estimator of the KL term; low_var_kl is k3 of http://joschu.net/blog/kl-approx.html",
        one_of(KL_LOSSES),
    )  # fmt: skip


def policy_loss(x: LossInputs, cfg: LossConfig, denominator: float) -> LossResult:
    """Policy loss - entropy_coeff * entropy + kl_loss_coef * KL to the reference: the sum over N / `denominator`.

    Returns the loss (a scalar with gradient) and metrics [N] without gradient.
    """
    per_token, metrics = POLICY_LOSSES[cfg.policy_loss](x, cfg)
    metrics["pg_loss"] = per_token.detach()
    metrics["entropy"] = x.entropy.detach()
    if cfg.entropy_coeff:
        per_token = per_token - cfg.entropy_coeff * x.entropy
    if cfg.use_kl_loss and cfg.kl_loss_coef and x.ref_logprobs is not None:
        kl = KL_LOSSES[cfg.kl_loss_type](x.logprobs, x.ref_logprobs)
        per_token = per_token + cfg.kl_loss_coef * kl
        metrics["kl"] = kl.detach()
    metrics["loss"] = per_token.detach()
    return per_token.sum() / denominator, metrics


def sft_loss(x: LossInputs, denominator: float) -> LossResult:
    """Negative log-likelihood of the demonstration's tokens, summed over N and divided by `denominator`."""
    per_token = -x.logprobs
    return per_token.sum() / denominator, {"loss": per_token.detach(), "entropy": x.entropy.detach()}


def difference(logprobs: torch.Tensor, old_logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Metrics [N] of d = trainer's log-prob - engine's: |d|, k3 of d, and |d| again, to keep its maximum."""
    d = logprobs.detach() - old_logprobs
    return {"logprob_diff": d.abs(), "logprob_diff_k3": _k3_of(d), "logprob_diff_max": d.abs()}
