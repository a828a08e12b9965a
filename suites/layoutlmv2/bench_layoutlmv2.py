"""LayoutLMv2 as a workload, and beside the public implementation: the same weights, inputs and process.

The peer is transformers with the stand-in backbone of `peers.py`, which does less than detectron2 does. Sizes are BASE
in recording runs; a plain run compares the outputs of a narrow model only, once.
"""

import contextlib

import pytest
import torch

from suites.layoutlmv2.peers import inputs, random_batch, transformers_classes, twin
from suites.layoutlmv2.test_parity import scaled
from systems.layoutlmv2 import BASE, TINY, LayoutLMv2, PageClassifier, TokenTagger
from systems.layoutlmv2.attention import attend, dense_bias
from systems.layoutlmv2.model import visual_boxes
from systems.layoutlmv2.synth import make, write_pdf

pytestmark = pytest.mark.component("model")
NARROW = TINY.with_(norm="frozen", image_size=224)


def setting(measure, rows=4, length=512):
    """BASE with pages of 512 tokens when it counts, a narrow model with short pages otherwise."""
    if measure.full:
        return BASE, random_batch(BASE, rows, length)
    return NARROW, random_batch(NARROW, 2, 64)


def close(tolerance):
    def check(ours, theirs):
        scale = float(ours.abs().max())
        return float((ours - theirs).abs().max()) <= tolerance * max(scale, 1.0)

    return check


def no_grad(fn):
    def run():
        with torch.no_grad():
            return fn()

    return run


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


THREADS = [1, pytest.param(0, id="all")]


# ------------------------------------------------------------------------------------------------ as a workload


def test_forward(measure, device):
    """Pages per second through a tagger of four narrow layers, backbone included."""
    model = scaled(TokenTagger(NARROW, 9)).to(device)
    batch = random_batch(NARROW, 4, 128).to(device)
    measure(no_grad(lambda: model(batch)), work=4.0, unit="sample/s")


def test_training_steps(measure, device):
    """Pages per second in training, tables of the bias included."""
    model = scaled(TokenTagger(NARROW, 9)).to(device).train()
    batch = random_batch(NARROW, 4, 128).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in measure.steps(12, work=4.0, unit="sample/s", warmup=2):
        optimiser.zero_grad()
        model(batch).square().mean().backward()
        optimiser.step()


def test_bias_tensor_is_the_same_everywhere(measure):
    """The bias of a page of 300 tokens: sums of three floats in a fixed order, so one right digest."""
    draw = torch.Generator().manual_seed(0)
    pos = torch.arange(300)[None]
    left, low = torch.randint(0, 1001, (2, 1, 300), generator=draw)
    mask = torch.ones(1, 300, dtype=torch.bool)
    tables = [torch.randint(-1000, 1000, (4, width), generator=draw) / 7 for width in (1025, 2001, 2001)]
    bias = measure(lambda: dense_bias(pos, left, low, mask, *tables))
    measure.digest("bias", bias)


# ------------------------------------------------------------------------------------------------ beside the peer


@pytest.mark.slow
@pytest.mark.parametrize("count", THREADS)
def test_token_tagger(measure, monkeypatch, count):
    with threads(count or torch.get_num_threads()):
        cfg, batch = setting(measure)
        model = scaled(TokenTagger(cfg, 7))
        peer = twin(monkeypatch, model, "LayoutLMv2ForTokenClassification", 7)
        speed = measure.versus(
            {
                "maat": no_grad(lambda: model(batch)[batch.mask]),
                "transformers": no_grad(lambda: peer(**inputs(batch)).logits[batch.mask]),
            },
            check=close(2e-5), work=float(len(batch)), unit="sample/s",
        )  # fmt: skip
        speed.over("transformers").at_least(1.15)


@pytest.mark.slow
@pytest.mark.parametrize("count", THREADS)
def test_page_classifier(measure, monkeypatch, count):
    with threads(count or torch.get_num_threads()):
        cfg, batch = setting(measure)
        model = scaled(PageClassifier(cfg, 16))
        peer = twin(monkeypatch, model, "LayoutLMv2ForSequenceClassification", 16)
        speed = measure.versus(
            {
                "maat": no_grad(lambda: model(batch)),
                "transformers": no_grad(lambda: peer(**inputs(batch)).logits),
            },
            check=close(2e-5), work=float(len(batch)), unit="sample/s",
        )  # fmt: skip
        speed.over("transformers").at_least(1.35)


