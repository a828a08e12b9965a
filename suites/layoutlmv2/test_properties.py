"""What must hold for any page, box, weight and seed."""

import decimal
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suites.layoutlmv2.test_parity import scaled
from systems.layoutlmv2 import TINY, LayoutLMv2, TokenTagger
from systems.layoutlmv2.attention import SpatialBias, attend, bucket_table
from systems.layoutlmv2.backbone import ResNeXtFPN, _tap_matrix
from systems.layoutlmv2.batches import Tokenizer, augment, collate, merge, windows
from systems.layoutlmv2.config import SMALL, Config, InputError
from systems.layoutlmv2.metrics import anls, encode, entities, entity_f1, similarity
from systems.layoutlmv2.model import Batch
from systems.layoutlmv2.pages import Page, Word, normalise, order_lines
from systems.layoutlmv2.pretrain import BLANK, COVER, IGNORED, corrupt
from systems.layoutlmv2.synth import KINDS, make
from systems.layoutlmv2.training import picks

LITTLE = Config(
    vocab_size=60, hidden=24, layers=2, heads=2, intermediate=32, coordinate_size=4, shape_size=4, max_positions=64,
    stem_channels=4, res2_channels=8, groups=2, width_per_group=2, fpn_channels=6, blocks=(1, 1, 1, 1), image_size=64,
)  # fmt: skip
FEW = settings(max_examples=15)


@st.composite
def batches(draw, most=3):
    n, t = draw(st.integers(1, most)), draw(st.integers(1, 20))
    random = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    ids = torch.randint(5, 60, (n, t), generator=random)
    corners = torch.randint(0, 1001, (n, t, 4), generator=random)
    box = torch.cat([corners[..., [0, 2]].sort(-1).values, corners[..., [1, 3]].sort(-1).values], -1)[..., [0, 2, 1, 3]]
    mask = torch.ones(n, t, dtype=torch.bool)
    for row in range(n):
        mask[row, int(torch.randint(1, t + 1, (), generator=random)) :] = False
    image = torch.randint(0, 256, (n, 3, 64, 64), generator=random, dtype=torch.uint8)
    return Batch(ids, torch.zeros_like(ids), torch.arange(t).expand(n, -1).contiguous(), box, mask, image)


@pytest.fixture(scope="module")
def little():
    return scaled(LayoutLMv2(LITTLE))


# ------------------------------------------------------------------------------------------------ the model


@FEW
@given(batches(), st.integers(0, 9))
@torch.no_grad()
def test_padding_and_neighbours_do_not_change_a_page(little, batch, more):
    rows, length = batch.ids.shape
    whole = little(batch)
    pad = torch.zeros(rows, more, dtype=torch.int64)
    wider = Batch(
        torch.cat([batch.ids, pad], 1), torch.cat([batch.segment, pad], 1),
        torch.arange(length + more).expand(rows, -1), torch.cat([batch.box, pad[..., None].expand(-1, -1, 4)], 1),
        torch.cat([batch.mask, pad.bool()], 1), batch.image,
    )  # fmt: skip
    padded = little(wider)
    torch.testing.assert_close(padded.text[:, :length][batch.mask], whole.text[batch.mask], atol=2e-5, rtol=0)
    torch.testing.assert_close(padded.visual, whole.visual, atol=2e-5, rtol=0)
    for row in range(rows):
        alone = little(Batch(*(getattr(batch, f)[row : row + 1] for f in batch.__dataclass_fields__)))
        torch.testing.assert_close(alone.text[0][batch.mask[row]], whole.text[row][batch.mask[row]], atol=2e-5, rtol=0)
        torch.testing.assert_close(alone.pooled[0], whole.pooled[row], atol=2e-5, rtol=0)


@FEW
@given(batches(most=1), st.randoms(use_true_random=False))
@torch.no_grad()
def test_tokens_permuted_with_all_that_is_theirs_permute_the_outputs(little, batch, random):
    order = list(range(batch.ids.shape[1]))
    random.shuffle(order)
    moved = Batch(*(getattr(batch, name)[:, order] for name in ("ids", "segment", "pos", "box", "mask")), batch.image)
    one, other = little(batch).text[:, order], little(moved).text
    torch.testing.assert_close(other[moved.mask], one[moved.mask], atol=2e-5, rtol=0)


