"""Where z_t comes from when nothing is encoded."""

from vcd.priors.base import Encoded, Prior
from vcd.priors.flow import Flow
from vcd.priors.mixture import Mixture
from vcd.priors.standard import Independent, Shared

__all__ = ["Encoded", "Flow", "Independent", "Mixture", "Prior", "Shared"]
