"""Text, panels and PNG files on plain RGB arrays (H, W, 3) uint8, with numpy, cv2 and PIL; no display needed."""

import functools
import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from occforge.fileio import atomic_write

BACKGROUND = (250, 250, 248)
INK = (32, 36, 42)
FAINT = (120, 126, 134)


@functools.cache
def font(size: int):
    """PIL's built-in scalable font in ``size`` pixels."""
    return ImageFont.load_default(size)


def blank(height: int, width: int, colour=BACKGROUND) -> np.ndarray:
    """An RGB canvas (height, width, 3) of one colour."""
    return np.full((height, width, 3), colour, np.uint8)


def paste(canvas: np.ndarray, picture: np.ndarray, x: int, y: int) -> None:
    """Put ``picture`` on ``canvas`` with its upper left corner at (x, y), in place; what sticks out is cut off."""
    height = min(picture.shape[0], canvas.shape[0] - y)
    width = min(picture.shape[1], canvas.shape[1] - x)
    canvas[y : y + height, x : x + width] = picture[:height, :width]


def fit(picture: np.ndarray, width: int, height: int, colour=(0, 0, 0)) -> np.ndarray:
    """Scale ``picture`` into (height, width), keeping its proportions; the rest is filled with ``colour``."""
    scale = min(width / picture.shape[1], height / picture.shape[0])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(np.ascontiguousarray(picture), size, interpolation=interpolation)
    canvas = blank(height, width, colour)
    paste(canvas, scaled, (width - size[0]) // 2, (height - size[1]) // 2)
    return canvas


class Pen:
    """Anti-aliased text and boxes on an RGB array, in place.

    A PIL image cannot share a numpy array's memory, so the drawings are collected on a copy which
    :meth:`close` (or the ``with`` block's end) writes back.
    """

    def __init__(self, canvas: np.ndarray):
        self.canvas = canvas
        self.image = Image.fromarray(canvas)
        self.draw = ImageDraw.Draw(self.image, 'RGBA')

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.close()

    def close(self) -> None:
        self.canvas[...] = np.asarray(self.image)

    def text(self, x, y, text, size=16, colour=INK, anchor='la') -> float:
        """Write ``text`` with PIL's ``anchor`` at (x, y); returns its width in pixels."""
        self.draw.text((x, y), text, fill=colour, font=font(size), anchor=anchor)
        return self.draw.textlength(text, font=font(size))

    def tag(self, x, y, text, size=15) -> None:
        """White text on a dark translucent plate, for labels on top of pictures."""
        _, _, right, bottom = self.draw.textbbox((x + 7, y + 4), text, font=font(size))
        self.draw.rounded_rectangle((x, y, right + 7, bottom + 5), radius=4, fill=(16, 18, 22, 170))
        self.draw.text((x + 7, y + 4), text, fill=(255, 255, 255), font=font(size))

    def box(self, x, y, width, height, fill=None, outline=None, radius=0) -> None:
        shape = (x, y, x + max(width - 1, 0), y + max(height - 1, 0))
        self.draw.rounded_rectangle(shape, radius=radius, fill=fill, outline=outline)


def read_image(path) -> np.ndarray:
    """An image file as RGB (H, W, 3) uint8.

    Raises:
        FileNotFoundError: there is no such file.
        occforge.errors.DataError: the file is no readable image.
    """
    from occforge.errors import DataError

    data = Path(path).read_bytes()
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise DataError(f'{path}: expected a readable image, found {len(data)} bytes that do not decode')
    return np.ascontiguousarray(image[..., ::-1])


def write_png(path, picture: np.ndarray) -> None:
    """Write an RGB array as PNG; the file appears whole or not at all."""
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise ValueError(f'picture: expected (H, W, 3) uint8, found {picture.shape} {picture.dtype}')
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, 'PNG', compress_level=6)
    with atomic_write(path, 'wb') as file:
        file.write(stream.getvalue())