@FEW
@given(st.integers(0, 10**6), st.integers(-200, 200))
def test_moving_all_boxes_leaves_the_plane_bias_and_mirroring_swaps_the_halves(seed, shift):
    random = torch.Generator().manual_seed(seed)
    spatial = SpatialBias(LITTLE.with_(relative_bias=False))
    for table in (spatial.rel_pos_x_bias, spatial.rel_pos_y_bias):
        torch.nn.init.normal_(table.weight)
    box = torch.randint(200, 800, (1, 9, 4), generator=random)
    pos, mask = torch.arange(9)[None], torch.ones(1, 9, dtype=torch.bool)
    bias = spatial(pos, box, mask)
    assert torch.equal(bias, spatial(pos, box + shift, mask))
    mirrored = spatial(pos, 1000 - box, mask)
    half = LITTLE.rel_2d_pos_bins // 2
    with torch.no_grad():
        for table in (spatial.rel_pos_x_bias, spatial.rel_pos_y_bias):
            swapped = table.weight.roll(half, 1).clone()
            swapped[:, 0], swapped[:, half] = table.weight[:, 0], table.weight[:, 0]
            table.weight.copy_(swapped)
    assert torch.equal(spatial(pos, box, mask), mirrored)


# ------------------------------------------------------------------------------------------------ buckets


@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (64, 256), (8, 20), (16, 100)])
def test_buckets_equal_a_definition_in_exact_arithmetic(buckets, farthest):
    table = bucket_table(buckets, farthest, 2000)
    half, exact = buckets // 2, buckets // 4
    decimal.getcontext().prec = 60
    tiny = decimal.Decimal(10) ** -40  # an edge that is a power lies on it, whatever the last digit says
    for r in range(-2000, 2001):
        n = abs(r)
        if n < exact:
            found = n
        else:
            ratio = (decimal.Decimal(n) / exact).ln() / (decimal.Decimal(farthest) / exact).ln()
            found = min(half - 1, exact + math.floor(ratio * (half - exact) + tiny))
        assert table[r + 2000] == found + half * (r > 0), r
    assert (table[2000:].diff() >= 0)[1:].all()
    assert (table[:2001].flip(0).diff() >= 0).all()


def test_golden_buckets():
    one, two = bucket_table(32, 128, 1000), bucket_table(64, 256, 1000)
    assert {r: int(one[r + 1000]) for r in (0, -8, -16, -1000, 1, 16, 64, 128)} == {
        0: 0, -8: 8, -16: 10, -1000: 15, 1: 17, 16: 26, 64: 30, 128: 31,
    }  # fmt: skip
    assert {r: int(two[r + 1000]) for r in (-16, -128, 1, 32, 255)} == {-16: 16, -128: 28, 1: 33, 32: 52, 255: 63}
    with pytest.raises(InputError, match="multiple of 4"):
        bucket_table(30, 128, 10)


@FEW
@given(st.integers(0, 10**6), st.floats(0.2, 1.0))
def test_attention_equals_a_float64_sum_over_keys(seed, share):
    random = torch.Generator().manual_seed(seed)
    spatial = SpatialBias(LITTLE)
    pos = torch.arange(7)[None]
    box = torch.randint(0, 1001, (1, 7, 4), generator=random)
    mask = torch.rand(1, 7, generator=random) < share
    mask[0, 0] = True
    q, k, v = torch.randn(3, 1, 2, 7, 12, generator=random)
    got = attend(q, k, v, spatial(pos, box, mask), "sdpa")
    tables = [spatial.rel_pos_bias, spatial.rel_pos_x_bias, spatial.rel_pos_y_bias]
    at = [pos[0], box[0, :, 0], box[0, :, 3]]
    for h in range(2):
        for i in range(7):
            total, weights = np.zeros(12), 0.0
            for j in range(7):
                if mask[0, j]:
                    score = float(q[0, h, i].double() @ k[0, h, j].double()) / math.sqrt(12)
                    for table, a in zip(tables, at, strict=True):
                        score += float(table.weight.detach()[h, table.bucket[int(a[j] - a[i]) + table.reach]])
                    total += math.exp(score) * v[0, h, j].double().numpy()
                    weights += math.exp(score)
            np.testing.assert_allclose(got[0, h, i].detach().numpy(), total / weights, atol=2e-5)


# ------------------------------------------------------------------------------------------------ the backbone


