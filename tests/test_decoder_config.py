"""A decoder's configuration survives JSON, and refuses what no decoder can be built from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem.errors import ConfigError
from edgemem.models import Decoder, DecoderConfig

WINDOW = {"type": "window", "window": 4}


def config(**changes: Any) -> DecoderConfig:
    fields: dict[str, Any] = {"d_model": 16, "layers": 2, "heads": 4, "memory": [WINDOW], "vocab_size": 11}
    return DecoderConfig(**{**fields, **changes})


specs: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.sampled_from([WINDOW, {"type": "geometric", "decay": 0.5}, {"type": "compressed"}, {"type": "gated_delta"}]),
    min_size=1,
    max_size=3,
)


@st.composite
def configs(draw: st.DrawFn) -> DecoderConfig:
    kv_heads, groups, layers = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    tokens = draw(st.booleans())
    return DecoderConfig(
        d_model=draw(st.integers(1, 40)),
        layers=layers,
        heads=kv_heads * groups,
        kv_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 8)),
        memory=draw(specs | st.lists(specs, min_size=layers, max_size=layers)),
        vocab_size=draw(st.integers(1, 300)) if tokens else None,
        features=None if tokens else draw(st.integers(1, 5)),
        outputs=None if tokens else draw(st.integers(1, 5)),
        mlp_hidden=draw(st.none() | st.integers(1, 50)),
        rope_theta=draw(st.floats(1.0, 1e6)),
        norm_eps=draw(st.floats(1e-8, 1e-2)),
        tie_embeddings=draw(st.booleans()),
        max_chunk=draw(st.integers(1, 512)),
        input_meaning=draw(st.text(max_size=20)),
    )


@settings(max_examples=60, deadline=None)
@given(original=configs())
def test_a_configuration_survives_json(original: DecoderConfig) -> None:
    assert DecoderConfig.from_json(json.loads(json.dumps(original.to_json()))) == original


@pytest.mark.filterwarnings("ignore::edgemem.memories.LoneSummaryWarning")
@settings(max_examples=20, deadline=None)
@given(original=configs())
def test_every_valid_configuration_builds_a_decoder_with_a_contract(original: DecoderConfig) -> None:
    contract = Decoder(original).contract()
    assert contract.has_fixed_size
    assert contract.max_chunk <= original.max_chunk


def test_it_is_read_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config().to_json()))
    assert DecoderConfig.load(tmp_path / "config.json") == config()


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b'"edgemem.decoder"', b'{"format": "other"}', b"null"]
)
def test_a_file_that_is_no_configuration_is_refused_by_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        DecoderConfig.load(path)


def test_a_missing_file_is_refused_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        DecoderConfig.load(tmp_path / "nowhere.json")


def test_an_unknown_field_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="d_modle") as refusal:
        DecoderConfig.from_json({**config().to_json(), "d_modle": 3})
    assert "d_model" in (refusal.value.hint or "")


@pytest.mark.parametrize("missing", ["d_model", "layers", "heads", "memory"])
def test_a_missing_field_is_refused_by_name(missing: str) -> None:
    data = config().to_json()
    del data[missing]
    with pytest.raises(ConfigError, match=missing):
        DecoderConfig.from_json(data)


@pytest.mark.parametrize(
    "field", ["d_model", "layers", "heads", "max_chunk", "vocab_size", "kv_heads", "head_dim", "mlp_hidden"]
)
@pytest.mark.parametrize("value", [0, -1, 1.5, "4", True])
def test_a_size_that_is_no_positive_whole_number_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field):
        config(**{field: value})


def bad(field: str, *values: Any) -> list[tuple[dict[str, Any], str]]:
    return [({field: value}, field) for value in values]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"vocab_size": None}, "vocab_size"),
    ({"features": 3, "outputs": 2}, "either tokens"),
    ({"vocab_size": None, "features": 3}, "outputs"),
    ({"outputs": 3}, "outputs"),
    ({"heads": 4, "kv_heads": 3}, "kv_heads"),
    ({"share_with": [None]}, "share_with must hold one entry for each of the 2 layers"),
    ({"share_with": 0}, "share_with must hold"),
    ({"share_with": [None, 1]}, "layer 1 can share with an earlier layer, got 1"),
    ({"share_with": [0, None]}, "layer 0 can share with an earlier layer"),
    ({"share_with": [None, "0"]}, "an earlier layer, got '0'"),
    ({"layers": 3, "share_with": [None, 0, 1]}, "layer 2 shares with layer 1, which has no memories of its own"),
    ({"memory": [[WINDOW], [{"type": "full"}]], "share_with": [None, 0]}, "layers 1 and 0 share, but their lists"),
    ({"heads": 4, "kv_heads": 8}, "kv_heads"),
    ({"d_model": 18}, "head_dim"),
    ({"d_model": 12, "heads": 4}, "even"),
    ({"head_dim": 3}, "even"),
    *bad("rope_theta", 0, -1.0, "1", float("nan"), float("inf"), None, True),
    *bad("norm_eps", 0, -1e-5, "1", float("nan"), float("inf"), None, True),
    ({"tie_embeddings": "no"}, "tie_embeddings"),
    ({"input_meaning": 3}, "input_meaning"),
    ({"tokenizer": "words"}, "words"),
    ({"tokenizer": "bytes", "vocab_size": 255}, "256"),
    ({"tokenizer": "bytes", "vocab_size": None, "features": 3, "outputs": 2}, "256"),
    *bad("dtype", "fp16", "int8", None, 16),
    *bad("memory", [], {}, "window", None, [[]], [[WINDOW]], [[WINDOW]] * 3, [WINDOW, [WINDOW]], [["window"]] * 2),
]


@pytest.mark.parametrize(("changes", "named"), BAD)
def test_fields_that_contradict_each_other_or_mean_nothing_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config(**changes)


def test_a_memory_that_does_not_exist_is_refused_when_the_decoder_is_built() -> None:
    with pytest.raises(ConfigError, match="windw"):
        Decoder(config(memory=[{"type": "windw"}]))


@pytest.mark.parametrize("changes", [{"layers": 10**9}, {"d_model": 10**9}, {"max_chunk": 10**9}, {"layers": 10**5000}])
def test_a_size_beyond_any_model_is_refused_before_anything_is_allocated(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(changes))} must be [\d,]+ or less, got "):
        config(**changes)


def test_a_base_of_rotary_frequencies_below_1_is_refused() -> None:
    with pytest.raises(ConfigError, match="rope_theta must be 1 or more, got 1e-320"):
        config(rope_theta=1e-320)


def test_a_model_larger_than_memory_is_refused_before_it_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemem.models.decoder.total_bytes", lambda: 1 << 20)
    large = config(d_model=1024)
    with pytest.raises(ConfigError, match=r"parameters of this configuration take 96 MiB, .* has 1 MiB"):
        Decoder(large)


def test_parameters_are_counted_but_for_the_few_of_memories_and_norms() -> None:
    for each in (config(), config(vocab_size=None, features=3, outputs=5), config(tie_embeddings=False, kv_heads=2)):
        exact = sum(parameter.numel() for parameter in Decoder(each).parameters())
        assert 0 <= exact - each.parameters < 0.05 * exact


def test_sizes_left_out_follow_from_the_others() -> None:
    given_nothing = config()
    assert (given_nothing.kv_head_count, given_nothing.head_size, given_nothing.hidden_size) == (4, 4, 64)
    assert config(d_model=512, heads=8).hidden_size == 1376  # 8/3 of 512 is 1365.3
    assert config(kv_heads=2, head_dim=6, mlp_hidden=5).hidden_size == 5


def test_one_list_of_memories_serves_every_layer_and_a_list_of_lists_one_each() -> None:
    assert config().layer_memories() == [[WINDOW], [WINDOW]]
    assert config(memory=[[WINDOW], [{"type": "full"}]]).layer_memories() == [[WINDOW], [{"type": "full"}]]
