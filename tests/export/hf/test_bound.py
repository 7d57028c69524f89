import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.errors import ConfigError
from edgemem.export.hf.bound import MemoryBound


@given(
    window=st.integers(1, 10**6),
    sinks=st.integers(0, 100),
    summary=st.sampled_from([None, "cumulative"]),
    positions=st.sampled_from(["slot", "absolute"]),
)
def test_what_is_printed_reads_back(window, sinks, summary, positions):
    option = MemoryBound(window, sinks, summary, positions if sinks else "slot")
    assert MemoryBound.parse(str(option)) == option


def test_spaces_and_order_do_not_matter():
    assert MemoryBound.parse(" window = 8 , sinks=2 ") == MemoryBound(window=8, sinks=2)


def test_sinks_stand_by_slot_unless_one_says_otherwise():
    assert MemoryBound.parse("sinks=4,window=8").positions == "slot"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot read"),
        ("sinks=4", "has no window"),
        ("window", "cannot read 'window'"),
        ("window=8,window=9", "cannot read 'window=9'"),
        ("window=8,slots=2", "cannot read 'slots=2'"),
        ("window=0", "at least 1"),
        ("window=eight", "whole number"),
        ("window=8,sinks=-1", "at least 0"),
        ("window=8,summary=mean", "not one of cumulative"),
        ("window=8,positions=relative", "neither 'slot' nor 'absolute'"),
    ],
)
def test_what_cannot_be_read_is_named(text, said):
    with pytest.raises(ConfigError, match=said):
        MemoryBound.parse(text)