@settings(max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from([64, 96, 224, 448]), st.sampled_from([1.0, 1e3, 1e6]))
@torch.no_grad()
def test_the_collapsed_pyramid_equals_the_plain_one(seed, size, huge):
    random = torch.Generator().manual_seed(seed)
    net = ResNeXtFPN(LITTLE).eval()
    for name, value in net.state_dict().items():
        if value.is_floating_point() and "norm" not in name:
            scale = huge if name.endswith("bias") else 1 / math.sqrt(max(value[0].numel(), 1))
            value.copy_(torch.randn(value.shape, generator=random) * scale)
    images = torch.randn(1, 3, size, size, generator=random)
    rounded = net(images)
    net, images = net.double(), images.double()
    ours = net(images)
    net.collapse = False
    plain = net(images)
    largest = float(plain.abs().max())
    torch.testing.assert_close(ours, plain, atol=1e-12 * largest, rtol=0)
    torch.testing.assert_close(rounded.double(), plain, atol=1e-5 * largest, rtol=0)


@given(st.integers(7, 60), st.integers(1, 7), st.integers(0, 2))
def test_tap_matrices_average_what_lies_inside(side, points, tap_level):
    side *= 8
    matrix = _tap_matrix(side, points, tap_level)
    assert matrix.shape == (3 * points, side >> tap_level)
    sums = matrix.sum(1).reshape(3, points)
    assert (sums <= 1 + 1e-12).all()
    torch.testing.assert_close(sums[1], torch.ones(points, dtype=torch.float64))


@torch.no_grad()
def test_folded_norms_follow_their_weights():
    net = scaled(ResNeXtFPN(LITTLE))
    images = torch.randn(1, 3, 64, 64)
    before = net(images)
    assert torch.equal(net(images), before)
    net.bottom_up.res2[0].conv1.norm.running_mean.add_(0.5)
    changed = net(images)
    assert not torch.equal(changed, before)
    with torch.enable_grad():
        torch.testing.assert_close(net(images).detach(), changed, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="multiples of 32"):
        net(torch.randn(1, 3, 50, 64))


# ------------------------------------------------------------------------------------------------ pages and windows

words_of = st.lists(st.text("abcdefgh0123.,-é", min_size=1, max_size=12), min_size=0, max_size=60)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(word for seed in range(12) for word in make("invoice", seed, None).page.texts)


def page_with(texts, seed=0):
    random = np.random.default_rng(seed)
    words = []
    for text in texts:
        x, y = random.integers(0, 900, 2).tolist()
        words.append(Word(text, (x, y, x + int(random.integers(1, 100)), y + 20)))
    return Page(tuple(order_lines(words)), (100.0, 100.0))


@settings(max_examples=30)
@given(words_of, st.integers(12, 80), st.integers(0, 9))
def test_windows_cover_every_word_and_merging_does_not_mind_the_order(tokenizer, texts, length, stride):
    page = page_with(texts)
    parts = windows(page, tokenizer, length, stride, size=32)
    assert sorted({k for part in parts for k in range(part.start, part.stop)}) == list(range(len(texts)))
    assert all(len(part.ids) <= length for part in parts)
    for part in parts:
        assert part.word[part.first].tolist() == list(range(part.start, part.stop))
        assert part.ids[0] == tokenizer.cls
        assert part.ids[-1] == tokenizer.sep
    values = [np.random.default_rng([k, part.start]).random((len(part.ids) + 3, 2)) for k, part in enumerate(parts)]
    merged = merge(parts, values)
    assert merged.shape == (len(texts), 2)
    backwards = merge(parts[::-1], values[::-1])
    assert np.array_equal(merged, backwards)
    for word in range(len(texts)):
        options = [v[: len(p.ids)][p.first][word - p.start] for p, v in zip(parts, values, strict=True)
                   if p.start <= word < p.stop]  # fmt: skip
        assert any(np.array_equal(merged[word], option) for option in options)


@given(st.lists(st.floats(-50, 2000), min_size=4, max_size=4), st.integers(1, 9))
def test_boxes_are_ordered_and_clipped_and_do_not_mind_the_scale(box, factor):
    found = normalise(box, (612.0, 792.0))
    assert 0 <= found[0] <= found[2] <= 1000
    assert 0 <= found[1] <= found[3] <= 1000
    other = normalise([v * factor for v in box], (612.0 * factor, 792.0 * factor))
    assert max(abs(a - b) for a, b in zip(found, other, strict=True)) <= 1


