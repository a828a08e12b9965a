"""Training that can be stopped, data sets in their official layouts, and values found among words."""

import json
import lzma
import re
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from systems.layoutlmv2 import TINY, CheckpointError, InputError, MissingData, Pretrainer, TokenTagger, load, save
from systems.layoutlmv2.batches import Tokenizer
from systems.layoutlmv2.datasets import (
    DATASETS,
    RVL_LABELS,
    Matched,
    cord,
    docvqa,
    find_value,
    funsd,
    kleister_nda,
    rvl_cdip,
    sroie,
    xfund,
)
from systems.layoutlmv2.finetune import Reader, best_span, bio, class_weights, fit, predict_tags, prepare
from systems.layoutlmv2.metrics import entities, sroie_f1
from systems.layoutlmv2.pages import Word
from systems.layoutlmv2.pretrain import pretrain
from systems.layoutlmv2.synth import make, write_pdf

ROOT = Path(__file__).resolve().parents[2]
CARDS = [make("id_card", seed, 128) for seed in range(6)]
TOKENIZER = Tokenizer.train((word for example in CARDS for word in example.page.texts), 300)
NAMES = bio(["name", "number", "birth", "expiry"])
CFG = TINY.with_(vocab_size=len(TOKENIZER), image_size=64, layers=2, dropout=0.1)


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


# ------------------------------------------------------------------------------------------------ resuming


def test_pretraining_stopped_and_resumed_is_the_unbroken_run_bit_for_bit(tmp_path):
    pages = [example.page for example in CARDS]

    def run(**settings):
        torch.manual_seed(0)
        model = Pretrainer(CFG)
        history = pretrain(model, pages, TOKENIZER, steps=6, batch=4, save_every=2, **settings)
        return model.state_dict(), history

    whole, history = run()
    state = tmp_path / "run.state"
    _, first = run(state=state, stop_at=3)
    resumed, second = run(state=state)
    assert same(whole, resumed)
    assert first.losses + second.losses == history.losses
    done, third = run(state=state)
    assert same(whole, done)
    assert third.losses == []


def test_fine_tuning_stopped_and_resumed_is_the_unbroken_run_bit_for_bit(tmp_path):
    def run(**settings):
        torch.manual_seed(0)
        reader = Reader(TokenTagger(CFG, len(NAMES)), TOKENIZER, NAMES)
        fit(reader, CARDS, steps=6, batch=4, dev=CARDS[:2], evaluate_every=2, patience=5, **settings)
        return reader.model.state_dict()

    whole = run()
    run(state=tmp_path / "s", stop_at=4)
    assert same(whole, run(state=tmp_path / "s"))
    with pytest.raises(CheckpointError, match="seed 0, expected 1"):
        run(state=tmp_path / "s", seed=1)
    (tmp_path / "s").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no state of a training run"):
        run(state=tmp_path / "s")


def test_early_stopping_keeps_the_best():
    values = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.9])
    torch.manual_seed(0)
    reader = Reader(TokenTagger(CFG, len(NAMES)), TOKENIZER, NAMES)
    from systems.layoutlmv2 import training

    seen = []

    def loss_at(model, step, rank, world):
        return model.classifier.weight.square().sum()

    def evaluate():
        seen.append(reader.model.classifier.weight.detach().clone())
        return next(values)

    history = training.train(
        reader.model, loss_at, steps=60, lr=0.01, evaluate=evaluate, evaluate_every=10, patience=2
    )  # fmt: skip
    assert history.steps == 40
    assert torch.equal(reader.model.classifier.weight, seen[1])


def test_the_tables_of_the_bias_can_learn_faster():
    found = []
    for rate in (1.0, 10.0):
        torch.manual_seed(0)
        reader = Reader(TokenTagger(CFG.with_(dropout=0.0), len(NAMES)), TOKENIZER, NAMES)
        before = reader.model.layoutlmv2.encoder.rel_pos_x_bias.weight.detach().clone()
        fit(reader, CARDS, steps=1, batch=4, warmup=0.0, table_rate=rate)
        found.append((reader.model.layoutlmv2.encoder.rel_pos_x_bias.weight.detach() - before).abs().max())
    assert 8 < found[1] / found[0] < 12


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_one_model(tmp_path):
    """Under torchrun both ranks end with the same weights, and only rank 0 writes."""
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import torch, sys
            sys.path.insert(0, {str(ROOT)!r})
            torch.set_num_threads(1)
            from suites.layoutlmv2.test_training import CARDS, CFG, TOKENIZER
            from systems.layoutlmv2 import Pretrainer
            from systems.layoutlmv2.pretrain import pretrain
            import torch.distributed as dist
            torch.manual_seed(0)
            model = Pretrainer(CFG.with_(norm="frozen"))
            pretrain(model, [e.page for e in CARDS], TOKENIZER, steps=2, batch=4, state={str(tmp_path / "s")!r})
            total = torch.stack([p.double().sum() for p in model.parameters()]).sum()
            both = [torch.zeros_like(total) for _ in range(2)]
            dist.all_gather(both, total)
            assert torch.equal(*both), both
            print("rank", dist.get_rank(), "done", flush=True)
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(re.findall(r"rank (\d) done", done.stdout)) == ["0", "1"]
    assert (tmp_path / "s").exists()


