"""Well-known sets of photographs as their authors hand them out: CelebA, CelebA-HQ, FFHQ, AFHQ v2."""

from collections.abc import Sequence
from typing import final

from vcd.data.base import ImageData, Images, Split
from vcd.data.files import File, Files
from vcd.data.folder import Folder
from vcd.data.layout import LOOSE, SUFFIXES, Layout
from vcd.errors import UserError


@final
class Official(ImageData):
    """Images at `path`, a folder or a zip, reduced as by `Folder`; where: a sentence that says where to get them.

    Splits: by `partition`, a file of lines "000001.jpg 0", where 0 is train and 2 test (1 is left out); or the first
    `first` files by name are train and the rest val; or else train/ and val/ or test/, with `classes` in each, or, where
    nothing is official, a fixed pseudo-random `val_fraction`.
    """

    def __init__(
        self, *, name: str, path: str, where: str, root: str, size: int, channels: int, partition: str | None = None,
        first: int | None = None, classes: Sequence[str] | None = None, val_fraction: float | None = None,
        skip_broken: bool = False,
    ):  # fmt: skip
        super().__init__(name=name, size=size, channels=channels)
        self.where, self.partition, self.first = where, partition, first
        self.classes = None if classes is None else tuple(classes)
        own = partition is not None or first is not None
        self._folder = Folder(
            name=name, path=path, root=root, size=size, channels=channels, skip_broken=skip_broken,
            val_fraction=val_fraction, layout=self._layout if own else None,
        )  # fmt: skip
        self.path = self._folder.path

    def prepare(self) -> None:
        if not self.path.exists():
            raise UserError(f"{self.name} is not at {self.path}: {self.where}; or set dataset.path")
        self._folder.prepare()

    def _load(self, split: Split) -> Images:
        self.prepare()
        images = self._folder.load(split)
        if self.classes is not None and images.classes != self.classes:
            raise UserError(f"{self.path} is not {self.name}: it has the classes {', '.join(images.classes)} instead of "
                            f"{', '.join(self.classes)}; for your own images use dataset=folder")  # fmt: skip
        return images

    def _layout(self, files: Files) -> Layout:
        listing = files.listing()
        images = [file for file in listing if file.path.lower().endswith(tuple(SUFFIXES))]
        if self.partition is None:
            assert self.first is not None
            images.sort(key=lambda file: _name(file))
            train, val = images[: self.first], images[self.first :]
        else:
            said = [file for file in listing if _name(file) == self.partition]
            if not said:
                raise UserError(
                    f"{self.path} has no {self.partition}, which says what is train and what is test: {self.where}"
                )
            lines = (line.split() for line in files.read(said[0].path).decode().splitlines())
            split = {line[0]: line[1] for line in lines if len(line) == 2}
            train, val = ([file for file in images if split.get(_name(file)) == number] for number in ("0", "2"))
        if not train or not val:
            raise UserError(f"{self.path} is not {self.name}: there are {len(train)} images to train with and {len(val)} to "
                            f"validate; {self.where}")  # fmt: skip
        return Layout((LOOSE,), [train, val])


def _name(file: File) -> str:
    return file.path.rpartition("/")[2]
