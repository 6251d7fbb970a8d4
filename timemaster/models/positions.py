"""Multimodal rotary positions (M-RoPE), built in one place for every forward pass of the trainer.

Text advances on all three axes (time, height, width) together. An image or video occupies a grid that starts at the
next position, and the text after it continues one past the largest position of the grid. vLLM samples with the same
positions. transformers has the same for still images but others for long videos, so the trainer does not use them.

Source of the scheme: Qwen2-VL (https://arxiv.org/abs/2409.12191), section 2.1; the absolute clock of videos:
Qwen2.5-VL (https://arxiv.org/abs/2502.13923), section 2.1.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from timemaster.models.family import VisionSpec
from timemaster.models.grid import grid_thw, second_per_grid
from timemaster.models.vision import num_tokens
from timemaster.types import InputError, Media


def find_spans(token_ids: Sequence[int], media: Sequence[Media], spec: VisionSpec) -> list[tuple[int, int]]:
    """(start, length) of every media item's placeholder tokens, in order. InputError when tokens and media disagree."""
    ids = np.asarray(token_ids)
    is_pad = (ids == spec.image_token_id) | (ids == spec.video_token_id)
    spans, cursor = [], 0
    for item in media:
        length = num_tokens(item, spec)
        ahead = np.flatnonzero(is_pad[cursor:])
        start = cursor + int(ahead[0]) if len(ahead) else len(ids)
        if not is_pad[start : start + length].all() or start + length > len(ids):
            raise InputError(f"{item.kind} {item.uid} needs {length} placeholder tokens, found fewer")
        spans.append((start, length))
        cursor = start + length
    if is_pad[cursor:].any():
        raise InputError(f"{int(is_pad[cursor:].sum())} placeholder tokens belong to no image or video")
    return spans


def mrope_positions(token_ids: Sequence[int], media: Sequence[Media], spec: VisionSpec) -> np.ndarray:
    """Positions [3, num_tokens] (time, height, width), int64, of one sequence that starts at position 0."""
    positions = np.empty((3, len(token_ids)), dtype=np.int64)
    cursor, position = 0, 0  # the next token, and the next position
    for item, (start, length) in zip(media, find_spans(token_ids, media, spec), strict=True):
        positions[:, cursor:start] = position + np.arange(start - cursor)
        position += start - cursor
        frames, height, width = grid_thw(item, spec)
        grid = np.indices((frames, height // spec.merge_size, width // spec.merge_size))
        if item.kind == "video":
            grid[0] = (grid[0] * (second_per_grid(item, spec) * spec.tokens_per_second)).astype(np.int64)
        positions[:, start : start + length] = position + grid.reshape(3, -1)
        position = int(positions[:, start : start + length].max()) + 1
        cursor = start + length
    positions[:, cursor:] = position + np.arange(len(token_ids) - cursor)
    return positions
