"""Does VCD learn as well where several steps of the student share one rollout? A perturbation for vcd.compare.

    PYTHONPATH=benchmarks python -m vcd.compare out=sharing 'evaluate=["n=2000"]' \
        'common=["dataset=mnist","network=small","network.unet.patch=2","model=vcd","trainer.max_steps=1000"]' \
        'train={alone:[],four:["perturbation._target_=sharing.Shared","+perturbation.share=4"]}'
"""

import copy

from vcd.batch import Degraded
from vcd.perturbations import Rollout


class Shared(Rollout):
    """Every rollout, and the batch it belongs to, serves `share` steps in a row; the noise and the latents are new."""

    def __init__(self, *, share: int, **options):
        super().__init__(**options)
        self.share, self.uses = share, 0

    def reached(self, batch: Degraded, model):
        if self.uses % self.share == 0:
            self.batch, self.states = copy.copy(batch), super().reached(batch, model)
        self.uses += 1
        vars(batch).update(vars(self.batch))
        return self.states
