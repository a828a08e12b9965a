"""Spider in models of transformers, through that library's own registries: `accelerate(model)`.

- attention of any model that uses the attention registry (BERT, OPT, Qwen3-MoE, ...): keys that a block of queries may
  not see, such as padding, are not scored;
- Longformer's self-attention, whose global tokens are known only at run time;
- experts: through the experts registry (Qwen3-MoE and its like), and Switch's, which is older than the registry;
- linear, ReLU, linear in OPT's layers, as one ReLU FFN whose silent units are skipped.

The weights stay where they are, under the same names. Importing this module imports transformers.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.activations import SiLUActivation
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import PreTrainedModel
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention
from transformers.models.opt.modeling_opt import OPTDecoderLayer
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersExperts

from systems.spider.attention import attention
from systems.spider.layers import relu_ffn
from systems.spider.moe import moe_ffn
from systems.spider.rules import PatternError

__all__ = ["accelerate"]

NAME = "spider"


def accelerate(
    model: PreTrainedModel, *, lengths: bool = True, activation: bool = True, experts: bool = True
) -> PreTrainedModel:
    """Let a model of transformers skip its zeros; changes it in place and returns it.

    lengths: attention over what is not padding or masked; activation: ReLU layers; experts: mixtures of experts.
    Results agree with the unmodified model's on all positions that are not padding, gradients too. Raises
    PatternError for what is no model of transformers.
    """
    if not isinstance(model, PreTrainedModel):
        raise PatternError(f"model is a {type(model).__name__}, expected a PreTrainedModel of transformers")
    _register()
    if experts and getattr(model.config, "_experts_implementation", None) is not None:
        model.set_experts_implementation(NAME)
    if lengths and getattr(model, "_supports_sdpa", False):
        model.set_attn_implementation(NAME)
    for module in model.modules():
        if lengths and isinstance(module, LongformerSelfAttention):
            _replace(module, _longformer_attention)
        elif experts and isinstance(module, SwitchTransformersExperts):
            _replace(module, _switch_experts)
        elif activation and isinstance(module, OPTDecoderLayer) and isinstance(module.activation_fn, nn.ReLU):
            _join_opt_layer(module)
    return model


def _register() -> None:
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    ExpertsInterface.register(NAME, _experts)


def _replace(module: nn.Module, forward: Any) -> None:
    """Give one module another forward, which is called with the module and its former forward first."""
    if not isinstance(module.forward, functools.partial):
        module.forward = functools.partial(forward, module, module.forward)


# ------------------------------------------------------------------------------------------------- attention


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As transformers' sdpa_attention_forward, which also does what has nothing to skip."""
    size = query.shape[2]
    sparse = (
        attention_mask is not None
        and attention_mask.dtype == torch.bool
        and attention_mask.shape[1] == 1
        and key.shape[2] == size == attention_mask.shape[2] == attention_mask.shape[3]
    )
    if not sparse or dropout > 0 or position_bias is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal,
            position_bias=position_bias, **kwargs,
        )  # fmt: skip
    assert attention_mask is not None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    if scaling is not None:
        query = query * (scaling * math.sqrt(query.shape[3]))
    mask = attention_mask[:, 0].expand(query.shape[0], size, size)
    return attention(query, key, value, mask=mask).transpose(1, 2).contiguous(), None


