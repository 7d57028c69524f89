# ruff: noqa: PT012 - what is tested is which line of a block is the last to run
"""Ctrl-C lets the current step finish."""

import os
import signal
import threading

import pytest

from edgemem.cli.ending import Ending
from edgemem.cli.interrupt import Interrupt
from edgemem.errors import BundleError, InputError


@pytest.fixture(autouse=True)
def _default_handlers():
    """The handlers of a program in the foreground, whatever the tests run in; put back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
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


@pytest.mark.parametrize("error", [KeyboardInterrupt(), BrokenPipeError(), InputError("bad row")])
def test_an_ending_with_a_complete_state_waits_until_it_is_saved(error):
    saved, reported = [], []
    ending = Ending(Interrupt(), input_counts=True)
    with pytest.raises((SystemExit, BrokenPipeError, InputError)):
        with ending:
            raise error
        saved.append(True)
        ending.close(lambda: reported.append(True))
    assert saved
    assert bool(reported) == isinstance(error, KeyboardInterrupt)


@pytest.mark.parametrize("error", [BundleError("gone"), ZeroDivisionError(), InputError("bad prompt")])
def test_any_other_ending_is_raised_at_once(error):
    with pytest.raises(type(error)), Ending(Interrupt(), input_counts=False):
        raise error


def test_a_forced_ending_is_raised_at_once_because_the_state_may_be_incomplete():
    interrupt = Interrupt()
    interrupt.forced = True
    with pytest.raises(KeyboardInterrupt), Ending(interrupt, input_counts=True):
        raise KeyboardInterrupt
