"""Versioned JSON files: what is written is read, and every refusal names the file, the finding and the way out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgemem.errors import EngineError
from edgemem.versioned import Fields, JsonFormat

THING = JsonFormat("test.thing", "a thing", EngineError, way_out="make it again with: make thing", versions=(1, 2))
VALUES: dict[str, Any] = {
    "text": "été",
    "nothing": None,
    "number": 3,
    "flag": True,
    "texts": ["a", "b"],
    "map": {"a": "b"},
    "object": {"inner": 1},
    "objects": [{"inner": 1}, {"inner": 2}],
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "thing.json"
    THING.write(path, THING.stamp(VALUES))
    return path


def refusal(path: Path, content: str | bytes, form: JsonFormat = THING) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(EngineError) as caught:
        form.load(path)
    assert str(path) in caught.value.message
    assert "make it again with: make thing" in (caught.value.hint or "").lower()
    return str(caught.value)


def test_what_is_written_is_read(path: Path) -> None:
    assert json.loads(path.read_text(encoding="utf-8")) == {"format": "test.thing", "version": 2, **VALUES}
    fields = THING.load(path)
    assert fields.text("text") == "été"
    assert fields.text_or_none("nothing") is None
    assert fields.text_or_none("text") == "été"
    assert (fields.integer("number"), fields.integer_or_none("number"), fields.integer_or_none("nothing")) == (
        3,
        3,
        None,
    )
    assert fields.flag("flag") is True
    assert fields.texts("texts") == ("a", "b")
    assert fields.mapping("map", str, "an object of texts") == {"a": "b"}
    assert fields.object("object").integer("inner") == 1
    assert [entry.integer("inner") for entry in fields.objects("objects")] == [1, 2]
    assert fields.with_defaults({"text": "other", "later": []}).values == fields.values | {"later": []}
    assert THING.is_at(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b"null", b'{"format": "other"}'])
def test_what_is_not_such_a_file_is_refused(path: Path, content: bytes) -> None:
    refusal(path, content)
    assert not THING.is_at(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere.json", tmp_path):
        assert not THING.is_at(place)
        with pytest.raises(EngineError, match=re.escape(f"{place} cannot be read")):
            THING.load(place)


@pytest.mark.parametrize("version", [0, 3, "2", None, True, [1]])
def test_an_unknown_version_is_refused_with_the_known_ones(path: Path, version: Any) -> None:
    words = refusal(path, json.dumps({"format": "test.thing", "version": version}))
    assert f"is a thing of version {version!r}, this edgemem reads versions 1 and 2." in words
    assert "Install the edgemem that wrote it, or make it again" in words
    assert THING.is_at(path), "it is recognised all the same"
    by_name = {"edgemem": "9.9"} if version == 3 else {"versions": {"edgemem": "9.9"}}
    words = refusal(path, json.dumps({"format": "test.thing", "version": version, **by_name}))
    assert "Install edgemem 9.9, which wrote it, or make it again" in words


def test_a_format_without_versions_looks_at_none(path: Path) -> None:
    plain = replace(THING, versions=())
    assert plain.stamp({"a": 1}) == {"format": "test.thing", "a": 1}
    assert plain.check({"format": "test.thing", "version": 9}, "thing").values["version"] == 9


def test_a_version_may_have_another_name(path: Path) -> None:
    other = replace(THING, version_key="format_version")
    assert other.stamp({"version": "10.3"}) == {"format": "test.thing", "format_version": 2, "version": "10.3"}
    assert "of version None" in refusal(path, json.dumps(THING.stamp({})), other)


WRONG: dict[str, tuple[Any, str]] = {
    "text": (3, "text is 3, wanted text"),
    "number": (-1, "number is -1, wanted an integer of 0 or more"),
    "flag": (1, "flag is 1, wanted true or false"),
    "texts": (["a", 1], "texts is ['a', 1], wanted a list of texts"),
    "map": ({"a": 1}, "map is {'a': 1}, wanted an object of texts"),
    "object": ([], "object is [], wanted an object"),
    "objects": ({}, "objects is {}, wanted a list of objects"),
}


def read_all(fields: Fields) -> None:
    fields.text("text")
    fields.integer("number")
    fields.flag("flag")
    fields.texts("texts")
    fields.mapping("map", str, "an object of texts")
    fields.object("object")
    fields.objects("objects")


@pytest.mark.parametrize("name", WRONG)
def test_a_malformed_value_is_named_with_what_was_wanted(path: Path, name: str) -> None:
    value, words = WRONG[name]
    fields = THING.check(THING.stamp({**VALUES, name: value}), "thing.json")
    with pytest.raises(EngineError, match=re.escape(f"thing.json is malformed: {words}.")) as caught:
        read_all(fields)
    assert caught.value.hint == "Make it again with: make thing"


@pytest.mark.parametrize("name", WRONG)
def test_a_missing_value_is_named(name: str) -> None:
    fields = THING.check(THING.stamp({key: value for key, value in VALUES.items() if key != name}), "thing.json")
    with pytest.raises(EngineError, match=f"it has no '{name}'"):
        read_all(fields)


def test_true_is_not_an_integer() -> None:
    fields = Fields({"number": True, "numbers": [1, True]}, "thing.json", THING)
    with pytest.raises(EngineError, match="number is True"):
        fields.integer("number")
    with pytest.raises(EngineError, match="numbers is"):
        fields.items("numbers", int, "a list of integers")


def test_a_value_deep_inside_is_named_by_its_place_and_cut_short(path: Path) -> None:
    fields = THING.check(THING.stamp({"objects": [{"inner": 1}, {"inner": "x" * 500}]}), "thing.json")
    with pytest.raises(EngineError, match=r"thing.json: objects\[1\] is malformed: inner is 'x+…") as caught:
        fields.objects("objects")[1].integer("inner")
    assert len(caught.value.message) < 200
