"""The number of tokens of an image, and its pixels for the forward pass.

Pixels are decoded and processed once per content hash and kept in a small cache, so the rollouts of a group share them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from timemaster.media.images import load_image
from timemaster.models.family import DEFAULT, VisionSpec, family_of
from timemaster.types import InputError, Media

if TYPE_CHECKING:
    import torch


def vision_spec(
    config: Mapping[str, Any], min_pixels: int, max_pixels: int, clock_dtype: str = "float32"
) -> VisionSpec:
    """The vision facts of a model by its config.json. `clock_dtype` matters to positions of videos only."""
    family = family_of(config)
    return family.vision(config, family=family, min_pixels=min_pixels, max_pixels=max_pixels, clock_dtype=clock_dtype)


def default_vision_spec(min_pixels: int, max_pixels: int) -> VisionSpec:
    """The vision facts of the default family's published models, for counting tokens where no model is given."""
    return vision_spec({"model_type": DEFAULT}, min_pixels, max_pixels)


def check_pixels(spec: VisionSpec) -> None:
    """InputError when the largest image that data.max_pixels allows is smaller than one token."""
    side = spec.patch_size * spec.merge_size
    if spec.max_pixels < side * side:
        raise InputError(
            f"data.max_pixels={spec.max_pixels}: allowed is at least {side * side} with a {spec.family.name} model. "
            f"{side} x {side} pixels become one token."
        )


def num_tokens(media: Media, spec: VisionSpec) -> int:
    """Placeholder tokens of one image or video. Reads no pixels."""
    return spec.family.num_tokens(media, spec)


class PixelCache:
    """Pixels ready for the vision tower, by content hash; the least recently used are dropped above `max_bytes`."""

    def __init__(self, processor_path: str, spec: VisionSpec, max_bytes: int = 1 << 30) -> None:
        from transformers import AutoImageProcessor

        size = spec.family.processor_size(spec.min_pixels, spec.max_pixels)
        self._processor = AutoImageProcessor.from_pretrained(processor_path, size=size)
        self._max_bytes = max_bytes
        self._bytes = 0
        self._items: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.num_processed = 0

    def get(self, media: Media) -> torch.Tensor:
        """The image processor's `pixel_values` of one image, float32. InputError for a video."""
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
