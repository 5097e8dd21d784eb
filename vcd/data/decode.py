"""From the bytes of any image file to one square of pixels."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

VERSION = 1  # counts up when the pixels that come out change: caches depend on it
_SIXTEEN_BITS = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def decode(data: bytes, size: int, channels: int) -> tuple[UInt8[np.ndarray, "c size size"], list[str]]:
    """Pixels of an image file, and a remark on anything odd about it.

    In this order: turned upright (EXIF); 16 bits to 8; transparency onto black; to RGB (`channels` 3) or grey
    (ITU-R 601 luma, `channels` 1); the largest centred square; Lanczos with antialiasing, straight from full
    resolution to `size` x `size`. An image that is RGB (or grey) and of that size keeps its exact pixels.
    Of an animation the first frame is taken. Raises whatever Pillow raises for a broken file.
    """
    with Image.open(io.BytesIO(data)) as opened:
        odd = ["of several frames (first taken)"] if getattr(opened, "n_frames", 1) > 1 else []
        image = ImageOps.exif_transpose(opened)
    mode = {1: "L", 3: "RGB"}[channels]
    if image.mode in _SIXTEEN_BITS:
        odd.append("16 bits")
        image = Image.fromarray(np.rint(np.asarray(image).clip(0, 65535) / 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    elif image.has_transparency_data:
        odd.append(f"{image.mode} (transparency on black)")
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image).convert("RGB")
    elif image.mode != mode:
        odd.append({"L": "grey", "P": "palette"}.get(image.mode, image.mode))
    image = image.convert(mode)

    w, h = image.size
    side = min(w, h)
    if w != h:
        odd.append("not square (centre taken)")
        left, top = (w - side) // 2, (h - side) // 2
        image = image.crop((left, top, left + side, top + side))
    if side < size:
        odd.append(f"smaller than {size} (enlarged)")
    pixels = np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))
    return np.ascontiguousarray(pixels.reshape(size, size, channels).transpose(2, 0, 1)), odd
