"""Contact sheets: some plots of every class in one image. Knows encoded images and names, not series or rows."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from timemaster.media.images import open_image
from timemaster.series.plot_fonts import fonts_for

TILE = 360, 160  # largest (width, height) of a plot, in pixels
GAP = 12  # pixels around everything
TITLE, HEADING = 18, 14  # font sizes in pixels


def contact_sheet(title: str, plots: Mapping[str, Sequence[bytes]]) -> bytes:
    """A PNG with a row for each class: its name, and its plots below. `plots`: class -> encoded images."""
    from PIL import Image, ImageDraw

    rows = {label: [_fitted(data) for data in images] for label, images in plots.items() if images}
    num_columns = max(len(images) for images in rows.values())
    column = max(image.width for images in rows.values() for image in images)
    heights = {label: max(image.height for image in images) for label, images in rows.items()}
    title_font, heading_fonts = _font(title, TITLE), {label: _font(label, HEADING) for label in rows}
    text_widths = [title_font.getlength(title), *(heading_fonts[label].getlength(label) for label in rows)]
    width = GAP + max(num_columns * (column + GAP), round(max(text_widths)) + GAP)
    height = TITLE + 2 * GAP + sum(HEADING + 2 * GAP + row_height for row_height in heights.values())
    sheet = Image.new("RGB", (width, height), (244, 244, 244))
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, fill="black", font=title_font)
    top = TITLE + 2 * GAP
    for label, images in rows.items():
        draw.text((GAP, top), label, fill="black", font=heading_fonts[label])
        top += HEADING + GAP // 2
        for place, image in enumerate(images):
            sheet.paste(image, (GAP + place * (column + GAP), top))
        top += heights[label] + GAP + GAP // 2
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _font(text: str, size: int) -> Any:
    """A font with the letters of `text`."""
    from PIL import ImageFont

    if text.isascii():
        return ImageFont.load_default(size)
    font = fonts_for([text])[-1]  # it has the rarest letters, and usually Latin letters, too
    return ImageFont.truetype(font.fname, size, index=font.index)


def _fitted(data: bytes) -> Any:
    """The image, scaled down to fit a tile if necessary."""
    from PIL import Image

    picture = open_image(data)
    scale = min(1.0, TILE[0] / picture.width, TILE[1] / picture.height)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture if scale == 1.0 else picture.resize(size, Image.Resampling.LANCZOS)
