from vcd.api import Trained as Trained
from vcd.api import load as load
from vcd.data.datamodule import DegradationDataModule as DegradationDataModule
from vcd.data.digits import Digits as Digits
from vcd.degradations.base import Degradation as Degradation
from vcd.errors import UserError as UserError
from vcd.help import CONF as CONF
from vcd.models.base import Diffusion as Diffusion
from vcd.models.vcd import VCD as VCD
from vcd.models.vwd import VWD as VWD
from vcd.networks.encoder import Encoder as Encoder
from vcd.networks.unet import UNet as UNet
from vcd.starts import Black as Black

__version__: str
