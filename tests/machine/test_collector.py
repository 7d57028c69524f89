"""The garbage collector is off in the block, and afterwards as it was."""

from __future__ import annotations

import gc

import pytest

from edgemem.machine.collector import collector_off


def test_it_is_on_again_after_an_error() -> None:
    with collector_off():
        assert not gc.isenabled()
    with pytest.raises(RuntimeError), collector_off():
        raise RuntimeError
    assert gc.isenabled()


def test_one_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collector_off():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
