"""Images and videos: how many tokens they cost, and their pixels for the trainer.

Token counts are arithmetic on (height, width): filtering over-long rows reads no pixels. Pixels are decoded and
processed once per content hash and kept in a small cache, so the rollouts of a group share them.
Knows nothing of text, tokens ids or engines.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timemaster.types import Example, InputError, Media, Message, Part

if TYPE_CHECKING:
    import torch
    from PIL import Image


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


def vision_spec(config: dict[str, Any], min_pixels: int, max_pixels: int) -> VisionSpec:
    """Read the spec from the config.json of a Qwen2.5-VL; what it leaves out has the published models' value."""
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
    )


def load_model_config(path: str) -> dict[str, Any]:
    """The config.json of a Qwen2.5-VL folder or hub id. InputError for anything else. Does not import torch."""
    from transformers.utils import cached_file

    if not Path(path).is_dir():
        _check_hub_id(path)
    try:
        config = json.loads(Path(str(cached_file(path, "config.json"))).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = "Give a local Qwen2.5-VL folder (with config.json) or a hub id such as Qwen/Qwen2.5-VL-3B-Instruct."
        raise InputError(f"model.path={path!r} cannot be read as a model: {error}. {hint}") from error
    if config.get("model_type") != "qwen2_5_vl":
        kind = config.get("model_type", "unknown")
        raise InputError(f"model.path={path!r} is a {kind} model: only qwen2_5_vl (Qwen2.5-VL) is supported.")
    return config


def _check_hub_id(path: str) -> None:
    """InputError when `path`, which is no folder, is meant to be one: then the network is not asked."""
    home = os.path.expanduser(path)
    if home != path and Path(home).is_dir():
        raise InputError(f"model.path={path!r}: write the folder out, {home!r}; the shell has not.")
    if path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path.split("/")[0]).is_dir():
        raise InputError(
            f"model.path={path!r}: no such folder, and no hub id such as Qwen/Qwen2.5-VL-3B-Instruct. Looked from "
            f"{Path.cwd()}. To fetch a model into it: hf download OWNER/NAME --local-dir {path}"
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


def check_size(height: int, width: int) -> None:
    """InputError for no pixels and for an aspect ratio over 200, which the image processor refuses."""
    if min(height, width) < 1 or max(height, width) > 200 * min(height, width):
        raise InputError(f"{width} x {height} pixels: the sides must be positive and differ at most 200-fold")


def num_tokens(media: Media, spec: VisionSpec) -> int:
    """Placeholder tokens of one image or video."""
    frames, height, width = grid_thw(media, spec)
    return frames * height * width // spec.merge_size**2


def second_per_grid(media: Media, spec: VisionSpec) -> float:
    """Seconds between two temporal patches of a video; 0.0 for an image, which has no clock."""
    return spec.temporal_patch_size / media.fps if media.kind == "video" else 0.0


def load_image(media: Media) -> Image.Image:
    """Decode to RGB; transparency is laid on white."""
    from PIL import Image

    with Image.open(io.BytesIO(media.data) if media.data is not None else media.path) as image:
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            flat = Image.new("RGB", rgba.size, "white")
            flat.paste(rgba, mask=rgba.getchannel("A"))
            return flat
        return image.convert("RGB")


def image_media(data: bytes) -> Media:
    """A Media for encoded image bytes. Raises PIL's errors when the header cannot be read."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
    return Media(kind="image", uid=hashlib.sha256(data).hexdigest()[:32], data=data, height=height, width=width)


def blank(example: Example) -> Example:
    """The same example with every image white, of the same size: the control that shows whether the model looks."""
    messages = [Message(m.role, [_blank_part(part) for part in m.parts]) for m in example.messages]
    return replace(example, messages=messages)


def _blank_part(part: Part) -> Part:
    if part.media is None:
        return part
    if part.media.kind != "image":
        raise InputError("eval.blank_images blanks images only; this row holds a video.")
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (part.media.width, part.media.height), "white").save(buffer, "PNG")
    return Part("image", media=image_media(buffer.getvalue()))


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
