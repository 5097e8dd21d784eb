"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels that need no download."""

from typing import final

import numpy as np
import torch

from vcd.data.base import ImageData, Images, Split

VAL_IMAGES = 297


@final
class Digits(ImageData):
    """1,500 training and 297 validation images; the split is fixed and stratified by class."""

    def __init__(self, *, size: int = 8, channels: int = 1) -> None:
        super().__init__(name="digits", size=size, channels=channels)

    def _load(self, split: Split) -> Images:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)  # values 0..16
        halves = train_test_split(np.arange(len(labels)), test_size=VAL_IMAGES, stratify=labels, random_state=0)
        rows = np.sort(halves[("train", "val").index(split)])
        images = np.rint(pixels[rows] * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        classes = tuple(str(digit) for digit in range(10))
        return Images(torch.from_numpy(images), torch.from_numpy(labels[rows]).long(), classes)