def _longformer_attention(
    module: LongformerSelfAttention,
    former: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    is_index_masked: Tensor | None = None,
    is_index_global_attn: Tensor | None = None,
    is_global_attn: bool | None = None,
    output_attentions: bool = False,
) -> tuple[Tensor, ...]:
    """Each token sees its window and the global tokens; these see everything, by projections of their own."""
    batch, size, _ = hidden_states.shape
    masked = is_index_masked if is_index_masked is not None else hidden_states.new_zeros(batch, size, dtype=torch.bool)
    lengths = (~masked).sum(1)
    behind = torch.arange(size, device=masked.device) >= lengths[:, None]
    if output_attentions or (module.training and module.dropout > 0) or not torch.equal(masked, behind):
        return former(
            hidden_states, attention_mask=attention_mask, is_index_masked=is_index_masked,
            is_index_global_attn=is_index_global_attn, is_global_attn=is_global_attn,
            output_attentions=output_attentions,
        )  # fmt: skip

    def heads(layer: nn.Module) -> Tensor:
        return layer(hidden_states).view(batch, size, module.num_heads, module.head_dim).transpose(1, 2)

    q, k, v = heads(module.query), heads(module.key), heads(module.value)
    everywhere = is_index_global_attn if is_global_attn and is_index_global_attn is not None else None
    if everywhere is not None:
        wide = [heads(layer) for layer in (module.query_global, module.key_global, module.value_global)]
    outputs = []
    for item in range(batch):
        chosen = slice(item, item + 1)
        tokens = everywhere[item].nonzero()[:, 0] if everywhere is not None else None
        y = attention(
            q[chosen], k[chosen], v[chosen], window=module.one_sided_attn_window_size, global_tokens=tokens,
            lengths=lengths[chosen],
        )  # fmt: skip
        if tokens is not None and tokens.numel():
            end = int(lengths[item])
            theirs = F.scaled_dot_product_attention(
                wide[0][chosen, :, tokens], wide[1][chosen, :, :end], wide[2][chosen, :, :end]
            )
            y = y.index_copy(2, tokens, theirs)
        outputs.append(y)
    return (torch.cat(outputs).transpose(1, 2).reshape(batch, size, -1),)


# --------------------------------------------------------------------------------------------------- experts


def _experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """As transformers' grouped_mm_experts_forward, which does the kinds of experts that `moe_ffn` has not."""
    plain = module.has_gate and module.is_concatenated and not module.has_bias and not module.has_post_expert_norm
    if not plain or not isinstance(module.act_fn, nn.SiLU | SiLUActivation) or module._is_expert_parallel:
        return grouped_mm_experts_forward(module, hidden_states, top_k_index, top_k_weights)
    w_in, w_out = module.gate_up_proj, module.down_proj
    if not module.is_transposed:
        w_in, w_out = w_in.transpose(1, 2), w_out.transpose(1, 2)
    return moe_ffn(hidden_states, w_in, w_out, top_k_index, top_k_weights, "swiglu").to(hidden_states.dtype)


def _switch_experts(
    module: SwitchTransformersExperts,
    former: Any,
    hidden_states: Tensor,
    selected_experts: Tensor,
    routing_weights: Tensor,
) -> Tensor:
    """One product over all experts. A token that found its expert full has no expert, and gives zeros."""
    layers: list[Any] = [module[f"expert_{number}"] for number in range(module.num_experts)]
    first = layers[0]
    if not isinstance(first.act, nn.ReLU) or (module.training and first.dropout.p > 0):
        return former(hidden_states, selected_experts, routing_weights)
    w_in = torch.stack([layer.wi.weight.t() for layer in layers])
    w_out = torch.stack([layer.wo.weight.t() for layer in layers])
    chosen = selected_experts[:, 0]
    weights = routing_weights * chosen.any(-1, keepdim=True)
    return moe_ffn(hidden_states, w_in, w_out, chosen.argmax(-1, keepdim=True), weights, "relu")


# ------------------------------------------------------------------------------------------------ activation


def _join_opt_layer(layer: OPTDecoderLayer) -> None:
    """fc1, ReLU and fc2 as one function, called where fc2 was: the other two pass their input on."""
    if isinstance(layer.fc2.forward, functools.partial):
        return
    first: Any = layer.fc1
    second: Any = layer.fc2
    second.forward = functools.partial(_joined, layer.fc1, layer.fc2)
    first.forward = _unchanged
    layer.activation_fn = nn.Identity()


def _unchanged(x: Tensor) -> Tensor:
    return x


def _joined(first: nn.Linear, second: nn.Linear, x: Tensor) -> Tensor:
    b_in = first.bias if first.bias is not None else x.new_zeros(first.out_features)
    b_out = second.bias if second.bias is not None else x.new_zeros(second.out_features)
    rows = x.reshape(-1, x.shape[-1])
    return relu_ffn(rows, first.weight, b_in, second.weight.t(), b_out).view(*x.shape[:-1], -1)
