"""The model equals the public one: recorded numbers, the peer in the same process, strict loading, trained tables."""

import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from suites.layoutlmv2.peers import inputs, random_batch, transformers_classes, twin
from systems.layoutlmv2 import (
    BASE,
    LARGE,
    TINY,
    Batch,
    CheckpointError,
    Config,
    LayoutLMv2,
    PageClassifier,
    QuestionAnswerer,
    TokenTagger,
    load,
    save,
)
from systems.layoutlmv2.attention import _kernels, attend, dense_bias, difference_sums
from systems.layoutlmv2.checkpoint import CheckpointWarning, load_weights
from systems.layoutlmv2.model import visual_boxes

SMALL_TINY = TINY.with_(norm="frozen", image_size=64)


def recorded_batch(io):
    rows, length = io["input_ids"].shape
    ids = io["input_ids"]
    pos = torch.arange(length).expand(rows, -1)
    return Batch(ids, torch.zeros_like(ids), pos, io["bbox"], io["attention_mask"].bool(), io["image"])


def scaled(model, seed=0):
    """Random weights large enough that every part of a model shows in its outputs."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            noise = torch.randn(value.shape, generator=draw)
            if name.endswith("running_var"):
                value.copy_(1 + 0.2 * noise.abs())
            elif "rel_pos" in name:
                value.copy_(0.4 * noise)
            elif "orm.weight" in name:
                value.copy_(1 + 0.05 * noise)
            elif value.dim() >= 2 and "embeddings" not in name:
                value.copy_(noise / np.sqrt(value[0].numel()))
            elif value.is_floating_point():
                value.copy_(0.05 * noise)
    return model.eval()


@torch.no_grad()
def test_tiny_equals_the_recorded_numbers(data):
    folder = data("layoutlmv2/parity/tiny")
    io = load_file(folder / "io.safetensors")
    model = load(folder, "tag")
    batch = recorded_batch(io)
    core = model.layoutlmv2
    out = core(batch)
    pos = torch.cat([batch.pos, torch.arange(49).expand(3, -1)], 1)
    box = torch.cat([batch.box, visual_boxes(7, 7).expand(3, -1, -1)], 1)
    relative = core.encoder.spatial.relative(pos, box, torch.ones_like(pos, dtype=torch.bool))
    (one, at), *plane = relative.parts()
    parts = [table[:, at[:, None] - at[:, :, None] + table.shape[1] // 2].transpose(0, 1) for table, at in plane]
    torch.testing.assert_close(one[:, at[:, None] - at[:, :, None] + one.shape[1] // 2].transpose(0, 1), io["bias_1d"])
    found = {
        "visual_features": core.visual(batch.image),
        "visual_bbox": visual_boxes(7, 7),
        "bias_2d": sum(parts),
        "last_hidden_state": torch.cat([out.text, out.visual], 1),
        "pooler_output": out.pooled,
        "token_logits": model(batch),
    }
    classifier = PageClassifier(core.cfg, 7).eval()
    classifier.layoutlmv2.load_state_dict(core.state_dict())
    classifier.classifier.load_state_dict(
        {k.removeprefix("classifier."): v for k, v in load_file(folder / "sequence_head.safetensors").items()}
    )
    found["sequence_logits"] = classifier(batch)
    for name, value in found.items():
        torch.testing.assert_close(value, io[name], atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def base_weight(name, shape):
    """The recipe of the data's README."""
    r = np.random.RandomState(zlib.crc32(name.encode()) & 0xFFFFFFFF).standard_normal(int(np.prod(shape)))
    r = r.astype(np.float32).reshape(shape)
    if name.endswith("running_var"):
        return 1 + 0.2 * abs(r)
    if name.endswith("running_mean"):
        return 0.1 * r
    if "norm.weight" in name or "LayerNorm.weight" in name:
        return 1 + 0.05 * r
    if "rel_pos" in name:
        return 0.4 * r
    if name.endswith("embeddings.weight"):
        return 0.05 * r
    if r.ndim >= 2 and not name.endswith(("q_bias", "v_bias")):
        return r / np.sqrt(np.prod(shape[1:]))
    return 0.05 * r


