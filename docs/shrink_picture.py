#!/usr/bin/env python3
"""Makes a picture of the tools small enough for the README: scaled, 256 colours, below a given size.

python docs/shrink_picture.py work_dirs/demo/pictures/SAMPLE.png docs/images/sample.png
"""

import argparse
import io
from pathlib import Path

from PIL import Image


def shrink(picture: Image.Image, width: int, limit: int) -> bytes:
    """PNG bytes of at most ``limit``, as wide as that allows, ``width`` at most."""
    while True:
        height = round(picture.height * width / picture.width)
        small = picture.resize((width, height), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        small.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
            stream, 'PNG', optimize=True
        )
        if stream.tell() <= limit or width < 200:
            return stream.getvalue()
        width = round(width * 0.93)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path)
    parser.add_argument('target', type=Path)
    parser.add_argument('--width', type=int, default=1200, help='at most, pixels (default: 1200)')
    parser.add_argument('--limit', type=int, default=290_000, help='bytes (default: 290000)')
    args = parser.parse_args()
    with Image.open(args.source) as picture:
        data = shrink(picture.convert('RGB'), args.width, args.limit)
    args.target.parent.mkdir(parents=True, exist_ok=True)
    args.target.write_bytes(data)
    with Image.open(io.BytesIO(data)) as small:
        print(f'{args.target}: {small.width} x {small.height}, {len(data):,} bytes')


if __name__ == '__main__':
    main()