def coordinates(cfg, batch):
    rows = len(batch)
    pos = torch.cat([batch.pos, torch.arange(49).expand(rows, -1)], 1)
    cells = visual_boxes(7, 7).expand(rows, -1, -1)
    box = torch.cat([batch.box, cells], 1)
    mask = torch.cat([batch.mask, torch.ones(rows, 49, dtype=torch.bool)], 1)
    return pos, box, mask


@pytest.mark.slow
def test_bias_tensor(measure, monkeypatch):
    """All three tables into one (B, H, L, L) tensor; the peer makes two and adds them in every layer."""
    cfg, batch = setting(measure)
    cfg = cfg.with_(layers=1)
    pos, box, mask = coordinates(cfg, batch)
    mask = torch.ones_like(mask)
    model = scaled(LayoutLMv2(cfg))
    spatial = model.encoder.spatial
    encoder = twin(monkeypatch, model).encoder

    def theirs():
        one = encoder._calculate_1d_position_embeddings(pos)
        return one + encoder._calculate_2d_position_embeddings(box)

    def eager():
        relative = spatial.relative(pos, box, mask)
        return dense_bias(pos, box[..., 0], box[..., 3], mask, relative.one, relative.x, relative.y, use_kernel=False)

    speed = measure.versus(
        {"maat": no_grad(lambda: spatial(pos, box, mask)), "maat eager": no_grad(eager),
         "transformers": no_grad(theirs)}, check=close(1e-6),
    )  # fmt: skip
    speed.over("transformers").at_least(3)
    speed.over("transformers", of="maat eager").at_least(1.1)


@pytest.mark.slow
def test_attention_core(measure, monkeypatch):
    """Scores, bias, softmax and values of one layer. The peer adds two bias tensors and a mask."""
    cfg, batch = setting(measure)
    pos, box, mask = coordinates(cfg, batch)
    model = scaled(LayoutLMv2(cfg.with_(layers=1)))
    bias = model.encoder.spatial(pos, box, mask).detach()
    encoder = twin(monkeypatch, model).encoder
    attention = encoder.layer[0].attention.self
    rows, length = pos.shape
    hidden = torch.randn(rows, length, cfg.hidden)
    with torch.no_grad():
        one, plane = encoder._calculate_1d_position_embeddings(pos), encoder._calculate_2d_position_embeddings(box)
        q, k, v = (
            part.view(rows, length, cfg.heads, -1).transpose(1, 2) for part in attention.compute_qkv(hidden)
        )  # fmt: skip
    peer_mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)[:, None, None, :]

    def theirs():
        weights = (q / q.shape[-1] ** 0.5) @ k.transpose(-1, -2)
        weights += one
        weights += plane
        weights = weights.float().masked_fill_(peer_mask.to(torch.bool), torch.finfo(weights.dtype).min)
        return torch.softmax(weights, -1, dtype=torch.float32).type_as(v) @ v

    speed = measure.versus(
        {"maat": no_grad(lambda: attend(q, k, v, bias)), "transformers": no_grad(theirs)}, check=close(2e-5),
        work=4.0 * rows * length**2 * cfg.hidden, unit="FLOP/s",
    )  # fmt: skip
    speed.over("transformers").at_least(2.2)


@pytest.mark.slow
def test_training_step_of_one_layer(measure, monkeypatch):
    """Bias, one layer, backward; ours with the gradients of the tables, which the peer does not compute."""
    cfg, batch = setting(measure, rows=2)
    cfg = cfg.with_(layers=1, dropout=0.0, attention_dropout=0.0)
    pos, box, mask = coordinates(cfg, batch)
    model = scaled(LayoutLMv2(cfg))
    encoder, peer = model.encoder.train(), twin(monkeypatch, model).encoder.train()
    hidden = torch.randn(*pos.shape, cfg.hidden)
    peer_mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)[:, None, None, :]

    def ours():
        encoder.zero_grad()
        x = hidden.clone().requires_grad_()
        encoder(x, pos, box, mask)[mask].square().mean().backward()
        return x.grad

    def theirs():
        peer.zero_grad()
        x = hidden.clone().requires_grad_()
        out = peer(x, bbox=box, position_ids=pos, attention_mask=peer_mask)
        out.last_hidden_state[mask].square().mean().backward()
        return x.grad

    speed = measure.versus({"maat": ours, "transformers": theirs}, check=close(2e-5))
    assert encoder.rel_pos_bias.weight.grad is not None
    speed.over("transformers").at_least(1.05)


