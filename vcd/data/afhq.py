"""AFHQ: 14,630 + 1,500 photographs of animal faces, 512x512 RGB, as cats, dogs and wild animals."""

from typing import final

from vcd.data.base import ImageData, Images, Split
from vcd.data.folder import Folder
from vcd.errors import UserError

CLASSES = ("cat", "dog", "wild")


@final
class AFHQ(ImageData):
    """The official train|val/cat|dog|wild (v2: train|test) at `path`, a folder or a zip; reduced as by `Folder`."""

    def __init__(self, *, path: str, root: str, size: int, channels: int, skip_broken: bool = False) -> None:
        super().__init__(name="afhq", size=size, channels=channels)
        self._folder = Folder(
            name="afhq", path=path, root=root, size=size, channels=channels, skip_broken=skip_broken, val_fraction=None
        )
        self.path = self._folder.path

    def prepare(self) -> None:
        if not self.path.exists():
            raise UserError(
                f"AFHQ is not at {self.path}: unpack the official train|val/cat|dog|wild there or set dataset.path to "
                "its folder or zip; it comes from github.com/clovaai/stargan-v2 (download.sh afhq-dataset)"
            )
        self._folder.prepare()

    def _load(self, split: Split) -> Images:
        self.prepare()
        images = self._folder.load(split)
        if images.classes != CLASSES:
            raise UserError(
                f"{self.path} is not AFHQ: it has the classes {', '.join(images.classes)} instead of "
                f"{', '.join(CLASSES)}; for your own images use dataset=folder"
            )
        return images
