"""Being told to stop: at once where nothing would be lost, else as soon as it is saved."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, final

# submitit's and SLURM's time limit or preemption; scancel, requeue, kill; Ctrl-C
STOPPING = (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


@final
class Stopped(SystemExit):
    """Somebody told the process to stop. Exit code: 128 + the signal, as from a shell."""

    def __init__(self, *, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


@final
class Listener:
    """Hears STOPPING while it is entered; previous handlers are restored afterwards.

    A signal raises Stopped at once, or, while `patient`, is noted until somebody asks (`obey`). A second Ctrl-C is always
    obeyed at once.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.patient = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Listener":
        self._before = {signum: signal.getsignal(signum) for signum in STOPPING}
        self.listen()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def listen(self) -> None:
        """Hear the signals, in place of whoever has put a handler there since."""
        for signum in STOPPING:
            signal.signal(signum, self._hear)

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked = signum
            if not self.patient:
                self.obey()
        elif signum == signal.SIGINT:
            raise KeyboardInterrupt

    def obey(self) -> None:
        """Raises Stopped when a signal has come."""
        if self.asked is not None:
            raise Stopped(signum=self.asked)

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """What is done inside is done whole; a signal that comes meanwhile is obeyed afterwards."""
        before, self.patient = self.patient, True
        try:
            yield
        finally:
            self.patient = before
        if not self.patient:
            self.obey()

    def hand_over(self) -> None:
        """To whoever listened for SIGUSR2 before: submitit puts the job back into the queue, and ends the process."""
        handler: Callable | Any = self._before.get(signal.SIGUSR2)
        if self.asked == signal.SIGUSR2 and callable(handler):
            handler(self.asked, None)


def told(error: BaseException | None) -> int | None:
    """The signal that is behind an error, if one is: what it interrupts may report it as an error of its own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, Stopped):
            return error.signum
        if isinstance(error, KeyboardInterrupt):
            return signal.SIGINT
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def shielded() -> Iterator[None]:
    """Processes started inside do not see STOPPING, which all processes of a job or terminal get, unless they listen."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
