"""The model with a fused head: from a micro-batch to the log-probs and entropies of its trained tokens.

All of it is the forward pass of one module, because FSDP2's hooks run there. The [tokens, vocabulary] logits never
exist as a whole: the head runs over chunks of the trained positions only, and again in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from timemaster.models.family import VisionSpec
from timemaster.tokens.batch import Batch

CHUNK_TOKENS = 1024
BANNED_LOGIT = -1e30  # not -inf: zero probability times -inf would be NaN in the entropy


class _Float32Linear(torch.autograd.Function):
    """hidden @ weight.T with float32 sums and result, as in vLLM's float32 head; gradients have the inputs' dtype.

    On GPU it makes no float32 copy of the weight: it uses `mm` with `out_dtype`, for which torch has no derivative.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(hidden, weight)
        if hidden.is_cuda and hidden.dtype != torch.float32:
            return torch.mm(hidden, weight.t(), out_dtype=torch.float32)
        return F.linear(hidden.float(), weight.float())

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, weight = ctx.saved_tensors
        grad = grads[0].to(hidden.dtype)
        return grad @ weight, grad.t() @ hidden


class Policy(nn.Module):
    """Wraps a transformers model. Banned tokens have probability zero, as in the engines."""

    banned: torch.Tensor

    def __init__(
        self, model: Any, spec: VisionSpec, train_vision: bool, vision_is_sharded: bool, float32_logits: bool
    ) -> None:
        super().__init__()
        self.model: Any = model
        self.register_buffer("banned", torch.tensor(spec.banned_token_ids), persistent=False)
        self._family, self._train_vision, self._vision_is_sharded = spec.family, train_vision, vision_is_sharded
        self._linear = _Float32Linear.apply if float32_logits else F.linear

    def forward(
        self, batch: Batch, temperature: float, train_entropy: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs [N] and entropies [N] (nats) of the trained tokens at the sampling temperature, float32.

        `temperature` is the run's. Where `batch.temperatures` is greater than 0, it replaces the run's.
        Entropies have a gradient only with `train_entropy`: it costs another [chunk, vocabulary] in the backward pass.
        """
        hidden = self.hidden_states(batch).flatten(0, 1)[batch.select]
        weight = self.model.get_output_embeddings().weight
        parts = []
        for i in range(0, len(hidden), CHUNK_TOKENS):
            chunk = slice(i, i + CHUNK_TOKENS)
            divisor: float | torch.Tensor = temperature
            if batch.temperatures is not None:
                per_token = batch.temperatures[chunk]
                divisor = torch.where(per_token > 0, per_token, temperature)[:, None]
            args = (hidden[chunk], weight, batch.targets[chunk], divisor, train_entropy)
            parts.append(checkpoint(self._head, *args, use_reentrant=False))
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _head(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        temperature: float | torch.Tensor,
        train_entropy: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._linear(hidden, weight.to(hidden.dtype)).float() / temperature
        logits = logits.index_fill(-1, self.banned, BANNED_LOGIT)
        logprobs = logits.log_softmax(-1)  # never above 0, so no term of the entropy is negative
        with torch.set_grad_enabled(train_entropy and torch.is_grad_enabled()):
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, targets[:, None])[:, 0], entropy

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """The language model's last hidden states [B, T, hidden]."""
        embeds = self.model.get_input_embeddings()(batch.input_ids)
        if batch.images is not None:
            features = self._features(batch.images.inputs).to(embeds.dtype)
            flat = embeds.flatten(0, 1)
            flat = flat.index_copy(0, batch.images.feature_at, features[batch.images.feature_index])
            embeds = flat.view_as(embeds)
        elif self._vision_is_sharded:
            # A rank without images must join the collectives of the ranks that have images.
            blank = self._family.blank_image(self.model.config)
            features = self._features({name: tensor.to(self.banned.device) for name, tensor in blank.items()})
            embeds = embeds + 0.0 * features.sum().to(embeds.dtype)
        return self._family.decode(self.model, embeds, batch.position_ids, batch.attention_mask)

    def _features(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._train_vision):
            return self._family.image_features(self.model, inputs)
