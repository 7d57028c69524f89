"""Builds a small model of every causal language model family of the installed transformers, to see which export.

There is no list of what works: each model is built with random weights and tried.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from edgemem.contract import Contract
from edgemem.errors import EdgememError, ExportError, UnboundedCacheError
from edgemem.export.hf.adapter import HuggingFaceModel, advance
from edgemem.export.hf.bound import LengthBound
from edgemem.export.hf.loading import adapt, said
from edgemem.export.hf.quiet import quiet
from edgemem.protocol import example_input, initial_tensors

Kind = Literal["fixed", "bounded", "refused", "not built"]

VOCAB = 96
_MAX_LENGTH = 96
_TOLERANCE = 1e-4
_STEPS = 30  # beyond the small models' windows
_MOST_PARAMETERS = 20_000_000

_SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size|.*ngram_vocab_size.*", VOCAB),
    (r"num_hidden_layers|n_layers?|num_layers|num_blocks", 2),
    (r"hidden_size|d_model|n_embd|embedding_dim|lru_width", 32),
    (r"num_attention_heads|n_head|n_heads|num_heads|swa_num_attention_heads", 4),
    (r"num_key_value_heads|num_kv_heads|n_head_kv|swa_num_key_value_heads", 2),
    (r"head_dim|swa_head_dim|kv_channels", 8),
    (r"(moe_|shared_|ffn_|dense_|shared_expert_)*intermediate_size|n_inner|ffn_dim|block_ff_dim|.*ffn_hidden_size", 48),
    (r"num_experts|num_local_experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_k|moe_top_?k|num_selected_experts|n_activated_experts", 2),
    (r"num_shared_experts|n_shared_experts|n_group|topk_group|num_expert_group", 1),
    (r"kv_lora_rank|q_lora_rank|router_hidden_size|adapter_rank|d_rel|lowrank|hc_lowrank", 8),
    (r"qk_rope_head_dim|qk_nope_head_dim|v_head_dim|qk_head_dim|index_head_dim|qk_rope_dim", 8),
    (r"index_n_heads|index_topk", 4),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads|linear_num_heads", 4),
    (r"linear_(key_|value_)?head_dim", 8),
    (r"(mamba_)?(d_state|state_size|ssm_state_size)|ssm_state_size", 8),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 8),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", 8),
    (r"mamba_d_ssm", 64),
    (r"mamba_n_groups|mamba_ngroups|n_groups|num_mem_blocks", 1),
    (r"mamba_dt_rank|time_step_rank", 4),
    (r"(mamba_)?chunk_size|block_size", 16),
    (r"max_position_embeddings|n_positions|max_seq_len|context_length", 4096),
    (r"sliding_window|sliding_window_size|attention_window_size|attention_chunk_size|local_attention_window", 24),
    (r"hidden_size_per_layer_input|rel_extent", 16),
    (r"first_k_dense_replace|num_dense_layers", 1),
    (r"n_codebooks|max_window_layers", 1),
)
"""Sizes of a small model by their names in configurations; the first line that matches counts."""

_OFTEN_UNSET = ("head_dim", "num_key_value_heads")
"""Sizes that some configurations leave out, and that some models then do not derive."""

_OWN: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "num_heads": 2, "mode": "inference"},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "use_mamba_kernels": False,
    },
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "n_mamba_heads": 2},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2},
    "zaya": {"num_attention_heads": 8, "head_dim": 128, "num_experts_per_tok": 1},
    "nemotron_h": {"layers_block_type": ["mamba", "attention"]},
    "recurrent_gemma": {
        "num_hidden_layers": 3, "block_types": ["recurrent", "recurrent", "attention"], "num_key_value_heads": 1,
    },
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
}  # fmt: skip
"""What the names of sizes do not tell: mostly, the kind of each layer."""


@dataclass(frozen=True)
class Finding:
    """The result for a family.

    Attributes:
        family: Its ``model_type``.
        kind: ``fixed``: its state has a fixed size. ``bounded``: it has one with ``--memory`` or ``--max-length``.
            ``refused``: it cannot be exported. ``not built``: no small model could be made here.
        reason: Why it is refused or not built.
        states: Kinds of the states, such as ``conv``, without the layers.
        contract: The contract of the small model.
    """

    family: str
    kind: Kind
    reason: str = ""
    states: tuple[str, ...] = ()
    contract: Contract | None = field(default=None, compare=False)


def causal_families() -> list[str]:
    """Every ``model_type`` that the installed transformers has a causal language model for."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_model(family: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A small causal language model of a family, with random weights large enough for every state to matter.

    Args:
        family: Its ``model_type``.
        seed: Seed of the weights.
        changes: Entries of the configuration that differ.
    """
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = auto.from_config(tiny_config(family, **changes)).eval().float()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def tiny_config(family: str, **changes: Any) -> Any:
    """A configuration of a family with small sizes, and one layer of each kind that the family has."""
    from transformers import AutoConfig

    default = AutoConfig.for_model(family)
    text = default.get_text_config(decoder=True)
    if text is not default:  # a model of several parts; one of them is for text
        part = next(name for name, value in vars(default).items() if value is text)
        return AutoConfig.for_model(family, **{part: tiny_config(text.model_type).to_dict()})
    if getattr(default, "sub_configs", None):
        raise ExportError(f"it is made of several models: {', '.join(default.sub_configs)}.")
    sizes: dict[str, Any] = {}
    for name, value in default.to_dict().items():
        if type(value) is int or (value is None and name in _OFTEN_UNSET):
            small = next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), None)
            if small is not None:
                sizes[name] = small
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        sizes[name] = 0
    if hasattr(default, "kv_lora_rank"):  # every head has its own keys, made from few numbers
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    if hasattr(default, "expand"):  # the width inside follows from it
        sizes.pop("intermediate_size", None)
    kinds = vars(default).get("layer_types")
    if isinstance(kinds, list) and kinds and "num_hidden_layers" in sizes:
        sizes["layer_types"] = list(dict.fromkeys(kinds))
        if len(sizes["layer_types"]) == 1:
            sizes["layer_types"] *= 2
        sizes["num_hidden_layers"] = len(sizes["layer_types"])
    sizes.update(_OWN.get(family, {}) | changes)
    return AutoConfig.for_model(family, **sizes)


def find(family: str) -> Finding:
    """Build a small model of ``family`` and find its states."""
    try:
        model = tiny_model(family)
        with torch.no_grad(), quiet():
            model(input_ids=torch.zeros(1, 3, dtype=torch.int64), use_cache=False)
    except Exception as error:
        return Finding(family, "not built", said(error)[:160])
    try:
        return _found(family, "fixed", adapt(model))
    except UnboundedCacheError:
        pass
    except EdgememError as error:
        return Finding(family, "refused", error.message)
    except Exception as error:
        return Finding(family, "refused", said(error)[:160])
    try:
        return _found(family, "bounded", adapt(tiny_model(family), LengthBound(_MAX_LENGTH)))
    except EdgememError as error:
        return Finding(family, "refused", error.message)
    except Exception as error:
        return Finding(family, "refused", said(error)[:160])


def stream_error(module: HuggingFaceModel, steps: int) -> float:
    """Largest difference between streaming in torch and the full sequence, in the scale of ``1 + |logit|``."""
    contract = module.contract()
    x = example_input(contract, 2, steps, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, state, worst = module.full_sequence(x), initial_tensors(contract, 2), 0.0
        for t in range(steps):
            logits, _, state = advance(module, x[:, t : t + 1], state)
            error = (logits - expected[:, t : t + 1]).abs() / (1 + expected[:, t : t + 1].abs())
            worst = max(worst, float(error.nan_to_num(nan=float("inf")).max()))
    return worst


def _found(family: str, kind: Kind, module: HuggingFaceModel) -> Finding:
    contract = module.contract()
    if (error := stream_error(module, _STEPS)) > _TOLERANCE:
        return Finding(family, "refused", f"its steps differ from its full sequence by {error:.1e}.")
    kinds = dict.fromkeys(state.name.partition(".")[2] for state in contract)
    return Finding(family, kind, states=tuple(kinds), contract=contract)