@settings(max_examples=25)
@given(words_of, st.randoms(use_true_random=False))
def test_reading_order_does_not_depend_on_the_order_given(texts, random):
    words = list(page_with([f"{k}{text}" for k, text in enumerate(texts)], seed=3).words)
    shuffled = words[:]
    random.shuffle(shuffled)
    assert order_lines(shuffled) == words
    assert [word.line for word in words] == sorted(word.line for word in words)


@settings(max_examples=12)
@given(st.integers(0, 10**6))
def test_augmentation_keeps_boxes_valid_and_moves_the_picture_with_them(tokenizer, seed):
    page = Page((Word("x", (300, 300, 600, 600)),), (100.0, 100.0))
    batch = collate(windows(page, tokenizer, 16, 2, size=64))
    image = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    image[:, :, 19:38, 19:38] = 0
    moved = augment(batch.with_(image=image), np.random.default_rng(seed))
    assert (moved.box[..., :2] <= moved.box[..., 2:]).all()
    assert moved.box.min() >= 0
    assert moved.box.max() <= 1000
    assert (moved.box[0, 0] == 0).all()
    x0, _, _, y1 = (moved.box[0, 1] * 64 / 1000).tolist()
    dark = (moved.image[0, 0] < 128).nonzero()
    if len(dark):
        assert abs(dark[:, 1].min() - x0) <= 2
        assert abs(dark[:, 0].max() + 1 - y1) <= 2
    assert moved.image.shape == image.shape


# ------------------------------------------------------------------------------------------------ corruption


@settings(max_examples=10)
@given(st.integers(0, 10**6))
def test_corruption_touches_what_it_says_and_nothing_else(tokenizer, seed):
    pages = [make(kind, seed % 1000, longest=128).page for kind in ("invoice", "letter", "receipt", "table")]
    batch = collate([windows(page, tokenizer, 256, 8, size=96)[0] for page in pages])
    again = corrupt(batch, np.random.default_rng(seed), tokenizer)
    found = corrupt(batch, np.random.default_rng(seed), tokenizer)
    for name in ("asked", "words", "covered", "matching", "blank"):
        assert torch.equal(getattr(again, name), getattr(found, name))
    assert torch.equal(again.batch.image, found.batch.image)
    text = batch.mask & batch.box.any(-1)
    assert torch.equal(found.words, batch.ids)
    assert torch.equal(found.batch.ids[~found.asked], batch.ids[~found.asked])
    assert not found.asked[~text].any()
    assert (found.covered[found.asked] == IGNORED).all()
    assert (found.covered[~text] == IGNORED).all()
    assert torch.equal(found.batch.box, batch.box)
    told = text & ~found.asked
    assert (found.covered[told] >= 0).all()
    wrong = found.matching == 0
    assert (found.covered[wrong][told[wrong]] == 1).all()
    count = int(text.sum())
    share = 0.15
    spread = 6 * math.sqrt(count * share * (1 - share))
    assert abs(int(found.asked.sum()) - share * count) <= spread + 1
    for row in range(len(pages)):
        image, original = found.batch.image[row], batch.image[row]
        if found.blank[row]:
            assert (image == BLANK).all()
            continue
        painted = torch.zeros(96, 96, dtype=torch.bool)
        for token in ((found.covered[row] == 1) | found.asked[row]).nonzero()[:, 0].tolist():
            x0, y0, x1, y1 = batch.box[row, token].tolist()
            left, top = x0 * 96 // 1000, y0 * 96 // 1000
            right, bottom = max(-(-x1 * 96 // 1000), left + 1), max(-(-y1 * 96 // 1000), top + 1)
            area = image[:, top:bottom, left:right]
            if found.matching[row]:
                assert ((area == COVER) | (area == BLANK)).all()
                painted[top:bottom, left:right] = True
        if found.matching[row]:
            # A masked word on a covered line is painted as well, and its own cover lies under it.
            lines = {tuple(batch.box[row, t, [1, 3]].tolist()) for t in found.asked[row].nonzero()[:, 0].tolist()}
            assert lines or not found.asked[row].any()
            assert torch.equal(image[:, ~painted], original[:, ~painted])


# ------------------------------------------------------------------------------------------------ metrics

tags_of = st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), min_size=1, max_size=12)


