"""Pictures of every mode and depth look as a person sees them, to the trainer, the report, contact sheets and judges."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from timemaster.data.rows import image_media as row_image
from timemaster.judge import image_part
from timemaster.media.images import as_seen, image_media, load_image, open_image, web_image
from timemaster.results.report.images import thumbnail
from timemaster.series.sheet import GAP, contact_sheet
from timemaster.types import InputError

WIDTH, HEIGHT = 36, 20
X, Y = np.meshgrid(np.linspace(0, 1, WIDTH), np.linspace(0, 1, HEIGHT))
SHARE = 0.2 + 0.5 * X + 0.2 * Y  # of full scale
GREY = np.rint(255 * SHARE).astype(np.uint8)
COLOUR = np.stack([GREY, np.rint(255 * (0.7 - 0.4 * X)), np.rint(90 + 80 * Y)], axis=-1).astype(np.uint8)
ALPHA = np.rint(255 * Y).astype(np.uint8)

# How a stored picture is turned so that a person sees it upright, by EXIF's orientation
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


def png(depth: int, colour_type: int, samples: np.ndarray, extra: bytes = b"") -> bytes:
    """A PNG with samples as they are to stand in the file; `extra` are chunks before the pixels."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if depth < 8:
        bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., -depth:].reshape(height, -1)
        packed = np.packbits(bits, axis=-1)
    else:
        packed = rows.astype(">u2" if depth == 16 else np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in packed)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def tiff(samples: np.ndarray, sample_format: int, photometric: int = 1, bits: int = 0) -> bytes:
    """A grey TIFF of one strip. Sample formats: 1 unsigned, 2 signed, 3 floating point."""
    height, width = samples.shape
    bits = bits or samples.dtype.itemsize * 8
    if bits == 12:  # two samples in three bytes
        pairs = samples.astype(np.uint16).reshape(height, -1, 2)
        packed = [pairs[..., 0] >> 4, (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8, pairs[..., 1] & 255]
        data = np.stack(packed, axis=-1).astype(np.uint8).tobytes()
    else:
        data = samples.tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 150, 274: 1, 277: 1, 278: height}
    tags |= {279: len(data), 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries).ljust(150, b"\0") + data


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"tiffinfo": {274: 1}} if kind == "TIFF" else {}), **options)
    return file.getvalue()