@pytest.mark.slow
def test_half_precision(measure, monkeypatch):
    """bfloat16 on the CPU, by autocast for both."""
    cfg, batch = setting(measure)
    model = scaled(TokenTagger(cfg, 7))
    peer = twin(monkeypatch, model, "LayoutLMv2ForTokenClassification", 7)

    def half(fn):
        def run():
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                return fn().float()

        return run

    speed = measure.versus(
        {
            "maat": half(lambda: model(batch)[batch.mask]),
            "transformers": half(lambda: peer(**inputs(batch)).logits[batch.mask]),
            "transformers in fp32": no_grad(lambda: peer(**inputs(batch)).logits[batch.mask]),
        },
        check=close(0.1), work=float(len(batch)), unit="sample/s",
    )  # fmt: skip
    speed.over("transformers").at_least(1.4)
    speed.over("transformers in fp32").at_least(1.7)


@pytest.mark.slow
def test_receipts_padded_to_the_batch(measure, monkeypatch):
    """Pages of 200 tokens. Padding differs: ours to the longest of the batch, the peer's to 512 as its processor's
    `padding="max_length"` does; beside it the peer at our padding."""
    cfg, _ = setting(measure)
    length, full = (200, 512) if measure.full else (24, 64)
    batch = random_batch(cfg, 4, length)
    model = scaled(TokenTagger(cfg, 7))
    peer = twin(monkeypatch, model, "LayoutLMv2ForTokenClassification", 7)
    more = torch.zeros(4, full - length, dtype=torch.int64)
    wide = batch.with_(
        ids=torch.cat([batch.ids, more], 1), segment=torch.cat([batch.segment, more], 1),
        pos=torch.arange(full).expand(4, -1), mask=torch.cat([batch.mask, more.bool()], 1),
        box=torch.cat([batch.box, more[..., None].expand(-1, -1, 4)], 1),
    )  # fmt: skip
    speed = measure.versus(
        {
            "maat": no_grad(lambda: model(batch)[batch.mask]),
            "transformers padded to 512": no_grad(lambda: peer(**inputs(wide)).logits[wide.mask]),
            "transformers, same padding": no_grad(lambda: peer(**inputs(batch)).logits[batch.mask]),
        },
        check=close(2e-5), work=4.0, unit="sample/s",
    )  # fmt: skip
    speed.over("transformers padded to 512").at_least(2)
    speed.over("transformers, same padding").at_least(1.1)


# ------------------------------------------------------------------------------------------------ documents


@pytest.mark.slow
def test_words_of_a_pdf(measure, tmp_path):
    """Words and boxes of ten born-digital pages, beside pdfplumber; nearly all words agree."""
    pdfplumber = pytest.importorskip("pdfplumber", reason="a peer: pip install pdfplumber")
    import pypdfium2

    from systems.layoutlmv2.pages import pdf_words

    count = 10 if measure.full else 2
    paths = [tmp_path / f"{seed}.pdf" for seed in range(count)]
    for seed, path in enumerate(paths):
        write_pdf("letter" if seed % 2 else "invoice", seed, path)

    def ours():
        found = []
        for path in paths:
            document = pypdfium2.PdfDocument(path)
            found += [word.text for word in pdf_words(document[0])]
            document.close()
        return found

    def theirs():
        found = []
        for path in paths:
            with pdfplumber.open(path) as document:
                found += [word["text"] for word in document.pages[0].extract_words()]
        return found

    def same(one, other):
        return len(set(one) & set(other)) >= 0.98 * len(set(one) | set(other))

    speed = measure.versus({"maat": ours, "pdfplumber": theirs}, check=same, work=float(count), unit="sample/s")
    speed.over("pdfplumber").at_least(5)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["rapidocr", "tesseract"])
