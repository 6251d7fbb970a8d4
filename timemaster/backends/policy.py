"""Qwen2.5-VL with a fused head: from a micro-batch to the log-probs and entropies of its trained tokens.

One module, one forward, so that FSDP2's hooks see everything. The [tokens, vocabulary] logits never exist whole: the
head runs over chunks of the trained positions only and is recomputed in the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from timemaster.tokens.batch import Batch

CHUNK_TOKENS = 1024
BANNED_LOGIT = -1e30  # not -inf: zero probability times -inf would be NaN in the entropy


class _Float32Linear(torch.autograd.Function):
    """hidden @ weight.T, summed and kept in float32 as vLLM's float32 head does; gradients in the inputs' dtype.

    On GPU no float32 copy of the weight is made. torch has no derivative for `mm` with `out_dtype`.
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
    """Wraps a Qwen2_5_VLForConditionalGeneration. `banned` tokens have probability zero, as in the engines."""

    banned: torch.Tensor

    def __init__(
        self, model: nn.Module, banned: list[int], train_vision: bool, vision_is_sharded: bool, float32_logits: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("banned", torch.tensor(banned), persistent=False)
        self._train_vision, self._vision_is_sharded = train_vision, vision_is_sharded
        self._linear = _Float32Linear.apply if float32_logits else F.linear

    def forward(
        self, batch: Batch, temperature: float, train_entropy: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs [N] and entropies [N] (nats) of the trained tokens at the sampling temperature, float32.

        `temperature` is that of the run; a token's own in `batch.temperatures` takes its place.
        Entropies carry a gradient only with `train_entropy`: it costs another [chunk, vocabulary] in the backward pass.
        """
        hidden = self.hidden_states(batch).flatten(0, 1)[batch.select]
        weight = self.model.lm_head.weight  # type: ignore[union-attr]
        own = batch.temperatures  # [N]
        parts = []
        for i in range(0, len(hidden), CHUNK_TOKENS):
            chunk = slice(i, i + CHUNK_TOKENS)
            at: float | torch.Tensor = temperature
            if own is not None:
                at = torch.where(own[chunk] > 0, own[chunk], temperature)[:, None]
            args = (hidden[chunk], weight, batch.targets[chunk], at, train_entropy)
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
        logprobs = logits.log_softmax(-1)  # never above 0, so no term of the entropy is below
        with torch.set_grad_enabled(train_entropy and torch.is_grad_enabled()):
            entropy = -(logprobs.exp() * logprobs).sum(-1)
        return logprobs.gather(-1, targets[:, None])[:, 0], entropy

    def hidden_states(self, batch: Batch) -> torch.Tensor:
        """The language model's last hidden states [B, T, hidden]."""
        core: Any = self.model.model
        embeds = core.get_input_embeddings()(batch.input_ids)
        if batch.pixel_values is not None:
            features = self._features(core, batch.pixel_values, batch.image_grid_thw).to(embeds.dtype)
            flat = embeds.flatten(0, 1)
            flat = flat.index_copy(0, batch.feature_at, features[batch.feature_index])
            embeds = flat.view_as(embeds)
        elif self._vision_is_sharded:
            embeds = embeds + 0.0 * self._dummy_features(core).sum().to(embeds.dtype)
        out = core.language_model(
            inputs_embeds=embeds,
            position_ids=batch.position_ids,
            attention_mask=batch.attention_mask,
            use_cache=False,
        )
        return out.last_hidden_state

    def _features(self, core: Any, pixel_values: torch.Tensor, grid_thw: torch.Tensor | None) -> torch.Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._train_vision):
            return torch.cat(core.get_image_features(pixel_values, grid_thw, return_dict=True).pooler_output)

    def _dummy_features(self, core: Any) -> torch.Tensor:
        """A pass over one blank image: a rank without images must join the collectives of the ranks that have some."""
        vision = core.config.vision_config
        patches = vision.spatial_merge_size**2
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        grid = torch.tensor([[1, vision.spatial_merge_size, vision.spatial_merge_size]], device=self.banned.device)
        return self._features(core, torch.zeros(patches, width, device=self.banned.device), grid)
