"""Being told to stop: heard, noted, obeyed."""

import os
import signal

import pytest

from vcd.errors import UserError
from vcd.signals import STOPPING, Listener, Stopped, told


def tell(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", STOPPING)
def test_a_signal_stops_at_once_and_afterwards_others_listen_again(signum):
    before = signal.getsignal(signum)
    with pytest.raises(Stopped) as stop, Listener():
        tell(signum)
    assert stop.value.code == 128 + signum and signal.getsignal(signum) is before


def test_patience_notes_the_signal_until_somebody_asks():
    done = []
    with Listener() as listener:
        with pytest.raises(Stopped) as stop, listener.patiently():
            tell(signal.SIGTERM)
            done.append("saved")
        assert done == ["saved"] and stop.value.signum == signal.SIGTERM
        with pytest.raises(Stopped):
            listener.obey()


def test_only_a_second_ctrl_c_breaks_patience():
    with Listener() as listener:
        listener.patient = True
        tell(signal.SIGINT)
        tell(signal.SIGTERM)
        assert listener.asked == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            tell(signal.SIGINT)


def test_the_listener_of_before_gets_sigusr2_handed_over():
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda signum, frame: heard.append(signum))
    try:
        for signum in (signal.SIGTERM, signal.SIGUSR2):
            with Listener() as listener:
                with pytest.raises(Stopped):
                    tell(signum)
                listener.hand_over()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert heard == [signal.SIGUSR2]


@pytest.mark.parametrize(
    ("cause", "signum"), [(Stopped(signum=15), 15), (KeyboardInterrupt(), signal.SIGINT), (OSError(28, "full"), None)]
)
def test_an_error_says_what_it_was_interrupted_by(cause, signum):
    """As a save does, which reports what stopped it as an error of its own."""
    try:
        try:
            raise cause
        except BaseException:
            raise RuntimeError("unexpected position")  # noqa: B904
    except RuntimeError as error:
        reported = UserError("could not write")
        reported.__cause__ = error
    assert told(reported) == signum
