"""What a model says about vision: how many tokens a picture costs, and its pixels for the trainer.

Token counts are arithmetic on (height, width): filtering over-long rows reads no pixels. Pixels are decoded and
processed once per content hash and kept in a small cache, so the rollouts of a group share them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from timemaster.media.images import check_size, load_image
from timemaster.types import InputError, Media

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """What a Qwen2.5-VL says about vision, and the pixel budget of the run."""

    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    patch_size: int  # pixels
    merge_size: int  # patches per side that become one token
    temporal_patch_size: int  # frames per patch
    tokens_per_second: float  # temporal positions per second of video
    min_pixels: int
    max_pixels: int
    clock_dtype: str = "float32"  # in which the engine keeps the seconds of videos: its model's


def vision_spec(config: dict[str, Any], min_pixels: int, max_pixels: int, clock_dtype: str = "float32") -> VisionSpec:
    """Read the spec from the config.json of a Qwen2.5-VL; what it leaves out has the published models' value.

    `clock_dtype` matters to positions of videos only.
    """
    vision = config["vision_config"]
    return VisionSpec(
        image_token_id=config.get("image_token_id", 151655),
        video_token_id=config.get("video_token_id", 151656),
        vision_start_token_id=config.get("vision_start_token_id", 151652),
        vision_end_token_id=config.get("vision_end_token_id", 151653),
        patch_size=vision.get("patch_size", 14),
        merge_size=vision.get("spatial_merge_size", 2),
        temporal_patch_size=vision.get("temporal_patch_size", 2),
        tokens_per_second=vision.get("tokens_per_second", 2),
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        clock_dtype=clock_dtype,
    )


def banned_token_ids(spec: VisionSpec) -> list[int]:
    """Tokens the policy must never sample: after one, the next forward pass would look for pixels that do not exist."""
    return sorted({spec.image_token_id, spec.video_token_id, spec.vision_start_token_id, spec.vision_end_token_id})


def grid_thw(media: Media, spec: VisionSpec) -> tuple[int, int, int]:
    """Patches along (time, height, width) after resizing, as the processors of transformers and vLLM make them."""
    height, width = fitted_size(media.height, media.width, spec)
    frames = -(-media.num_frames // spec.temporal_patch_size)
    return frames, height // spec.patch_size, width // spec.patch_size


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


def num_tokens(media: Media, spec: VisionSpec) -> int:
    """Placeholder tokens of one image or video."""
    frames, height, width = grid_thw(media, spec)
    return frames * height * width // spec.merge_size**2


def second_per_grid(media: Media, spec: VisionSpec) -> float:
    """Seconds between two temporal patches of a video; 0.0 for an image, which has no clock.

    Rounded as vLLM does: the processor gives a float32 tensor, which is cast to the model's dtype. Unrounded, positions
    differ where a product with the clock is nearly whole: at 24 frames per second and every fifth frame, for instance.
    """
    if media.kind != "video":
        return 0.0
    import torch

    seconds = torch.tensor(spec.temporal_patch_size / media.fps, dtype=torch.float32)
    return seconds.to(getattr(torch, spec.clock_dtype)).item()


class PixelCache:
    """Pixels ready for the vision tower, by content hash; the least recently used fall out above `max_bytes`."""

    def __init__(self, processor_path: str, spec: VisionSpec, max_bytes: int = 1 << 30) -> None:
        from transformers import AutoImageProcessor

        size = {"shortest_edge": spec.min_pixels, "longest_edge": spec.max_pixels}
        self._processor = AutoImageProcessor.from_pretrained(processor_path, size=size)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._items: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.num_processed = 0

    def get(self, media: Media) -> torch.Tensor:
        """Patches [num_patches, channels * temporal_patch * patch * patch], float32."""
        if media.kind != "image":
            raise InputError(f"media {media.uid} is a {media.kind}: only images can be decoded so far.")
        if media.uid in self._items:
            self._items.move_to_end(media.uid)
            return self._items[media.uid]
        pixels = self._processor(images=[load_image(media)], return_tensors="pt")["pixel_values"]
        self.num_processed += 1
        self._items[media.uid] = pixels
        self._bytes += pixels.numel() * pixels.element_size()
        while self._bytes > self._max_bytes and len(self._items) > 1:
            _, old = self._items.popitem(last=False)
            self._bytes -= old.numel() * old.element_size()
        return pixels
