"""Images: decoding them as a person sees them, their sizes, and the formats that browsers and APIs accept.

Knows nothing of models, text or tokens.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timemaster.types import Example, InputError, Media, Message, Part

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# Tags of EXIF and TIFF
BITS, PHOTOMETRIC, ORIENTATION, SAMPLE_FORMAT = 258, 262, 274, 339
SIDEWAYS = (5, 6, 7, 8)  # orientations that change height and width
PNG_EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # where a PNG may hold an orientation
# Formats that OpenAI's API and browsers accept. Programs that do not know MPO read it as a JPEG.
WEB_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "MPO": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


def check_size(height: int, width: int) -> None:
    """Raise InputError for an image without pixels or with an aspect ratio over 200: image processors refuse it."""
    if min(height, width) < 1 or max(height, width) > 200 * min(height, width):
        raise InputError(f"{width} x {height} pixels: the sides must be positive and differ at most 200-fold")


def load_image(media: Media) -> Image.Image:
    """The image of a Media, decoded as in `open_image`."""
    return open_image(media.data if media.data is not None else media.path)


def open_image(file: bytes | str | Path) -> Image.Image:
    """The image in an encoded file (its bytes or its path), converted as in `as_seen`. Raises PIL's errors, too."""
    from PIL import Image

    with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        return as_seen(image)


def as_seen(image: Image.Image) -> Image.Image:
    """An opened image as a person sees it, in RGB. Trainer, engines, report, contact sheets and judges all use this.

    It is rotated by its EXIF orientation, and transparency is composited on white. Samples of more than 8 bits are
    scaled by their depth, floating-point samples by their range. Colour profiles are not applied: the published models
    were trained without them. `image` itself is modified, too. Raises InputError for an image with several frames,
    and for NaN or infinite samples.
    """
    from PIL import Image, ImageCms, ImageOps

    check_still(image)
    _scale_transparent_colour(image)
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _in_8_bits(image)
    elif image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        exact = ImageCms.Flags.NOOPTIMIZE  # without it, bright and dark shades are off by up to 4 of 255
        return ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB", flags=exact)  # type: ignore[return-value]
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    flat = Image.new("RGB", rgba.size, "white")
    flat.paste(rgba, mask=rgba.getchannel("A"))
    return flat


def check_still(image: Image.Image) -> None:
    """Raise InputError for an animation or several pages: all frames but the first would be lost silently."""
    # The further frames of an MPO (a camera's JPEG) show the same scene: a preview, or the other half of a stereo pair.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        num_frames = image.n_frames  # type: ignore[attr-defined]
        raise InputError(
            f"{num_frames} frames: only still images can be used; save one frame, or each frame as an image of its own"
        )


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
    """A grey image of integer or floating-point samples with 8 bits a sample: mode L, or LA with transparency."""
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
    """The sample values of black and of white. Raises InputError for NaN or infinite samples."""
    import numpy as np

    low, high = samples.min(), samples.max()
    if image.mode.startswith("I;16"):
        return 0, 2 ** tags.get(BITS, (16,))[0] - 1
    if image.mode == "I" and image.format == "PPM":
        return 0, 2**16 - 1  # PIL scales every depth to this
    if image.mode == "I" and low >= 0:
        if tags.get(BITS) == (16,):
            return 0, 2**15 - 1  # signed
        # Most 32-bit files hold samples of a smaller depth: the smallest depth that can hold them is assumed.
        full = 2**32 - 1 if _is_unsigned(tags) else 2**31 - 1
        return 0, next(white for white in (2**8 - 1, 2**16 - 1, full) if high <= white)
    if not np.isfinite([low, high]).all():
        broken = samples.size - int(np.isfinite(samples).sum())
        raise InputError(
            f"{broken} of {samples.size} samples are NaN or infinite: replace them first, or leave the image out"
        )
    return float(low), float(high)


def image_media(data: bytes) -> Media:
    """A Media of encoded image bytes, with the size after rotation. Raises PIL's errors for an unreadable header."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        if _orientation(image, data) in SIDEWAYS and image.format != "TIFF":  # PIL gives a TIFF's size after rotation
            width, height = height, width
    return Media(kind="image", uid=hashlib.sha256(data).hexdigest()[:32], data=data, height=height, width=width)


def _orientation(image: Image.Image, data: bytes) -> int:
    """The EXIF orientation of an opened image: 1 (upright) to 8."""
    if image.format == "PNG" and not any(mark in data for mark in PNG_EXIF):
        return 1  # PIL would decode the whole image to look for EXIF data after the pixels
    return int(image.getexif().get(ORIENTATION, 1))


def web_image(data: bytes) -> tuple[str, bytes]:
    """(media type, bytes) of an encoded image for browsers and for vision models behind an HTTP API.

    The bytes are `data` if clients accept its format and show it as `as_seen` does. Otherwise they are a PNG of the
    image that `as_seen` returns.
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
    """The example with white images of the same sizes: a control that shows whether the model uses its images."""
    messages = [Message(m.role, [_blank_part(part) for part in m.parts]) for m in example.messages]
    return replace(example, messages=messages)


def _blank_part(part: Part) -> Part:
    if part.media is None:
        return part
    if part.media.kind != "image":
        raise InputError("eval.blank_images blanks images only; this row has a video.")
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (part.media.width, part.media.height), "white").save(buffer, "PNG")
    return Part("image", media=image_media(buffer.getvalue()))