@pytest.mark.slow
@torch.no_grad()
def test_base_equals_the_recorded_numbers(data):
    folder = data("layoutlmv2/parity/base")
    io = load_file(folder / "io.safetensors")
    cfg = Config.from_json(folder)
    assert cfg == BASE
    model = LayoutLMv2(cfg).eval()
    names = model.state_dict()
    assert len(names) == 710
    weights = {k: torch.from_numpy(np.asarray(base_weight(k, v.shape), np.float32)) for k, v in names.items()}
    load_weights(model, weights)
    batch = recorded_batch(io)
    out = model(batch)
    found = {
        "visual_features": model.visual(batch.image),
        "pooler_output": out.pooled,
        "last_hidden_state_every_16th": torch.cat([out.text, out.visual], 1)[:, ::16],
    }
    for name, value in found.items():
        torch.testing.assert_close(value, io[name], atol=5e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.claim("layoutlmv2/size")
def test_base_has_the_papers_size(claim):
    with torch.device("meta"):
        model = LayoutLMv2(BASE)
    count = sum(p.numel() for p in model.parameters())
    visual = sum(v.numel() for v in model.visual.state_dict().values())
    assert claim.holds(count)
    assert 89.4e6 < visual < 90.4e6


@pytest.mark.claim("layoutlmv2/size-large")
def test_large_has_the_papers_size(claim):
    with torch.device("meta"):
        model = LayoutLMv2(LARGE)
    assert claim.holds(sum(p.numel() for p in model.parameters()))


# ------------------------------------------------------------------------------------------------ the peer


@pytest.mark.parametrize("segment", [False, True])
@torch.no_grad()
def test_the_peer_gives_the_same_for_the_same_weights(monkeypatch, segment):
    cfg = SMALL_TINY.with_(image_size=224, visual_segment=segment)
    batch = random_batch(cfg, rows=3)
    heads = {
        "LayoutLMv2ForTokenClassification": TokenTagger(cfg, 5),
        "LayoutLMv2ForSequenceClassification": PageClassifier(cfg, 5),
    }
    if segment:  # the peer's question head always has the visual segment
        heads["LayoutLMv2ForQuestionAnswering"] = QuestionAnswerer(cfg)
    for name, model in heads.items():
        peer = twin(monkeypatch, scaled(model), name, labels=2 if "Question" in name else 5)
        theirs = peer(**inputs(batch))
        ours = model(batch)
        if name.endswith("QuestionAnswering"):
            pairs = [(ours[0], theirs.start_logits), (ours[1], theirs.end_logits)]
        else:
            pairs = [(ours, theirs.logits)]
        for mine, other in pairs:
            assert mine.abs().max() > 0.1
            if mine.dim() > 1 and mine.shape[1] == batch.mask.shape[1]:
                mine, other = mine[batch.mask], other[batch.mask]
            torch.testing.assert_close(mine, other, atol=2e-5, rtol=0)


@torch.no_grad()
def test_layers_with_separate_queries_keys_and_values_equal_the_peers(monkeypatch):
    model = scaled(LayoutLMv2(SMALL_TINY.with_(fast_qkv=False, image_size=64)))
    batch = random_batch(model.cfg)
    theirs = twin(monkeypatch, model)(**inputs(batch)).last_hidden_state
    out = model(batch)
    torch.testing.assert_close(out.text[batch.mask], theirs[:, : out.text.shape[1]][batch.mask], atol=2e-5, rtol=0)


def test_tables_train_and_their_gradients_are_those_of_float64(monkeypatch):
    model = scaled(TokenTagger(SMALL_TINY, 5))
    batch = random_batch(SMALL_TINY)
    goal = torch.randint(0, 5, batch.ids.shape)

    def loss_of(logits):
        return torch.nn.functional.cross_entropy(logits[batch.mask], goal[batch.mask])

    loss_of(model(batch)).backward()
    names = [name for name, _ in model.named_parameters() if "rel_pos" in name]
    assert len(names) == 3
    ours = {name: model.get_parameter(name).grad.clone() for name in names}

    exact = scaled(TokenTagger(SMALL_TINY, 5)).double()
    core, bias = exact.layoutlmv2.encoder, {}
    pages = {name: model.layoutlmv2.encoder.get_submodule(name.split(".")[2]) for name in names}
    assert all(page.weight.grad is not None for page in pages.values())

    def plain(pos, box, mask):  # indexing, differentiated by autograd
        bias["it"] = core.spatial.relative(pos, box, mask).dense()
        return bias["it"]

    monkeypatch.setattr(core.spatial, "forward", plain)
    loss_of(exact(batch)).backward()
    for name in names:
        reference = exact.get_parameter(name).grad
        assert ours[name].isfinite().all()
        assert ours[name].abs().max() > 0
        scale = reference.abs().max().item()
        torch.testing.assert_close(ours[name].double(), reference, atol=1e-5 * scale, rtol=1e-4)


def test_the_peer_leaves_its_tables_as_they_are(monkeypatch, record_property):
    model = scaled(TokenTagger(SMALL_TINY, 5))
    peer = twin(monkeypatch, model, "LayoutLMv2ForTokenClassification", 5)
    batch = random_batch(SMALL_TINY)
    peer(**inputs(batch)).logits.square().mean().backward()
    grads = [p.grad for name, p in peer.named_parameters() if "rel_pos" in name]
    record_property("peer tables with a gradient", sum(grad is not None for grad in grads))  # 0 in 5.24: reported only
    assert len(grads) == 3


def test_the_kernel_and_indexing_make_the_same_bias_and_sums():
    if _kernels() is None:
        pytest.skip("no C compiler: the kernel is not used here")
    draw = torch.Generator().manual_seed(1)
    pos = torch.randint(0, 60, (3, 31), generator=draw)
    left, low = torch.randint(0, 1001, (2, 3, 31), generator=draw)
    mask = torch.rand(3, 31, generator=draw) < 0.8
    tables = [torch.randn(5, width, generator=draw) for width in (129, 2001, 2001)]
    ours = dense_bias(pos, left, low, mask, *tables)
    assert torch.equal(ours, dense_bias(pos, left, low, mask, *tables, use_kernel=False))
    grad = torch.randn(ours.shape, generator=draw)
    sums = difference_sums(grad, pos, left, low, mask, 64, 1000)
    for mine, other in zip(sums, difference_sums(grad, pos, left, low, mask, 64, 1000, use_kernel=False), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("backend", ["sdpa", "math", "flex"])
@torch.no_grad()
def test_every_way_to_attend_gives_the_same(backend, monkeypatch):
    from systems.layoutlmv2 import attention

    monkeypatch.setattr(attention, "_compiled_flex", lambda: _uncompiled_flex)
    model = scaled(LayoutLMv2(SMALL_TINY))
    batch = random_batch(SMALL_TINY)
    reference = LayoutLMv2(SMALL_TINY).double().eval()
    reference.load_state_dict(model.state_dict())
    reference.encoder.backend = "math"
    model.encoder.backend = backend
    out, exact = model(batch), reference(batch)
    torch.testing.assert_close(out.text[batch.mask].double(), exact.text[batch.mask], atol=2e-5, rtol=0)


def _uncompiled_flex(*args, **kwargs):
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention(*args, **kwargs)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_flex_attention_equals_sdpa():
    model = scaled(LayoutLMv2(SMALL_TINY))
    batch = random_batch(SMALL_TINY)
    spatial = model.encoder.spatial
    q, k, v = torch.randn(3, 2, 4, 40, 32)
    relative = spatial.relative(batch.pos, batch.box, batch.mask)
    torch.testing.assert_close(attend(q, k, v, relative, "flex"), attend(q, k, v, relative), atol=2e-5, rtol=0)


# ------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("prefixed", [True, False])
def test_names_are_the_public_ones_both_ways(tmp_path, monkeypatch, prefixed):
    transformers_classes(monkeypatch)
    model = scaled(TokenTagger(SMALL_TINY, 3))
    save(model if prefixed else model.layoutlmv2, tmp_path, ["O", "B-X", "I-X"])
    weights = load_file(tmp_path / "model.safetensors")
    assert all(name.startswith(("layoutlmv2.", "classifier")) for name in weights) == prefixed
    extra = {"layoutlmv2." * prefixed + "embeddings.position_ids": torch.arange(5)}
    core = load(tmp_path)
    load_weights(core, weights | extra)
    for name, value in model.layoutlmv2.state_dict().items():
        assert torch.equal(core.state_dict()[name], value), name


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    model = scaled(TokenTagger(TINY.with_(visual_segment=True), 3))
    save(model, tmp_path, ["O", "B-X", "I-X"])
    again = load(tmp_path, "tag")
    assert again.layoutlmv2.cfg == model.layoutlmv2.cfg
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    third = load(tmp_path, "tag")
    assert all(torch.equal(value, third.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_visual_segment_in_the_weights_is_used_whatever_the_settings_say(tmp_path):
    model = scaled(LayoutLMv2(TINY.with_(visual_segment=True)))
    save(model, tmp_path)
    TINY.to_json(tmp_path / "config.json")
    again = load(tmp_path)
    assert torch.equal(again.visual_segment_embedding, model.visual_segment_embedding)


def test_what_does_not_fit_is_named(tmp_path):
    model = TokenTagger(SMALL_TINY, 3)
    save(model, tmp_path, ["O", "B-X", "I-X"])
    with pytest.raises(CheckpointError, match=r"classifier.weight \(3, 128\) instead of \(7, 128\)"):
        load(tmp_path, "tag", labels=7)
    with pytest.warns(CheckpointWarning, match="classifier.bias"):
        load(tmp_path)
    weights = model.layoutlmv2.state_dict()
    with pytest.warns(CheckpointWarning, match="starts at random"):
        load_weights(model, weights)
    del weights["encoder.layer.1.output.dense.bias"]
    with pytest.raises(CheckpointError, match=r"encoder.layer.1.output.dense.bias"):
        load_weights(model, weights)
    (tmp_path / "model.safetensors").write_bytes(b"not a safetensors file")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        load(tmp_path, "tag")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        load(tmp_path, "tag")
    with pytest.raises(CheckpointError, match="no folder or weight file"):
        load(tmp_path / "nowhere", "tag")