# ------------------------------------------------------------------------------------------------ targets


def test_labels_sit_on_first_pieces_alone():
    reader = Reader(TokenTagger(CFG, len(NAMES)), TOKENIZER, NAMES)
    (item,) = prepare(reader, CARDS[:1])
    assert (item.target[~item.window.first] == -100).all()
    assert [NAMES[k] for k in item.target[item.window.first]] == list(CARDS[0].tags)
    weights = class_weights(reader, [item])
    assert (weights[1:] >= 0).all()
    assert weights[0] < weights[weights > 0].max()
    with pytest.raises(InputError, match="tags B-odd, expected only"):
        prepare(reader, [replace(CARDS[0], tags=("B-odd", *CARDS[0].tags[1:]))])
    with pytest.raises(InputError, match="words and 1 tags"):
        prepare(reader, [replace(CARDS[0], tags=("O",))])
    tags, scores = predict_tags(reader, [CARDS[0].page])[0]
    assert len(tags) == len(scores) == len(CARDS[0].page.words)


def test_the_best_span_starts_before_it_ends_and_lies_on_the_page():
    from systems.layoutlmv2.batches import windows

    (part,) = windows(CARDS[0].page, TOKENIZER, 256, 8, "who holds this card ?", 64)
    random = np.random.default_rng(0)
    for _ in range(20):
        logits = random.normal(size=(len(part.ids) + 5, 2))
        value, span = best_span(part, logits, longest=4)
        inside = [k for k in range(len(part.ids)) if part.word[k] >= 0]
        expected = max(
            (logits[a, 0] + logits[b, 1], part.word[a], part.word[b]) for a in inside for b in inside if 0 <= b - a < 4
        )
        assert (value, *span) == pytest.approx(expected)


def test_receipts_fields_are_compared_without_spaces():
    found = sroie_f1([{"total": "9.00", "company": "A  B"}], [{"total": "9.00", "company": "A B", "date": "x"}])
    assert (found.precision, found.recall) == (pytest.approx(2 / 3), 1.0)


# ------------------------------------------------------------------------------------------------ an exported program


@pytest.mark.slow
@torch.no_grad()
def test_an_exported_program_gives_the_same(tmp_path):
    from suites.layoutlmv2.peers import random_batch
    from suites.layoutlmv2.test_parity import scaled

    class Plain(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, ids, segment, pos, box, mask, image):
            from systems.layoutlmv2 import Batch

            return self.model(Batch(ids, segment, pos, box, mask, image))

    cfg = CFG.with_(norm="frozen", vocab_size=200)
    model = scaled(TokenTagger(cfg, 5))
    batch = random_batch(cfg, 2, 24)
    given = (batch.ids, batch.segment, batch.pos, batch.box, batch.mask, batch.image)
    rows, length = torch.export.Dim("rows", min=1, max=64), torch.export.Dim("length", min=2, max=512)
    both = {0: rows, 1: length}
    shapes = {"ids": both, "segment": both, "pos": both, "box": both, "mask": both, "image": {0: rows}}
    program = torch.export.export(Plain(model), given, dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(*given)[batch.mask], model(batch)[batch.mask], atol=2e-5, rtol=0)
    longer = random_batch(cfg, 3, 40, seed=1)
    found = program.module()(longer.ids, longer.segment, longer.pos, longer.box, longer.mask, longer.image)
    torch.testing.assert_close(found[longer.mask], model(longer)[longer.mask], atol=2e-5, rtol=0)


# ------------------------------------------------------------------------------------------------ miniature data sets


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (200, 100), "white").save(path)


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