def grey(share: np.ndarray) -> np.ndarray:
    return np.repeat(255 * share[..., None], 3, axis=-1)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def from_lab(lab: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D50), in bytes as in a TIFF (a and b are signed), to sRGB by the published formulas."""
    light, a, b = lab[..., 0] / 2.55, *np.moveaxis(lab[..., 1:].view(np.int8).astype(float), -1, 0)
    f = (light[..., None] + 16) / 116 + np.stack([a / 500, 0 * a, -b / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1.0, 0.8249]
    matrix = [[3.1339, -1.6169, -0.4906], [-0.9785, 1.9160, 0.0333], [0.0720, -0.2290, 1.4057]]  # Bradford, to D65
    linear = (xyz @ np.transpose(matrix)).clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def from_hsv(hsv: np.ndarray) -> np.ndarray:
    h, s, v = (hsv[..., i].astype(float) / 255 for i in range(3))
    k = [(n + h * 6) % 6 for n in (5, 3, 1)]
    return 255 * np.stack([v - v * s * np.clip(np.minimum(n, 4 - n), 0, 1) for n in k], axis=-1)


def from_ycbcr(ycc: np.ndarray) -> np.ndarray:
    y, cb, cr = ycc[..., 0].astype(float), ycc[..., 1] - 128.0, ycc[..., 2] - 128.0
    return np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1).clip(0, 255)


PALETTE = np.stack([np.arange(256), 255 - np.arange(256), np.full(256, 40)], axis=-1).astype(np.uint8)
LAB = np.stack([GREY, (20 * X - 10).astype(np.int8).view(np.uint8), (30 * Y).astype(np.uint8)], axis=-1)
CMYK = np.stack([*np.moveaxis(COLOUR, -1, 0), np.rint(60 * Y).astype(np.uint8)], axis=-1)
LEVELS = np.rint(15 * SHARE)
FLOATS = (SHARE * 7.5 - 3).astype("<f4")
SIXTEEN = np.rint(65535 * SHARE)
KEY = SIXTEEN[5, 5] == SIXTEEN


def in_mode(mode: str, samples: np.ndarray) -> Image.Image:
    return Image.frombytes(mode, (WIDTH, HEIGHT), np.ascontiguousarray(samples).tobytes())


def with_palette(mode: str, alpha: list[int] | None = None) -> Image.Image:
    image = in_mode(mode, GREY if mode == "P" else np.stack([GREY, ALPHA], axis=-1))
    image.putpalette(PALETTE.tobytes())
    if alpha:
        image.info["transparency"] = bytes(alpha)
    return image


def as_colours(samples: np.ndarray) -> np.ndarray:
    return PALETTE[samples].astype(float)


# Name -> (the encoded file, or an opened picture where no format has the mode; its RGB by arithmetic on the samples)
PICTURES: dict[str, tuple[bytes | Image.Image, np.ndarray]] = {
    "1": (saved(Image.fromarray(GREY > 127), "PNG"), grey((GREY > 127).astype(float))),
    "L": (saved(Image.fromarray(GREY), "PNG"), grey(GREY / 255)),
    "L, jpeg": (saved(Image.fromarray(GREY), "JPEG", quality=100), grey(GREY / 255)),
    "LA": (saved(in_mode("LA", np.stack([GREY, ALPHA], axis=-1)), "PNG"), on_white(grey(GREY / 255), ALPHA)),
    "P": (saved(with_palette("P"), "PNG"), as_colours(GREY)),
    "P, transparent": (
        saved(with_palette("P", [255] * 100 + [60] * 156), "PNG"),
        on_white(as_colours(GREY), np.where(GREY < 100, 255, 60)),
    ),
    "PA": (saved(with_palette("PA"), "TIFF"), on_white(as_colours(GREY), ALPHA)),
    "RGB": (saved(Image.fromarray(COLOUR), "PNG"), COLOUR),
    "RGB, one colour transparent": (
        saved(Image.fromarray(COLOUR), "PNG", transparency=tuple(COLOUR[5, 5].tolist())),
        on_white(COLOUR, np.where((COLOUR[5, 5] == COLOUR).all(axis=-1), 0, 255)),
    ),
    "RGBA": (saved(in_mode("RGBA", np.dstack([COLOUR, ALPHA])), "PNG"), on_white(COLOUR, ALPHA)),
    "RGBX": (in_mode("RGBX", np.dstack([COLOUR, ALPHA])), COLOUR),
    "CMYK": (saved(in_mode("CMYK", CMYK), "TIFF"), (255.0 - CMYK[..., :3]) * (255 - CMYK[..., 3:]) / 255),
    "YCbCr": (saved(in_mode("YCbCr", COLOUR), "TIFF"), from_ycbcr(COLOUR)),
    "LAB": (saved(in_mode("LAB", LAB), "TIFF"), from_lab(LAB)),
    "HSV": (in_mode("HSV", COLOUR), from_hsv(COLOUR)),
    "I;16": (png(16, 0, SIXTEEN), grey(SHARE)),
    "I;16, one shade transparent": (
        png(16, 0, SIXTEEN, chunk(b"tRNS", struct.pack(">H", int(SIXTEEN[5, 5])))),
        on_white(grey(SHARE), np.where(KEY, 0, 255)),
    ),
    "I;16, of 12 bits": (tiff(np.rint(4095 * SHARE), 1, bits=12), grey(SHARE)),
    "I;16, white is 0": (tiff(SIXTEEN.astype("<u2"), 1, photometric=0), grey(1 - SHARE)),
    "I;16L": (saved(in_mode("I;16L", SIXTEEN.astype("<u2")), "TIFF"), grey(SHARE)),
    "I;16B": (saved(in_mode("I;16B", SIXTEEN.astype(">u2")), "TIFF"), grey(SHARE)),
    "I, signed 16 bits": (tiff(np.rint(32767 * SHARE).astype("<i2"), 2), grey(SHARE)),
    "I, 32 bits": (tiff(np.rint((2**31 - 1) * SHARE).astype("<i4"), 2), grey(SHARE)),
    "I, unsigned 32 bits": (tiff(np.rint((2**32 - 1) * SHARE).astype("<u4"), 1), grey(SHARE)),
    "I, 16 bits in 32": (saved(in_mode("I", SIXTEEN.astype("<i4")), "TIFF"), grey(SHARE)),
    "I, 8 bits in 32": (saved(in_mode("I", GREY.astype("<i4")), "TIFF"), grey(SHARE)),
    "I, below zero": (tiff(np.rint(1000 * FLOATS).astype("<i4"), 2), grey((SHARE - 0.2) / 0.7)),
    "I, a PGM of 10 bits": (
        b"P5 %d %d 1023\n" % (WIDTH, HEIGHT) + np.rint(1023 * SHARE).astype(">u2").tobytes(),
        grey(SHARE),
    ),
    "F": (tiff(FLOATS, 3), grey((SHARE - 0.2) / 0.7)),
    "F, white is 0": (tiff(FLOATS, 3, photometric=0), grey(1 - (SHARE - 0.2) / 0.7)),
    "4 bits, one shade transparent": (
        png(4, 0, LEVELS, chunk(b"tRNS", struct.pack(">H", 8))),
        on_white(grey(LEVELS / 15), np.where(LEVELS == 8, 0, 255)),
    ),
    "2 bits, one shade transparent": (
        png(2, 0, LEVELS // 4, chunk(b"tRNS", struct.pack(">H", 2))),
        on_white(grey(LEVELS // 4 / 3), np.where(LEVELS // 4 == 2, 0, 255)),
    ),
    "16 bits of grey and alpha": (
        png(16, 4, np.dstack([SIXTEEN, ALPHA * 257.0])),
        on_white(grey(SHARE), ALPHA),
    ),
    "16 bits a colour, one transparent": (
        png(16, 2, COLOUR * 257.0, chunk(b"tRNS", struct.pack(">3H", *(257 * COLOUR[5, 5].astype(int)).tolist()))),
        on_white(COLOUR, np.where((COLOUR[5, 5] == COLOUR).all(axis=-1), 0, 255)),
    ),
}


def turned(data: bytes, orientation: int) -> bytes:
    """The file with EXIF data that ask for a turn."""
    exif = Image.Exif()
    exif[274] = orientation
    if data.startswith(b"\x89PNG"):
        after = data.index(b"IDAT") - 4
        return data[:after] + chunk(b"eXIf", exif.tobytes()[6:]) + data[after:]
    if data.startswith(b"\xff\xd8"):
        block = exif.tobytes()
        return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]
    order = "<" if data.startswith(b"II") else ">"
    for kind, form in ((3, "HHLHH"), (4, "HHLL")):  # the entry of a TIFF as a short, padded to four bytes, or as a long
        padding = [0] if kind == 3 else []
        before, after = (struct.pack(order + form, 274, kind, 1, turn, *padding) for turn in (1, orientation))
        data = data.replace(before, after)
    return data


def distance(image: Image.Image, expected: np.ndarray) -> float:
    assert image.mode == "RGB"
    assert image.size == (expected.shape[1], expected.shape[0])
    return float(np.abs(np.asarray(image, dtype=float) - expected).max())


WITH_EXIF = [name for name, (file, _) in PICTURES.items() if isinstance(file, bytes) and not file.startswith(b"P5")]


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_looks_as_its_samples_say(name: str, tmp_path: Path) -> None:
    file, expected = PICTURES[name]
    if isinstance(file, Image.Image):
        assert distance(as_seen(file), expected) <= 2
        return
    media = row_image(file, tmp_path)
    assert (media.width, media.height) == (WIDTH, HEIGHT)
    assert distance(load_image(media), expected) <= 2
    (tmp_path / "picture").write_bytes(file)
    assert distance(load_image(row_image("picture", tmp_path)), expected) <= 2


@pytest.mark.parametrize("name", WITH_EXIF)
def test_exif_turns_pixels_and_sizes_alike(name: str, tmp_path: Path) -> None:
    file, expected = PICTURES[name]
    assert isinstance(file, bytes)
    for orientation, turn in TURNS.items():
        media = row_image(turned(file, orientation), tmp_path)
        upright = turn(expected)
        assert (media.height, media.width) == upright.shape[:2]
        assert distance(load_image(media), upright) <= 2, orientation


def test_a_pngs_orientation_is_found_behind_its_pixels(tmp_path: Path) -> None:
    data = png(8, 2, COLOUR)
    exif = Image.Exif()
    exif[274] = 6
    end = len(data) - 12  # before the last chunk
    media = row_image(data[:end] + chunk(b"eXIf", exif.tobytes()[6:]) + data[end:], tmp_path)
    assert (media.width, media.height) == (HEIGHT, WIDTH) == load_image(media).size


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    samples = FLOATS.copy()
    samples[3, 4] = value
    with pytest.raises(InputError, match=f"an image has 1 of {WIDTH * HEIGHT} samples are NaN or infinite"):
        row_image(tiff(samples, 3), tmp_path)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_several_frames_are_refused(kind: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(COLOUR), Image.fromarray(COLOUR[::-1].copy())]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="an image has 2 frames: only still images"):
        row_image(data, tmp_path)
    with pytest.raises(InputError, match="2 frames"):
        image_part(data)


def test_a_cameras_second_view_is_no_second_picture(tmp_path: Path) -> None:
    views = [Image.fromarray(COLOUR), Image.fromarray(COLOUR[::-1].copy())]
    data = saved(views[0], "MPO", save_all=True, append_images=views[1:], quality=100)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    media = row_image(data, tmp_path)
    assert np.abs(np.asarray(load_image(media), dtype=float) - COLOUR).mean() < 3  # JPEG
    assert image_part(data)["image_url"]["url"].startswith("data:image/jpeg;")


def sent(data: bytes) -> tuple[str, bytes]:
    """The media type and the file of a content part for a chat model."""
    head, _, body = image_part(data)["image_url"]["url"].partition(";base64,")
    return head.removeprefix("data:"), base64.b64decode(body)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "ICO", "AVIF"])
def test_what_is_sent_is_of_the_type_that_is_said(kind: str) -> None:
    data = saved(Image.fromarray(COLOUR), kind)
    media_type, file = sent(data)
    with Image.open(io.BytesIO(file)) as image:
        assert Image.MIME[image.format or ""] == media_type
        assert media_type in ("image/png", "image/jpeg", "image/webp", "image/gif")  # what OpenAI's interface takes
        assert distance(open_image(data), np.asarray(image.convert("RGB"))) == 0
    assert (file == data) == (kind in ("PNG", "JPEG", "WEBP", "GIF"))  # untouched where that is possible


@pytest.mark.parametrize("name", WITH_EXIF)
def test_what_is_sent_needs_no_knowledge_of_modes_or_turns(name: str) -> None:
    file, expected = PICTURES[name]
    assert isinstance(file, bytes)
    for orientation in (1, 6):
        with Image.open(io.BytesIO(sent(turned(file, orientation))[1])) as image:
            assert image.mode in ("1", "L", "P", "RGB")
            assert distance(image.convert("RGB"), TURNS[orientation](expected)) <= 2


def test_report_and_contact_sheet_show_the_same(tmp_path: Path) -> None:
    file, expected = PICTURES["I;16, one shade transparent"]
    assert isinstance(file, bytes)
    data, upright = turned(file, 6), TURNS[6](expected)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet("t", {"A": [data]}))), dtype=float)
    end = len(sheet) - GAP - GAP // 2  # below the only tile
    tile = sheet[end - WIDTH : end, GAP : GAP + HEIGHT]
    assert np.abs(tile - upright).max() <= 2
    (tmp_path / "picture").write_bytes(data)
    made = thumbnail(tmp_path / "picture")
    assert made is not None
    assert made[1:] == (HEIGHT, WIDTH)
    assert np.abs(np.asarray(Image.open(io.BytesIO(made[0])).convert("RGB"), dtype=float) - upright).mean() < 5  # lossy


def test_no_other_module_opens_pictures() -> None:
    library = Path(__file__).resolve().parents[2] / "timemaster"
    opening = [p for p in library.rglob("*.py") if "Image.open(" in p.read_text(encoding="utf-8")]
    # rows.py asks whether a file is damaged, and looks at no pixels
    assert sorted(str(p.relative_to(library)) for p in opening) == ["data/rows.py", "media/images.py"]


def test_a_file_for_browsers_is_made_only_where_it_must_be() -> None:
    plain = saved(Image.fromarray(COLOUR), "PNG")
    assert web_image(plain) == ("image/png", plain)
    assert image_media(web_image(turned(plain, 8))[1]).width == HEIGHT
