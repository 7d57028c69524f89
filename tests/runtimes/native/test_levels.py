"""Every instruction set computes the same; the widest is chosen, and a test can force another."""

import platform
from pathlib import Path

import numpy as np
import pytest

from edgemem.runtimes import native
from edgemem.runtimes.native import build
from tests.runtimes.native.calls import LISTS, make_call
from tests.runtimes.native.operators import attend
from tests.runtimes.native.test_memory_attention import hold

HERE = build.LEVELS.get(platform.machine(), {})


@pytest.fixture(params=HERE)
def forced(request, monkeypatch):
    monkeypatch.setenv("EDGEMEM_NATIVE_LEVEL", request.param)
    if not native.look(native.library()).level:
        pytest.skip(f"this processor has no {request.param}")
    return request.param


@pytest.mark.parametrize("time", [1, 17])
@pytest.mark.parametrize("width", [6, 24, 64, 72])
def test_a_forced_level_computes_the_formulas(forced, width, time):
    for index, memories in enumerate(LISTS):
        options = {"groups": 2, "width": width, "window": 40, "given": ("plain", "rotated", "tables")[index % 3]}
        call = make_call(memories, position=[3, 90], time=time, seed=index, **options)
        hold(call, attend(call))


def test_a_forced_level_reads_and_writes_integers(forced):
    for index, memories in enumerate(LISTS):
        options = {"groups": 2, "width": 24, "window": 40, "ring": np.int8, "phases": None}
        call = make_call(memories, position=[3, 90], time=3, seed=index, **options)
        hold(call, attend(call, heads_first=True))


def test_the_forced_level_is_the_one_that_is_used(forced):
    assert native.look(native.library()).level == forced


@pytest.mark.parametrize("name", ["avx1024", "none"])
def test_a_level_that_is_not_known_is_refused_in_words(monkeypatch, name):
    path = native.library()
    monkeypatch.setenv("EDGEMEM_NATIVE_LEVEL", name)
    found = native.look(path)
    assert (found.path, found.level) == (None, "")
    assert "EDGEMEM_NATIVE_LEVEL" in found.reason
    with pytest.raises(
        Exception, match=f"EDGEMEM_NATIVE_LEVEL is {name}, which is unknown or more than this processor"
    ):
        attend(make_call(["window"], position=[1]))


def test_the_widest_level_of_this_processor_is_chosen():
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or "avx512vl" not in cpuinfo.read_text(encoding="utf-8"):
        pytest.skip("this processor has no AVX-512")
    assert native.level() == "avx512"
