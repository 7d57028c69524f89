"""Writes checkpoints of transformers as GGUF files, for llama.cpp: the two architectures that peers.py compares.

The matrices are stored as ``F32``, or quantised by the ``gguf`` package; norms, biases and convolutions stay float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_LLAMA = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_MAMBA = {
    "norm": "attn_norm",
    "mixer.in_proj": "ssm_in",
    "mixer.conv1d": "ssm_conv1d",
    "mixer.x_proj": "ssm_x",
    "mixer.dt_proj": "ssm_dt",
    "mixer.A_log": "ssm_a",
    "mixer.D": "ssm_d",
    "mixer.out_proj": "ssm_out",
}


def write_gguf(model: Any, path: Path, kind: str = "F32") -> Path:
    """Write a ``LlamaForCausalLM`` or a ``MambaForCausalLM``.

    Args:
        model: The model, in float32.
        path: The file.
        kind: How matrices are stored: ``"F32"``, ``"Q8_0"`` or ``"Q4_0"``.
    """
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    (_describe_llama if config.model_type == "llama" else _describe_mamba)(writer, config)
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    for name, array in state.items():
        to, stored = _stored(name, array, config)
        as_matrix = stored.ndim == 2 and not to.endswith(("conv1d.weight", "ssm_a"))
        quant = gguf.GGMLQuantizationType[kind if as_matrix and stored.shape[1] % 32 == 0 else "F32"]
        data = stored if quant == gguf.GGMLQuantizationType.F32 else gguf.quants.quantize(stored, quant)
        writer.add_tensor(to, data, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe_llama(writer: Any, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10_000.0)


def _describe_mamba(writer: Any, config: Any) -> None:
    writer.add_context_length(1 << 20)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(config.intermediate_size)
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(config.time_step_rank)
    writer.add_ssm_dt_b_c_rms(False)


def _stored(name: str, array: Array, config: Any) -> tuple[str, Array]:
    """A parameter's name and content in a GGUF file."""
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "backbone.embeddings.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "backbone.norm_f.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in whole:
        return whole[name], np.ascontiguousarray(array)
    _, _, layer, rest = name.split(".", 3)
    stem, dot, ending = rest.rpartition(".")
    if ending not in ("weight", "bias"):  # a parameter of the layer itself
        stem, dot, ending = rest, "", ""
    to = {**_LLAMA, **_MAMBA}[stem]
    if to in ("attn_q", "attn_k"):  # llama.cpp turns neighbours, transformers turns halves
        heads = config.num_attention_heads if to == "attn_q" else config.num_key_value_heads
        array = array.reshape(heads, 2, len(array) // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)
    if to == "ssm_a":
        array = -np.exp(array)
    if to == "ssm_conv1d" and array.ndim == 3:
        array = array[:, 0]
    return f"blk.{layer}.{to}{dot}{ending}", np.ascontiguousarray(array, np.float32)