@given(st.lists(st.tuples(tags_of, st.integers(0, 10**6)), min_size=1, max_size=5))
def test_entity_f1_equals_seqeval(pages):
    seqeval = pytest.importorskip("seqeval.metrics", reason="the oracle: pip install seqeval")
    gold = [tags for tags, _ in pages]
    said = []
    for tags, seed in pages:
        random = np.random.default_rng(seed)
        options = ["O", "B-X", "I-X", "B-Y", "I-Y"]
        said.append([tag if random.random() < 0.6 else options[random.integers(5)] for tag in tags])
    found = entity_f1(gold, said)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found.f1 == pytest.approx(seqeval.f1_score(gold, said), abs=1e-12)
        assert found.precision == pytest.approx(seqeval.precision_score(gold, said), abs=1e-12)
        assert found.recall == pytest.approx(seqeval.recall_score(gold, said), abs=1e-12)


@given(tags_of)
def test_tags_come_back_from_their_entities(tags):
    spans = entities(tags)
    again = encode(spans, len(tags))
    assert entities(again) == spans
    assert [tag[2:] for tag in again] == [tag[2:] for tag in tags]


@given(st.text(max_size=12), st.text(max_size=12))
def test_anls_is_symmetric_bounded_and_whole_only_for_equal_texts(one, other):
    value = similarity(one, other)
    assert value == similarity(other, one)
    assert 0 <= value <= 1
    assert (value == 1) == (" ".join(one.lower().split()) == " ".join(other.lower().split()))
    score = anls([[one, "zzzzzzzzzzzz"]], [other])
    assert 0 <= score <= 1
    assert score == 0 or score >= 0.5


@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 1000))
def test_an_epoch_shows_every_example_once(count, size, seed):
    lengths = list(np.random.default_rng(seed).integers(1, 99, count))
    steps = -(-count // size) * 16
    seen = [k for step in range(steps) for k in picks(lengths, size, step, seed)]
    assert len(seen) == steps * size
    counts = np.bincount(seen, minlength=count)
    assert counts.max() - counts.min() <= 1


# ------------------------------------------------------------------------------------------------ synthetic pages


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_makes_the_same_page_and_its_tags_fit_its_fields(kind):
    one, other = make(kind, 5, 200), make(kind, 5, 200)
    assert one == replace(other, page=other.page)
    assert np.array_equal(np.asarray(one.page.image), np.asarray(other.page.image))
    assert make(kind, 6, None).page != one.page
    for seed in range(8):
        example = make(kind, seed, None)
        assert len(example.tags) == len(example.page.words)
        for name, text in example.fields.items():
            said = [w.text for w, tag in zip(example.page.words, example.tags, strict=True) if tag[2:] == name]
            assert " ".join(said) == text
        for question in example.questions:
            first, last = question.span
            assert " ".join(example.page.texts[first : last + 1]) in question.answers


def test_settings_come_back_from_json(tmp_path):
    for cfg in (TINY, SMALL, LITTLE, Config(visual_segment=True, norm="sync")):
        cfg.to_json(tmp_path / "config.json")
        assert Config.from_json(tmp_path) == cfg


def test_the_ablations_leave_out_what_they_say():
    full, flat, blind = (TokenTagger(LITTLE.with_(**c), 3).eval() for c in ({}, {"layout": False}, {"image": False}))
    assert not any("x_position" in name or "rel_pos_x" in name for name in flat.state_dict())
    assert not any("visual" in name for name in blind.state_dict())
    batch = Batch(
        torch.randint(5, 60, (2, 9)), torch.zeros(2, 9, dtype=torch.int64), torch.arange(9).expand(2, -1),
        torch.randint(0, 400, (2, 9, 2)).repeat(1, 1, 2) + torch.tensor([0, 0, 300, 300]),
        torch.ones(2, 9, dtype=torch.bool), torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8),
    )  # fmt: skip
    moved = batch.with_(box=batch.box // 2)
    repainted = batch.with_(image=255 - batch.image)
    with torch.no_grad():
        assert torch.equal(flat(batch), flat(moved))
        assert not torch.equal(full(batch), full(moved))
        assert torch.equal(blind(batch), blind(repainted))
        assert not torch.equal(full(batch), full(repainted))
