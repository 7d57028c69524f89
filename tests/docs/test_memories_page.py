"""The description of the memories is written from the classes, and the classes describe themselves correctly."""

from __future__ import annotations

from typing import Any

import pytest

from edgemem.memories import MEMORIES, Attention, Dims
from tests.docs import memories_page
from tests.docs.memories_page import about, kinds, options

KINDS = [cls.type_name for cls in kinds()]
pytestmark = pytest.mark.filterwarnings("ignore::edgemem.memories.LoneSummaryWarning")


def test_the_page_is_what_the_classes_say():
    assert memories_page.PAGE.read_text(encoding="utf-8") == memories_page.page(), "run: make docs"


@pytest.mark.parametrize("name", KINDS)
def test_every_option_has_a_meaning(name):
    assert list(about(MEMORIES[name]).options) == list(options(MEMORIES[name]))


@pytest.mark.parametrize("name", KINDS)
def test_the_example_uses_the_memory(name):
    assert name in {spec["type"] for spec in about(MEMORIES[name]).example}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("heads", "width", "window"), [(8, 64, 256), (3, 10, 7)])
def test_the_bytes_are_those_of_the_states(name, heads, width, window):
    cls = MEMORIES[name]
    used = (name, "window", cls.beside)
    specs: list[dict[str, Any]] = [dict(spec) for spec in about(cls).example if spec["type"] in used]
    for spec in specs:
        if spec["type"] == "window":
            spec["window"] = window
    layer = Attention(Dims(16, heads, heads, width), specs)
    for position in (1, 5):
        for (_, memory), spec in zip(layer.named_memories(), specs, strict=True):
            if spec["type"] == name:
                given = {key: value for key, value in spec.items() if key != "type"}
                sizes = {"H": heads, "D": width, "W": window, "i": position}
                held = sum(state.nbytes_at(position) for state in memory.states())
                assert memories_page.state_bytes(cls, sizes, given) == held
