"""Models of transformers, random and tiny: accelerated, they give the unmodified model's outputs and gradients."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")

from systems.spider import PatternError, attention  # noqa: E402
from systems.spider import hf as adapters  # noqa: E402

LENGTHS = (70, 33, 5)


def switch():
    config = transformers.SwitchTransformersConfig(
        vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1, num_heads=4, num_experts=6, expert_capacity=20, dropout_rate=0.0,
        router_jitter_noise=0.0,
    )  # fmt: skip
    return transformers.SwitchTransformersModel(config)


def opt():
    config = transformers.OPTConfig(
        vocab_size=99, hidden_size=128, num_hidden_layers=2, ffn_dim=512, num_attention_heads=4, dropout=0.0,
        max_position_embeddings=128, word_embed_proj_dim=128,
    )  # fmt: skip
    model = transformers.OPTModel(config)
    for layer in model.decoder.layers:
        layer.fc1.bias.data -= 0.05  # so that units are silent often enough for a sparse rule to be chosen
    return model


def bert():
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, max_position_embeddings=128,
    )  # fmt: skip
    return transformers.BertModel(config, add_pooling_layer=False)


def longformer():
    config = transformers.LongformerConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        attention_window=[16, 16], hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=1,
        max_position_embeddings=256,
    )  # fmt: skip
    return transformers.LongformerModel(config, add_pooling_layer=False)


def qwen():
    config = transformers.Qwen3MoeConfig(
        vocab_size=99, hidden_size=32, intermediate_size=64, moe_intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=5, num_experts_per_tok=2,
    )  # fmt: skip
    return transformers.Qwen3MoeModel(config)


MODELS = {"switch": switch, "opt": opt, "bert": bert, "longformer": longformer, "qwen3-moe": qwen}


def batch(name):
    lengths = torch.tensor(LENGTHS)
    real = torch.arange(70)[None] < lengths[:, None]
    ids = torch.randint(3, 99, (3, 70)).where(real, 1)
    given = {"input_ids": ids, "attention_mask": real.long()}
    if name == "switch":
        given["decoder_input_ids"] = ids[:, :9]
    if name == "longformer":
        given["global_attention_mask"] = torch.zeros(3, 70, dtype=torch.long)
        given["global_attention_mask"][0, [0, 17, 40]] = 1
        given["global_attention_mask"][1, 3] = 1
    return given, (torch.ones(3, 9, dtype=torch.bool) if name == "switch" else real)


def worst_difference(name, monkeypatch):
    """Of outputs at real positions and of parameter gradients, as a share of the largest value of each."""
    torch.manual_seed(0)
    model = MODELS[name]().train()
    ours = adapters.accelerate(copy.deepcopy(model))
    used = []
    for function in ("attention", "moe_ffn", "relu_ffn"):
        kernel = getattr(adapters, function)
        monkeypatch.setattr(
            adapters, function, lambda *a, f=function, kernel=kernel, **k: used.append(f) or kernel(*a, **k)
        )
    given, real = batch(name)
    found = []
    torch.manual_seed(1)
    weights = None
    for candidate in (model, ours):
        hidden = candidate(**given).last_hidden_state
        weights = torch.randn_like(hidden) if weights is None else weights
        (hidden * weights)[real].sum().backward()
        found.append((hidden.detach()[real], {n: p.grad for n, p in candidate.named_parameters()}))
    (theirs, wanted), (mine, got) = found
    differences = [float((mine - theirs).abs().max() / theirs.abs().max())]
    scale = max(float(g.abs().max()) for g in wanted.values() if g is not None)
    assert list(got) == list(wanted)
    for parameter, gradient in wanted.items():
        other = got[parameter]
        if gradient is None or other is None:
            assert gradient is None or not bool(gradient.any()), parameter
            assert other is None or not bool(other.any()), parameter
            continue
        differences.append(float((other - gradient).abs().max()) / scale)
    return max(differences), set(used)


@pytest.mark.claim("spider/equivalence-models")
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("switch", {"moe_ffn"}),
        ("opt", {"attention", "relu_ffn"}),
        ("bert", {"attention"}),
        ("longformer", {"attention"}),
        ("qwen3-moe", {"attention", "moe_ffn"}),
    ],
)
def test_hf_models(claim, name, parts, monkeypatch):
    difference, used = worst_difference(name, monkeypatch)
    assert used >= parts  # or the model would be compared with itself
    assert claim.holds(difference)


def test_parts_are_accelerated_on_request_only(monkeypatch):
    model = adapters.accelerate(opt(), lengths=False, activation=False, experts=False)
    monkeypatch.setattr(adapters, "attention", None)
    monkeypatch.setattr(adapters, "relu_ffn", None)
    assert model(**batch("opt")[0]).last_hidden_state.shape == (3, 70, 128)


def test_a_model_is_accelerated_once_however_often_it_is_asked():
    torch.manual_seed(0)
    model = opt().eval()
    given, real = batch("opt")
    wanted = model(**given).last_hidden_state[real]
    twice = adapters.accelerate(adapters.accelerate(model))
    torch.testing.assert_close(twice(**given).last_hidden_state[real], wanted, rtol=1e-4, atol=1e-4)


def test_what_is_no_model_of_transformers_is_refused():
    with pytest.raises(PatternError, match="Linear"):
        adapters.accelerate(torch.nn.Linear(2, 2))


def test_padding_keys_are_not_scored():
    """NaN behind the end of an item changes nothing."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 20, 8)
    mask = (torch.arange(20) < 13).expand(1, 20, 20)
    k, v = (x.masked_fill((torch.arange(20) >= 13)[:, None], float("nan")) for x in (k, v))
    assert bool(attention(q, k, v, mask=mask)[:, :, :13].isfinite().all())
