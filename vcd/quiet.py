"""Silences messages of Lightning and other libraries that help no one."""

import logging
import warnings


def quiet() -> None:
    """Silence advertisements, tips, and warnings about choices made on purpose."""
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*treespec.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*GPU available but not used.*",
        ".*`srun` command is available.*",
        ".*Trying to infer the `batch_size` from an ambiguous collection.*",
        ".*in eval mode at the start of training.*",  # a frozen stage 1
    ):
        warnings.filterwarnings("ignore", message=message)
