import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.masking_utils import (
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
)

from edgemem.errors import ExportError, UnboundedCacheError
from edgemem.export.hf.attention import AttentionLayers
from edgemem.export.hf.attention_calls import SHIFT, record_calls, register, window_of
from edgemem.export.hf.bound import LengthBound, MemoryBound, read_bound
from tests.export.hf.decoders import decoder

register()


@given(st.integers(1, 10**6))
def test_a_window_is_read_off_the_mask_that_a_model_asks_for(window):
    assert window_of("layer", sliding_window_causal_mask_function(window)) == window


def test_a_causal_mask_has_no_window():
    assert window_of("layer", causal_mask_function) is None


@pytest.mark.parametrize(
    "mask",
    [
        lambda batch, head, query, key: key >= 0,
        lambda batch, head, query, key: key < query,
        lambda batch, head, query, key: (key <= query) & (key % 2 == 0),
        chunked_causal_mask_function(8192, torch.zeros(1, dtype=torch.int64)),
    ],
    ids=["looks ahead", "not at itself", "every other key", "in blocks"],
)
def test_other_masks_are_refused(mask):
    with pytest.raises(ExportError, match="neither causal nor a sliding window"):
        window_of("layer", mask)


def test_every_layer_tells_its_heads_its_scaling_and_its_window():
    first, second = record_calls(decoder("gemma2", query_pre_attn_scalar=16))
    assert first.name == "model.layers.0.self_attn"
    assert (first.window, second.window) == (9, None)
    assert (first.q.shape[1], first.k.shape[1], first.scaling) == (4, 2, 0.25)


def test_the_model_attends_as_before_when_nobody_listens_any_more():
    model = decoder("llama")
    ids = torch.arange(3, 12)[None]
    before = model(ids).logits
    record_calls(model, SHIFT)
    assert torch.equal(model(ids).logits, before)


def test_attention_in_blocks_is_refused():
    with pytest.raises(ExportError, match="neither causal nor a sliding window"):
        record_calls(decoder("llama4_text"))


def test_a_mask_made_from_what_the_model_reads_is_refused():
    with pytest.raises(ExportError, match="makes its own mask"):
        record_calls(decoder("doge"))


class Biased(nn.Module):
    """An attention layer that hands a bias along."""

    def forward(self, q):
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        attend = ALL_ATTENTION_FUNCTIONS.get_interface("edgemem_record", None)
        return attend(self, q, q, q, None, position_bias=torch.zeros(1))


def test_what_edgemem_does_not_know_is_not_dropped_in_silence():
    model = decoder("llama")
    model.model.layers[0].self_attn.o_proj = nn.Sequential(model.model.layers[0].self_attn.o_proj, biased := Biased())
    biased.register_forward_pre_hook(lambda _, given: (given[0][:, None],))
    with pytest.raises(ExportError, match="passes position_bias to its attention"):
        record_calls(model)


def test_a_growing_cache_needs_a_bound():
    with pytest.raises(UnboundedCacheError, match=r"grows without limit in 2 of its layers") as error:
        AttentionLayers(decoder("llama"))
    assert "--memory" in error.value.hint
    assert "--max-length" in error.value.hint


def test_both_bounds_at_once_are_refused():
    with pytest.raises(ExportError, match="exclude each other"):
        read_bound("window=8", 100)


def test_a_bound_for_a_model_that_needs_none_is_refused():
    with pytest.raises(ExportError, match="leave --memory out"):
        AttentionLayers(decoder("mistral"), MemoryBound(8))
    with pytest.raises(ExportError, match="leave --max-length out"):
        AttentionLayers(decoder("mistral"), LengthBound(100))


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_learned_positions_end_where_training_ended(family):
    with pytest.raises(ExportError, match="reads its absolute positions") as error:
        AttentionLayers(decoder(family), MemoryBound(8))
    assert error.value.hint == "Use --max-length N, of at most 4096."
    with pytest.raises(ExportError, match="has 4096 positions, --max-length asks for 4097"):
        AttentionLayers(decoder(family), LengthBound(4097))
    assert AttentionLayers(decoder(family), LengthBound(4096)).states()


def test_learned_positions_are_seen_however_little_they_differ():
    model = decoder("gpt2")
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(1e-4)
    with pytest.raises(ExportError, match="reads its absolute positions"):
        AttentionLayers(model, MemoryBound(8))


def test_a_model_without_rotary_positions_needs_no_turning():
    layers = AttentionLayers(decoder("smollm3"), MemoryBound(window=8, sinks=2)).layers
    assert [bool(layer.rotation.frequencies) for layer in layers] == [True, False]