FORM = [
    {"id": 0, "label": "question", "text": "Date of birth", "box": [10, 10, 60, 20], "linking": [[0, 1]],
     "words": [{"text": "Date", "box": [10, 10, 30, 20]}, {"text": "of", "box": [32, 10, 40, 20]},
               {"text": "birth", "box": [42, 10, 60, 20]}]},
    {"id": 1, "label": "answer", "text": "1 May", "box": [70, 10, 99, 20], "linking": [[0, 1]],
     "words": [{"text": "1", "box": [70, 10, 75, 20]}, {"text": "May", "box": [77, 10, 99, 20]}]},
    {"id": 2, "label": "other", "text": "x", "box": [0, 90, 5, 99], "linking": [],
     "words": [{"text": "x", "box": [0, 90, 5, 99]}, {"text": "", "box": [0, 0, 0, 0]}]},
]  # fmt: skip


def well_formed(examples, count):
    examples = list(examples)
    assert len(examples) == count
    for example in examples:
        for word in example.page.words:
            assert 0 <= word.box[0] <= word.box[2] <= 1000
            assert 0 <= word.box[1] <= word.box[3] <= 1000
        assert len(example.tags) in (0, len(example.page.words))
        assert entities(example.tags) is not None
    return examples


def test_funsd(tmp_path):
    for part, count in (("training_data", 2), ("testing_data", 1)):
        for k in range(count):
            written(tmp_path / "dataset" / part / "annotations" / f"{k}.json", {"form": FORM})
            picture(tmp_path / "dataset" / part / "images" / f"{k}.png")
    example = well_formed(funsd(tmp_path, "train"), 2)[0]
    assert example.tags == ("B-QUESTION", "I-QUESTION", "I-QUESTION", "B-ANSWER", "I-ANSWER", "O")
    assert example.page.words[0].box == (50, 100, 150, 200)
    well_formed(funsd(tmp_path, "test"), 1)
    with pytest.raises(InputError, match="train, test, not 'dev'"):
        list(funsd(tmp_path, "dev"))
    (tmp_path / "dataset" / "testing_data" / "images" / "0.png").unlink()
    with pytest.raises(MissingData, match=r"images/0.png is not there"):
        list(funsd(tmp_path, "test"))


def test_xfund(tmp_path):
    page = {"id": "de_train_0", "document": FORM, "img": {"fname": "de_train_0.jpg", "width": 200, "height": 100}}
    written(tmp_path / "de.train.json", {"documents": [page]})
    picture(tmp_path / "de_train_0.jpg")
    (example,) = well_formed(xfund(tmp_path, "train", "de"), 1)
    assert entities(example.tags) == [("QUESTION", 0, 2), ("ANSWER", 3, 4)]
    with pytest.raises(MissingData, match=r"zh.train.json"):
        list(xfund(tmp_path, "train", "zh"))


def test_cord(tmp_path):
    quad = {"x1": 20, "y1": 10, "x2": 40, "y2": 11, "x3": 41, "y3": 20, "x4": 19, "y4": 19}
    words = [{"text": "2", "quad": quad, "is_key": 0, "row_id": 1}, {"text": "x", "quad": quad, "is_key": 0}]
    content = {"valid_line": [{"category": "menu.cnt", "group_id": 1, "words": words}], "meta": {}}
    written(tmp_path / "dev" / "json" / "r0.json", content)
    picture(tmp_path / "dev" / "image" / "r0.png")
    (example,) = well_formed(cord(tmp_path, "dev"), 1)
    assert example.tags == ("B-MENU.CNT", "I-MENU.CNT")
    assert example.page.words[0].box == (95, 100, 205, 200)


def test_sroie(tmp_path):
    lines = ["10,10,90,10,90,20,10,20,GOOD SHOP, LTD", "10,30,90,30,90,40,10,40,TOTAL 9.00", "a broken line"]
    written(tmp_path / "train" / "box" / "0.txt", "\n".join(lines))
    fields = {"company": "GOOD SHOP, LTD", "date": "1/2/2018", "address": "", "total": "9.00"}
    written(tmp_path / "train" / "entities" / "0.txt", fields)
    picture(tmp_path / "train" / "img" / "0.jpg")
    matched = Matched()
    (example,) = well_formed(sroie(tmp_path, "train", matched), 1)
    assert example.page.texts == ["GOOD", "SHOP,", "LTD", "TOTAL", "9.00"]
    assert entities(example.tags) == [("company", 0, 2), ("total", 4, 4)]
    assert matched.unmatched == [("0", "date", "1/2/2018")]
    assert "2 of 3 values found: 2 exact" in str(matched)


