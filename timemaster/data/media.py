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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timemaster.types import Example, InputError, Media, Message, Part

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

# Tags of EXIF and TIFF
BITS, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT = 258, 262, 274, 339
SIDEWAYS = (5, 6, 7, 8)  # orientations that change height and width
PNG_EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # where a PNG may hold an orientation
# What OpenAI's interface and browsers take. An MPO is a JPEG to all who know no better.
WEB_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "MPO": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


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


def load_model_config(path: str, revision: str = "main") -> dict[str, Any]:
    """The config.json of a Qwen2.5-VL folder or hub id. InputError for anything else. Does not import torch."""
    from transformers.utils import cached_file

    if not Path(path).is_dir():
        _check_hub_id(path)
    try:
        config = json.loads(Path(str(cached_file(path, "config.json", revision=revision))).read_text(encoding="utf-8"))
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
    """Seconds between two temporal patches of a video; 0.0 for an image, which has no clock.

    Rounded as vLLM does: the processor gives a float32 tensor, which is cast to the model's dtype. Unrounded, positions
    differ where a product with the clock is nearly whole: at 24 frames per second and every fifth frame, for instance.
    """
    if media.kind != "video":
        return 0.0
    import torch

    seconds = torch.tensor(spec.temporal_patch_size / media.fps, dtype=torch.float32)
    return seconds.to(getattr(torch, spec.clock_dtype)).item()


def load_image(media: Media) -> Image.Image:
    """The picture of a Media as `open_image` gives it."""
    return open_image(media.data if media.data is not None else media.path)


def open_image(file: bytes | str | Path) -> Image.Image:
    """The picture in an encoded file (its bytes or its path) as `as_seen` gives it. Raises PIL's errors, too."""
    from PIL import Image

    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        return as_seen(image)


def as_seen(image: Image.Image) -> Image.Image:
    """An opened picture as a person sees it, in RGB. Trainer, engines, report, contact sheets and judges all use this.

    It is turned as its EXIF data say, and transparency is laid on white. Samples of more than 8 bits are scaled by
    their depth, floating-point ones by their range. Colour profiles are not applied: the published models were trained
    without them. `image` itself is changed, too. Raises InputError for several frames, and for floating-point samples
    that are no numbers.
    """
    from PIL import Image, ImageCms, ImageOps

    check_still(image)
    _scale_transparent_colour(image)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _in_8_bits(image)
    elif image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        exact = ImageCms.Flags.NOOPTIMIZE  # else bright and dark shades are off by up to 4 of 255
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB", flags=exact)  # type: ignore[return-value]
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    flat = Image.new("RGB", rgba.size, "white")
    flat.paste(rgba, mask=rgba.getchannel("A"))
    return flat


def check_still(image: Image.Image) -> None:
    """InputError for an animation or several pages: showing the first alone would lose the others in silence."""
    # The further frames of an MPO, a camera's JPEG, are the same picture: a preview, or another eye's view.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        num_frames = image.n_frames  # type: ignore[attr-defined]
        raise InputError(f"{num_frames} frames: only still pictures can be shown; save one frame, or each by itself")


def _scale_transparent_colour(image: Image.Image) -> None:
    """PIL scales the samples of a PNG of 2, 4 or 16 bits to 8, but not the colour that stands for transparency."""
    colour, tiles = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format != "PNG" or colour is None or not tiles:
        return
    stored = tiles[0].args
    if stored in ("L;2", "L;4"):
        image.info["transparency"] = colour * (85 if stored == "L;2" else 17)
    elif stored == "RGB;16B":
        image.info["transparency"] = tuple(sample >> 8 for sample in colour)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """A grey picture of integer or floating-point samples with 8 bits a sample, in mode L, or LA with transparency."""
    import numpy as np
    from PIL import Image

    tags = getattr(image, "tag_v2", {})  # of a TIFF
    samples = np.asarray(image)
    if image.mode == "I" and _is_unsigned(tags):
        samples = samples.view(np.uint32)  # PIL reads them as signed
    black, white = _black_and_white(image, samples, tags)
    shade = (samples.astype(np.float64) - black) / max(white - black, 1e-300)
    if tags.get(PHOTOMETRIC) == 0:
        shade = 1 - shade  # 0 is white
    grey = Image.fromarray(np.rint(255 * shade.clip(0, 1)).astype(np.uint8))
    if "transparency" in image.info:
        opaque = np.where(samples == image.info["transparency"], 0, 255)
        grey.putalpha(Image.fromarray(opaque.astype(np.uint8)))
    return grey


def _is_unsigned(tags: Mapping[int, Any]) -> bool:
    return tags.get(BITS) == (32,) and tags.get(SAMPLE_FORMAT, (1,)) == (1,)


def _black_and_white(image: Image.Image, samples: np.ndarray, tags: Mapping[int, Any]) -> tuple[float, float]:
    """The samples that stand for black and for white. InputError for floating-point samples that are no numbers."""
    import numpy as np

    low, high = samples.min(), samples.max()
    if image.mode.startswith("I;16"):
        return 0, 2 ** tags.get(BITS, (16,))[0] - 1
    if image.mode == "I" and image.format == "PPM":
        return 0, 2**16 - 1  # PIL scales every depth to this
    if image.mode == "I" and low >= 0:
        if tags.get(BITS) == (16,):
            return 0, 2**15 - 1  # signed
        # Most files with 32 bits hold samples of a smaller depth: the smallest that can is taken for theirs.
        full = 2**32 - 1 if _is_unsigned(tags) else 2**31 - 1
        return 0, next(white for white in (2**8 - 1, 2**16 - 1, full) if high <= white)
    if not np.isfinite([low, high]).all():
        broken = samples.size - int(np.isfinite(samples).sum())
        raise InputError(f"{broken} of {samples.size} samples NaN or infinite: fill them first, or leave it out")
    return float(low), float(high)


def image_media(data: bytes) -> Media:
    """A Media for encoded image bytes, with the size as seen. Raises PIL's errors when the header cannot be read."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if _orientation(image, data) in SIDEWAYS and image.format != "TIFF":  # PIL gives a TIFF's size as turned
            width, height = height, width
    return Media(kind="image", uid=hashlib.sha256(data).hexdigest()[:32], data=data, height=height, width=width)


def _orientation(image: Image.Image, data: bytes) -> int:
    """How the EXIF data of an opened picture turn it, from 1 (not at all) to 8."""
    if image.format == "PNG" and not any(mark in data for mark in PNG_EXIF):
        return 1  # PIL would decode all of it to look behind the pixels
    return int(image.getexif().get(ORIENTATION, 1))


def web_image(data: bytes) -> tuple[str, bytes]:
    """(media type, file) of an encoded picture for browsers and vision models that are asked over HTTP.

    The file itself where they take its format and see in it what `as_seen` gives, else a PNG of that.
    """
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        check_still(image)
        is_plain = image.mode in ("1", "L", "P", "RGB") and not image.has_transparency_data
        if image.format in WEB_TYPES and is_plain and _orientation(image, data) not in range(2, 9):
            return WEB_TYPES[image.format], data
        buffer = io.BytesIO()
        as_seen(image).save(buffer, "PNG")
    return "image/png", buffer.getvalue()


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
