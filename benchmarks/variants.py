"""What is measured: models as the command line composes them, on random images of the data set's size."""

from typing import final

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from vcd import training
from vcd.cli import CONF
from vcd.data.base import ImageData, Images, Split
from vcd.data.datamodule import DegradationDataModule
from vcd.models.base import Diffusion
from vcd.resolvers import register_resolvers

SIZES = {  # what makes a run of this size; models as published bring their own keys
    "tiny": ["dataset=digits"],
    "small": ["dataset=mnist", "network=small"],
    "mnist": ["dataset=mnist", "network=mnist"],
    "cifar10": ["dataset=cifar10", "network=cifar10"],
    "afhq": ["dataset=afhq", "network=afhq", "batch_size=32"],
}


@final
class RandomImages(ImageData):
    """1,024 images of noise: a step takes as long as with real ones, and nothing has to be there."""

    def _load(self, split: Split) -> Images:
        shape = (1024, self.channels, self.size, self.size)
        images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        return Images(images, torch.zeros(len(images), dtype=torch.long), ("noise",))


def config(*overrides: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(overrides))


def model(cfg: DictConfig, device: str = "cpu") -> Diffusion:
    torch.manual_seed(0)
    return training.build(cfg).to(device)


def data(cfg: DictConfig, of: Diffusion, steps: int) -> DegradationDataModule:
    images = RandomImages(name="noise", size=cfg.dataset.size, channels=cfg.dataset.channels)
    return DegradationDataModule(dataset=images, degradation=of.degradation, prediction=of.prediction, batch_size=cfg.batch_size,
                                 steps=steps, flip=cfg.dataset.flip, seed=0)  # fmt: skip
