"""Samples to tensors, packed or padded.

Axes: B = rows, T = tokens of a row, N = trained tokens. Packed: one row holds all sequences; text positions
restart at each of them. Padded: one row per sequence. The vision tower gets each image of a micro-batch once, even if
several sequences show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from timemaster.models.family import VisionSpec
from timemaster.models.positions import find_spans
from timemaster.models.vision import PixelCache, num_tokens
from timemaster.types import Sample


@dataclass(slots=True, kw_only=True)
class Images:
    """The distinct images of a micro-batch, and where their features go."""

    inputs: dict[str, torch.Tensor]  # of the vision tower, as the family's `image_inputs` makes them
    feature_index: torch.Tensor  # [image tokens of the batch] index of each token's feature among those of all images
    feature_at: torch.Tensor  # [image tokens of the batch] flat positions of these tokens

    def to(self, device: torch.device) -> Images:
        """The same images on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Images(inputs=inputs, feature_index=self.feature_index.to(device), feature_at=self.feature_at.to(device))


@dataclass(slots=True, kw_only=True)
class Batch:
    """One micro-batch."""

    input_ids: torch.Tensor  # [B, T]
    position_ids: torch.Tensor  # [4, B, T]: text positions (restarting per sequence), then time, height, width
    attention_mask: torch.Tensor | None  # [B, T], 1 on tokens; None when packed
    select: torch.Tensor  # [N] flat positions whose next token is trained
    targets: torch.Tensor  # [N] those next tokens
    images: Images | None  # None without images
    old_logprobs: torch.Tensor | None  # [N]
    ref_logprobs: torch.Tensor | None  # [N]
    advantages: torch.Tensor  # [N]
    temperatures: torch.Tensor | None  # [N] sampling temperatures; 0.0 or None: the run's temperature
    counts: list[int]  # trained tokens of each sample; sums to N

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        moved: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            moved[item.name] = value.to(device) if isinstance(value, torch.Tensor | Images) else value
        return Batch(**moved)


class Collator:
    """Makes batches; keeps the pixels of recent images."""

    def __init__(self, processor_path: str, spec: VisionSpec, pad_token_id: int, padded: bool) -> None:
        self.spec = spec
        self.pixels = PixelCache(processor_path, spec)
        self._pad = pad_token_id
        self._padded = padded

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """One micro-batch of at least one sample."""
        lengths = [len(sample.token_ids) for sample in samples]
        width = max(lengths) if self._padded else sum(lengths)
        rows = len(samples) if self._padded else 1
        starts = [k * width for k in range(rows)] if self._padded else [0, *accumulate(lengths[:-1])]
        input_ids = torch.full((rows * width,), self._pad)
        position_ids = torch.zeros((4, rows * width), dtype=torch.long)
        attention = torch.zeros(rows * width, dtype=torch.long)
        positions = self.spec.family.positions
        for sample, start, length in zip(samples, starts, lengths, strict=True):
            here = slice(start, start + length)
            input_ids[here] = torch.tensor(sample.token_ids)
            position_ids[0, here] = torch.arange(length)
            position_ids[1:, here] = torch.from_numpy(positions(sample.token_ids, sample.media, self.spec))
            attention[here] = 1
        trained = [np.flatnonzero(sample.mask) for sample in samples]
        select = np.concatenate([start + at - 1 for start, at in zip(starts, trained, strict=True)])
        select_t = torch.from_numpy(select)
        return Batch(
            input_ids=input_ids.view(rows, width),
            position_ids=position_ids.view(4, rows, width),
            attention_mask=attention.view(rows, width) if self._padded else None,
            select=select_t,
            targets=input_ids[select_t + 1],
            images=self._images(samples, starts),
            old_logprobs=_gather([s.logprobs for s in samples], trained),
            ref_logprobs=_gather([s.ref_logprobs for s in samples], trained),
            advantages=torch.cat([torch.full((len(at),), s.advantage) for s, at in zip(samples, trained, strict=True)]),
            temperatures=_temperatures(samples, trained),
            counts=[len(at) for at in trained],
        )

    def _images(self, samples: Sequence[Sample], starts: Sequence[int]) -> Images | None:
        distinct = {item.uid: item for sample in samples for item in sample.media}
        if not distinct:
            return None
        sizes = [num_tokens(item, self.spec) for item in distinct.values()]
        first_feature = dict(zip(distinct, [0, *accumulate(sizes[:-1])], strict=True))
        feature_index, feature_at = [], []
        for sample, start in zip(samples, starts, strict=True):
            spans = find_spans(sample.token_ids, sample.media, self.spec)
            for item, (offset, length) in zip(sample.media, spans, strict=True):
                first = first_feature[item.uid]
                feature_index.append(torch.arange(first, first + length))
                feature_at.append(torch.arange(start + offset, start + offset + length))
        media = list(distinct.values())
        inputs = self.spec.family.image_inputs([self.pixels.get(item) for item in media], media, self.spec)
        return Images(inputs=inputs, feature_index=torch.cat(feature_index), feature_at=torch.cat(feature_at))


def _temperatures(samples: Sequence[Sample], trained: Sequence[np.ndarray]) -> torch.Tensor | None:
    if all(sample.temperatures is None for sample in samples):
        return None
    return _gather([sample.temperatures or [0.0] * len(sample.token_ids) for sample in samples], trained)


def _gather(values: Sequence[list[float] | None], trained: Sequence[np.ndarray]) -> torch.Tensor | None:
    """[N] the values of the trained tokens of all samples; None when the samples have no values."""
    rows = [np.asarray(v)[at] for v, at in zip(values, trained, strict=True) if v is not None]
    if not rows:
        return None
    if len(rows) != len(values):
        raise ValueError("either every sample of a micro-batch carries these log-probs or none does")
    return torch.from_numpy(np.concatenate(rows)).float()
