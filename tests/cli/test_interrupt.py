# ruff: noqa: PT012 - what is tested is which line of a block is the last to run
"""Ctrl-C lets the current step finish."""

import errno
import os
import signal
import threading

import pytest

from edgemem.cli.ending import Ending
from edgemem.cli.interrupt import Interrupt
from edgemem.errors import EdgememError, InputError, NonFiniteError

pytestmark = pytest.mark.usefixtures("in_the_foreground")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_for_the_check(number):
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        interrupt.check()
        signal.raise_signal(number)
        done.append("the rest of the step")
        interrupt.check()
    assert done
    assert interrupt.exit_code == 128 + number
    assert not interrupt.forced


def test_a_second_signal_does_not_wait():
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("the rest of the step")
    assert not done
    assert interrupt.forced


def test_a_signal_ends_a_wait_at_once():
    pipe, _ = os.pipe()
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt, interrupt.waiting():
        os.read(pipe, 1)
    assert not interrupt.forced


def test_a_signal_from_before_a_wait_is_not_forgotten():
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        with interrupt.waiting():
            pytest.fail("waited")


def test_the_handlers_are_restored():
    with Interrupt():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        interrupt.check()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_it_can_be_used_in_any_thread():
    failures = []

    def use() -> None:
        try:
            with Interrupt() as interrupt:
                interrupt.check()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert failures == []


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), BrokenPipeError(), FULL, InputError("bad row"), NonFiniteError("inf")]
)
def test_an_ending_with_a_complete_state_waits_until_it_is_saved(error):
    saved, reported = [], []
    ending = Ending(Interrupt(), lambda: saved.append(True), input_counts=True)
    with pytest.raises((SystemExit, OSError, InputError, NonFiniteError)):
        with ending:
            raise error
        ending.close(lambda: reported.append(True))
    assert saved
    assert bool(reported) == isinstance(error, KeyboardInterrupt)


@pytest.mark.parametrize("error", [ZeroDivisionError(), InputError("bad prompt")])
def test_any_other_ending_is_raised_at_once(error):
    with pytest.raises(type(error)), Ending(Interrupt(), pytest.fail, input_counts=False):
        raise error


def test_a_save_that_fails_does_not_hide_the_error_that_ended_the_run(capsys):
    def save():
        raise EdgememError("cannot save")

    with pytest.raises(EdgememError, match="cannot save"):
        Ending(Interrupt(), save, input_counts=True).close(pytest.fail)
    ending = Ending(Interrupt(), save, input_counts=True)
    with pytest.raises(InputError, match="bad row"):
        with ending:
            raise InputError("bad row")
        ending.close(pytest.fail)
    assert capsys.readouterr().err == "Error: cannot save\n"


def test_after_a_signal_a_terminal_that_is_gone_does_not_change_the_exit_code():
    def report():
        raise OSError(errno.EIO, "Input/output error")

    interrupt = Interrupt()
    interrupt.signal = signal.SIGHUP
    ending = Ending(interrupt, lambda: None, input_counts=True)
    with pytest.raises(SystemExit) as error:
        with ending:
            raise KeyboardInterrupt
        ending.close(report)
    assert error.value.code == 129


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_comes_twice_by_itself_still_waits_for_the_check(number):
    done = []
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        signal.raise_signal(number)
        signal.raise_signal(number)
        done.append("the rest of the step")
        interrupt.check()
    assert done
    assert not interrupt.forced


def test_a_forced_ending_is_raised_at_once_because_the_state_may_be_incomplete():
    interrupt = Interrupt()
    interrupt.forced = True
    with pytest.raises(KeyboardInterrupt), Ending(interrupt, pytest.fail, input_counts=True):
        raise KeyboardInterrupt
