"""Vision arithmetic of families that resize an image to a grid of patches: Qwen2-VL and its successors.

Token counts follow from (height, width), so rows that are too long are found without reading pixels.
"""

from __future__ import annotations

import math

from timemaster.media.images import check_size
from timemaster.models.family import VisionSpec
from timemaster.types import Media


def fitted_size(height: int, width: int, spec: VisionSpec) -> tuple[int, int]:
    """Pixels (height, width) after resizing: multiples of one token's side, inside the pixel budget, aspect kept.

    The rule of Qwen2-VL's image processor (https://arxiv.org/abs/2409.12191), which transformers and vLLM apply.
    Raises InputError as `check_size` does.
    """
    check_size(height, width)
    side = spec.patch_size * spec.merge_size
    fitted = round(height / side) * side, round(width / side) * side
    if fitted[0] * fitted[1] > spec.max_pixels:
        shrink = math.sqrt(height * width / spec.max_pixels)
        return tuple(max(side, math.floor(x / shrink / side) * side) for x in (height, width))  # type: ignore[return-value]
    if fitted[0] * fitted[1] < spec.min_pixels:
        grow = math.sqrt(spec.min_pixels / (height * width))
        return tuple(math.ceil(x * grow / side) * side for x in (height, width))  # type: ignore[return-value]
    return fitted


def grid_thw(media: Media, spec: VisionSpec) -> tuple[int, int, int]:
    """Patches along (time, height, width) after resizing, as the processors of transformers and vLLM make them."""
    height, width = fitted_size(media.height, media.width, spec)
    frames = -(-media.num_frames // spec.temporal_patch_size)
    return frames, height // spec.patch_size, width // spec.patch_size


def num_grid_tokens(media: Media, spec: VisionSpec) -> int:
    """Placeholder tokens of one image or video."""
    frames, height, width = grid_thw(media, spec)
    return frames * height * width // spec.merge_size**2


def second_per_grid(media: Media, spec: VisionSpec) -> float:
    """Seconds between two temporal patches of a video; 0.0 for an image, which has no clock.

    Rounded as vLLM does: the processor gives a float32 tensor, which is cast to the model's dtype. Without rounding,
    positions differ where a product with the clock is almost a whole number, for example with every fifth frame at 24
    frames per second.
    """
    if media.kind != "video":
        return 0.0
    import torch

    seconds = torch.tensor(spec.temporal_patch_size / media.fps, dtype=torch.float32)
    return seconds.to(getattr(torch, spec.clock_dtype)).item()