def test_kleister_nda(tmp_path):
    written(tmp_path / "dev-0" / "expected.tsv", "jurisdiction=New_York party=Nobody_Inc.\n")
    with lzma.open(tmp_path / "dev-0" / "in.tsv.xz", "wt") as file:
        file.write("a.pdf\teffective_date jurisdiction party term\ttext\ttext\ttext\ttext\n")
    from systems.layoutlmv2.sheet import Sheet

    sheet = Sheet(300, 300)
    sheet.text(20, 50, "under the laws of New York")
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "a.pdf").write_bytes(sheet.pdf())
    matched = Matched()
    (example,) = well_formed(kleister_nda(tmp_path, "dev", matched), 1)
    assert entities(example.tags) == [("jurisdiction", 4, 5)]
    assert matched.unmatched == [("a.pdf", "party", "Nobody Inc.")]
    (tmp_path / "dev-0" / "expected.tsv").write_text("")
    with pytest.raises(MissingData, match="1 documents and 0 lines"):
        list(kleister_nda(tmp_path, "dev"))


def test_rvl_cdip(tmp_path):
    written(tmp_path / "labels" / "val.txt", "imagesa/a/0.tif 11\n")
    picture(tmp_path / "images" / "imagesa" / "a" / "0.tif")
    words = {"words": [{"text": "Invoice", "box": [10, 10, 60, 20]}]}
    written(tmp_path / "images" / "imagesa" / "a" / "0.json", words)
    (example,) = well_formed(rvl_cdip(tmp_path, "dev"), 1)
    assert (example.label, example.page.texts) == ("invoice", ["Invoice"])
    assert len(RVL_LABELS) == 16


def test_docvqa(tmp_path):
    rows = [
        {"questionId": 1, "question": "which date?", "image": "documents/p.png", "answers": ["1 May"]},
        {"questionId": 2, "question": "who?", "image": "documents/p.png", "answers": ["nobody at all"]},
    ]
    written(tmp_path / "val_v1.0.json", {"data": rows})
    picture(tmp_path / "documents" / "p.png")
    word = {"boundingBox": [70, 10, 75, 10, 75, 20, 70, 20], "text": "1"}
    other = {"boundingBox": [77, 10, 99, 10, 99, 20, 77, 20], "text": "May"}
    lines = [{"boundingBox": [70, 10, 99, 10, 99, 20, 70, 20], "text": "1 May", "words": [word, other]}]
    found = {"recognitionResults": [{"width": 200, "height": 100, "lines": lines}]}
    written(tmp_path / "ocr_results" / "p.json", found)
    matched = Matched()
    one, two = well_formed(docvqa(tmp_path, "dev", matched), 2)
    assert one.questions[0].span == (0, 1)
    assert two.questions[0].span is None
    assert len(matched.unmatched) == 1


@pytest.mark.parametrize("name", list(DATASETS))
def test_a_data_set_that_is_not_there_names_the_path(name, tmp_path):
    with pytest.raises(MissingData, match=re.escape(str(tmp_path))):
        list(DATASETS[name](tmp_path, "train"))


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("Total 9.00 cash 9.00", "9.00", (3, 3, "exact")),
        ("ACME Ltd. Kuala", "Acme Ltd", (0, 1, "normalised")),
        ("at GOOD SH0P TRADING LTD now", "GOOD SHOP TRADING LTD", (1, 4, "fuzzy")),
        ("nothing like it", "GOOD SHOP", None),
        ("", "x", None),
        ("a b", "", None),
    ],
)
def test_values_are_found_exactly_then_nearly(text, value, expected):
    words = [Word(one, (k, 0, k + 1, 1)) for k, one in enumerate(text.split())]
    assert find_value(words, value) == expected


def test_the_line_that_names_a_value_decides():
    words = [Word("9.00", (0, 0, 1, 1), 0), Word("TOTAL", (0, 5, 1, 6), 1), Word("9.00", (3, 5, 4, 6), 1),
             Word("9.00", (0, 9, 1, 10), 2)]  # fmt: skip
    assert find_value(words, "9.00", key="total") == (2, 2, "exact")
    assert find_value(words, "9.00", [(2, 2)], "") == (3, 3, "exact")


def test_a_reader_comes_back_from_its_folder(tmp_path):
    reader = Reader(TokenTagger(CFG, len(NAMES)).eval(), TOKENIZER, NAMES)
    reader.save(tmp_path)
    again = Reader.load(tmp_path)
    assert again.names == NAMES
    assert again.tokenizer.pieces == TOKENIZER.pieces
    assert same(reader.model.state_dict(), again.model.state_dict())
    save(reader.model, tmp_path / "half", NAMES, torch.float16)
    half = load(tmp_path / "half", "tag")
    worst = max(
        float((a - half.state_dict()[name]).abs().max())
        for name, a in reader.model.state_dict().items()
        if a.is_floating_point()
    )
    assert 0 < worst < 1e-2
    write_pdf("id_card", 0, tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").stat().st_mode & 0o777 == 0o644
