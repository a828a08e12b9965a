"""Models of transformers at tiny sizes: captured, cut, and equal to the model itself."""

import functools

import pytest
import torch
from torch import nn

from suites.superscaler.equality import in_memory_equals, serial
from systems.superscaler import capture, models, plans, verify

transformers = pytest.importorskip("transformers")


class Loss(nn.Module):
    """A model of transformers as a function of tensors to its loss."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values):
        return self.model(**dict(zip(self.names, values, strict=True))).loss


def tokens(vocabulary, *shape):
    return torch.randint(3, vocabulary, shape, generator=torch.Generator().manual_seed(0))


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        use_cache=False,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config), {"input_ids": tokens(32, 4, 8), "labels": tokens(32, 4, 8)}


def llama():
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, use_cache=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config), {"input_ids": tokens(32, 4, 8), "labels": tokens(32, 4, 8)}


def mixtral():
    config = transformers.MixtralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=16, use_cache=False,
        experts_implementation="batched_mm",
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config), {"input_ids": tokens(32, 4, 8), "labels": tokens(32, 4, 8)}


def mbart():
    config = transformers.MBartConfig(
        vocab_size=32, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=16, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, use_cache=False,
    )  # fmt: skip
    ids = tokens(32, 4, 8)
    return transformers.MBartForConditionalGeneration(config), {
        "input_ids": ids, "decoder_input_ids": tokens(32, 4, 8), "labels": tokens(32, 4, 8),
    }  # fmt: skip


def t5():
    config = transformers.T5Config(
        vocab_size=32, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=2, dropout_rate=0.0,
        use_cache=False,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config), {
        "input_ids": tokens(32, 4, 8), "decoder_input_ids": tokens(32, 4, 8), "labels": tokens(32, 4, 8),
    }  # fmt: skip


def swin():
    config = transformers.SwinConfig(
        image_size=16, patch_size=2, num_channels=3, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, drop_path_rate=0.0, num_labels=4,
    )  # fmt: skip
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return transformers.SwinForImageClassification(config), {
        "pixel_values": images, "labels": torch.tensor([0, 1, 2, 3]),
    }  # fmt: skip


MODELS = {"gpt2": gpt2, "llama": llama, "mixtral": mixtral, "mbart": mbart, "t5": t5, "swin": swin}


@functools.cache
def sample_of(name):
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    return models.Sample(Loss(model.to(torch.float64), tuple(batch)), tuple(batch.values()))


@functools.cache
def graph_of(name):
    sample = sample_of(name)
    return capture(sample.model, sample.batch)


@pytest.mark.parametrize("name", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "llama")])
def test_a_model_is_captured_with_its_loss(name):
    sample, graph = sample_of(name), graph_of(name)
    values = {**dict(sample.model.named_parameters()), **dict(sample.model.named_buffers())}
    with torch.no_grad():
        # Language models of transformers take their loss in float32.
        torch.testing.assert_close(graph.run(values, sample.batch), sample.model(*sample.batch), rtol=1e-6, atol=1e-7)
    assert graph.blocks >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_plans_of_a_model_equal_it(name):
    sample, graph = sample_of(name), graph_of(name)
    reference = serial(sample, steps=1)
    for make in (
        lambda g: plans.data_parallel(g, 2),
        lambda g: plans.tensor_parallel(g, 2),
        lambda g: plans.one_f_one_b(g, 2, microbatches=2),
    ):
        plan = make(graph).build()
        assert verify(plan).ok
        in_memory_equals(plan, sample, (reference[0], {}), rtol=1e-5, atol=1e-6)