def test_reading_scans(measure, engine):
    """Seconds a page and the share of words read right, on noisy synthetic invoices."""
    from systems.layoutlmv2.pages import _engine, recognise

    if _engine(engine) is None:
        pytest.skip(f"{engine} is not installed")
    example = make("invoice", 5, 1700, scanned=1.0) if measure.full else make("receipt", 5, 700)
    page = measure(lambda: recognise(example.page.image, ocr=engine), work=1.0, unit="sample/s")
    wanted, found = set(example.page.texts), set(page.texts)
    measure.record("word F1", 2 * len(wanted & found) / (len(wanted) + len(found)), "1", better="higher")
    assert len(wanted & found) > 0.8 * len(wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LayoutLMv3", "Lilt", "Bros", "LayoutLM"])
def test_other_layout_models(measure, name):
    """Tokens per second of random models of BASE's width and depth, 512 tokens; for what each costs, not judged."""
    transformers = pytest.importorskip("transformers", reason="a peer: pip install transformers")
    sizes = (
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
        if measure.full
        else {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    )
    extra = {"LayoutLMv3": {"coordinate_size": 128, "shape_size": 128} if measure.full else
             {"coordinate_size": 22, "shape_size": 20}}.get(name, {})  # fmt: skip
    model = getattr(transformers, f"{name}Model")(
        getattr(transformers, f"{name}Config")(vocab_size=1000, **sizes, **extra)
    ).eval()
    length = 512 - 1 if measure.full else 32
    cfg = BASE.with_(vocab_size=1000) if measure.full else NARROW.with_(vocab_size=1000)
    batch = random_batch(cfg, 2, length, size=224)
    given = {"input_ids": batch.ids, "bbox": batch.box, "attention_mask": batch.mask.long()}
    if name == "LayoutLMv3":
        given["pixel_values"] = batch.image.float() / 255
    if name == "Bros":
        given["bbox"] = batch.box / 1000
    measure(no_grad(lambda: model(**given)), work=float(batch.mask.sum()), unit="sample/s")


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"])
def test_forward_on_a_gpu(measure, monkeypatch, device):
    cfg, batch = BASE, random_batch(BASE, 32, 512).to(device)
    model = scaled(TokenTagger(cfg, 7)).to(device)
    peer = twin(monkeypatch, model, "LayoutLMv2ForTokenClassification", 7).to(device)

    def half(fn):
        def run():
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
                return fn().float()

        return run

    speed = measure.versus(
        {
            "maat": half(lambda: model(batch)[batch.mask]),
            "transformers": half(lambda: peer(**inputs(batch)).logits[batch.mask]),
        },
        check=close(0.1), work=32.0 * 561, unit="sample/s",
    )  # fmt: skip
    speed.over("transformers").at_least(2.5)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"])
def test_training_step_on_a_gpu(measure, monkeypatch, device):
    """Ours with the gradients of the tables, in bfloat16; peak memory beside the time."""
    cfg = BASE.with_(dropout=0.0, attention_dropout=0.0)
    batch = random_batch(cfg, 16, 512).to(device)
    model = scaled(TokenTagger(cfg, 7)).to(device).train()
    peer = twin(monkeypatch, model, "LayoutLMv2ForTokenClassification", 7).to(device).train()

    def step(run, owner):
        def go():
            owner.zero_grad()
            with torch.autocast("cuda", torch.bfloat16):
                loss = run()[batch.mask].float().square().mean()
            loss.backward()
            return loss.detach()

        return go

    contenders = {
        "maat": step(lambda: model(batch), model),
        "transformers": step(lambda: peer(**inputs(batch)).logits, peer),
    }
    peaks = []
    for run in contenders.values():
        torch.cuda.reset_peak_memory_stats()
        run()
        peaks.append(torch.cuda.max_memory_allocated())
    measure.record("peak memory over the peer's", peaks[0] / peaks[1], "1", better="lower")
    speed = measure.versus(contenders, check=close(0.1), work=16.0 * 561, unit="sample/s")
    speed.over("transformers").at_least(2)


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda"])
@pytest.mark.parametrize("length", [561, 1024, 2048])
def test_attention_without_a_bias_tensor_on_a_gpu(measure, device, length):
    """FlexAttention and the Triton kernel beside SDPA with the bias made first."""
    draw = torch.Generator().manual_seed(0)
    spatial = scaled(LayoutLMv2(BASE.with_(layers=0, max_positions=2048, image=False))).encoder.spatial.to(device)
    box = torch.randint(0, 1001, (4, length, 4), generator=draw).to(device)
    pos = torch.arange(length, device=device).expand(4, -1)
    mask = torch.ones(4, length, dtype=torch.bool, device=device)
    q, k, v = torch.randn(3, 4, 12, length, 64, generator=draw).to(device, torch.bfloat16)
    relative = spatial.relative(pos, box, mask)
    speed = measure.versus(
        {
            "triton": no_grad(lambda: attend(q, k, v, relative, "triton").float()),
            "flex": no_grad(lambda: attend(q, k, v, relative, "flex").float()),
            "sdpa and the bias": no_grad(lambda: attend(q, k, v, spatial(pos, box, mask)).float()),
        },
        check=close(0.05), work=4.0 * 4 * length**2 * 768, unit="FLOP/s",
    )  # fmt: skip
    best = "flex" if speed.strongest("sdpa and the bias") == "flex" else "triton"
    if length >= 1024:
        speed.over("sdpa and the bias", of=best).at_least(1)


def test_the_stand_in_keeps_out_of_the_way(monkeypatch):
    import sys

    before = "detectron2" in sys.modules
    with monkeypatch.context() as patch:
        transformers_classes(patch)
        assert "detectron2" in sys.modules
    assert ("detectron2" in sys.modules) == before
