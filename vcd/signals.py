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
        self._listened: Callable | None = None  # to the signal that came

    def start(self) -> None:
        for signum in STOPPING:
            self._before[signum] = signal.signal(signum, self._note)

    def _note(self, signum: int, frame: object) -> None:
        if self.asked is None:
            self.asked = signum
            self._listened = before if callable(before := self._before.get(signum)) else None

    def stop(self) -> None:
        while self._before:
            signum, handler = self._before.popitem()
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def obey(self) -> None:
        """Raises Preempted when a signal has come."""
        if self.asked is not None:
            raise Preempted(signum=self.asked, before=self._listened)


@contextmanager
def shielded() -> Iterator[None]:
    """Processes started inside do not see STOPPING, which SLURM sends to all processes of a job, unless they listen for it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
