"""A run as a job of SLURM."""

import os
import sys
from typing import final

from submitit.helpers import Checkpointable


@final
class Training(Checkpointable):
    """The command `python -m vcd.train ...` itself: started again, in another time slice, it goes on where it was."""

    def __call__(self, command: list[str], cwd: str) -> None:
        from vcd import train

        os.chdir(cwd)
        sys.argv = ["vcd.train", *command]
        try:
            train.main()
        except SystemExit as end:
            if end.code:
                raise
