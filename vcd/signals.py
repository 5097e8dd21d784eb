"""Being told to stop: noted when the signal comes, obeyed at the end of the step."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

STOPPING = (signal.SIGUSR2, signal.SIGTERM)  # submitit's and SLURM's time limit or preemption; scancel, requeue, kill


@final
class Preempted(SystemExit):
    """The run was told to stop, and what it has done is saved. Exit code: 128 + the signal, as from a shell."""

    def __init__(self, *, signum: int, before: Callable | None) -> None:
        super().__init__(128 + signum)
        self.signum, self._before = signum, before

    def hand_over(self) -> None:
        """To whoever listened for SIGUSR2 before: submitit puts the job back into the queue, and ends the process."""
        if self.signum == signal.SIGUSR2 and self._before is not None:
            self._before(self.signum, None)


@final
class Listener:
    """Notes the first signal of STOPPING between `start` and `stop`; whoever listened before listens again afterwards."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Callable | int | None] = {}

    def start(self) -> None:
        for signum in STOPPING:
            self._before[signum] = signal.signal(signum, self._note)

    def _note(self, signum: int, frame: object) -> None:
        self.asked = self.asked or signum

    def stop(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def obey(self) -> None:
        """Raises Preempted when a signal has come."""
        if self.asked is not None:
            before = self._before.get(self.asked)
            raise Preempted(signum=self.asked, before=before if callable(before) else None)


@contextmanager
def shielded() -> Iterator[None]:
    """Processes started inside never see STOPPING: SLURM signals all processes of a job, and wandb's must outlive the run's."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
