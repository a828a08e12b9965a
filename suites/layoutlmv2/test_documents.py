"""From files to fields: PDFs, scans, folders, the shipped checkpoint, the command line, and all that can be wrong."""

import json
import subprocess
import sys
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from systems.layoutlmv2 import TINY, Batch, DocumentError, InputError, LayoutLMv2, TokenTagger
from systems.layoutlmv2.__main__ import main
from systems.layoutlmv2.batches import Tokenizer, collate, windows
from systems.layoutlmv2.config import CheckpointError, MissingEngine
from systems.layoutlmv2.extract import WEIGHTS, extract, extract_many, fields_of, gather, shipped
from systems.layoutlmv2.finetune import Reader, bio, predict_tags
from systems.layoutlmv2.pages import (
    Page,
    ReadingNote,
    Word,
    draw,
    garbage,
    page_of,
    pixels,
    read,
    recognise,
    split_line,
    upright_rgb,
)
from systems.layoutlmv2.sheet import Sheet
from systems.layoutlmv2.synth import FIELDS, make, write_pdf, write_png


def needs_ocr():
    pytest.importorskip("rapidocr", reason="reading pictures: pip install rapidocr onnxruntime")
    pytest.importorskip("onnxruntime", reason="reading pictures: pip install rapidocr onnxruntime")


@pytest.fixture(scope="module")
def reader():
    """A tagger that was never trained: enough for all but accuracy."""
    tokenizer = Tokenizer.train(word for seed in range(5) for word in make("invoice", seed, None).page.texts)
    torch.manual_seed(0)
    return Reader(TokenTagger(TINY.with_(vocab_size=len(tokenizer)), 17).eval(), tokenizer, bio(FIELDS))


# ------------------------------------------------------------------------------------------------ end to end


def exact(folder, seeds, writer, suffix):
    """(fields read exactly, fields there are) of the shipped checkpoint on unseen invoices."""
    right = total = 0
    for seed in seeds:
        path = folder / f"{seed}{suffix}"
        example = writer("invoice", seed, path)
        found = {one.name: one.text for one in extract(path)}
        total += len(example.fields)
        right += sum(found.get(name) == text for name, text in example.fields.items())
    return right, total


def test_the_shipped_checkpoint_reads_invoices_from_pdf(tmp_path):
    right, total = exact(tmp_path, range(10), write_pdf, ".pdf")
    assert right >= 0.88 * total, f"{right} of {total}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thirty_unseen_invoices_from_pdf(tmp_path, measure):
    right, total = exact(tmp_path, range(30), write_pdf, ".pdf")
    measure.record("fields exact, PDF", right / total, "1", better="higher")
    assert right >= 0.95 * total, f"{right} of {total}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thirty_unseen_invoices_through_ocr(tmp_path, measure):
    needs_ocr()
    right, total = exact(tmp_path, range(30), write_png, ".png")
    measure.record("fields exact, scan", right / total, "1", better="higher")
    assert right >= 0.80 * total, f"{right} of {total}"


def test_the_shipped_checkpoint_is_small_and_knows_its_fields():
    size = sum(file.stat().st_size for file in WEIGHTS.iterdir())
    assert size <= 12 * 2**20
    assert {name[2:] for name in shipped().names if name != "O"} == set(FIELDS)
    assert len(shipped().tokenizer) <= shipped().cfg.vocab_size


def test_a_picture_shows_the_box_of_every_field(tmp_path):
    write_pdf("invoice", 3, tmp_path / "a.pdf")
    document = read(tmp_path / "a.pdf")
    page = document.pages[0]
    fields = list(fields_of(document, shipped()))
    assert len(fields) >= 5
    before, after = np.asarray(page.image, int), np.asarray(draw(page, fields), int)
    changed = np.abs(after - before).sum(-1) > 60
    for one in fields:
        x0, x1 = (int(v * page.image.width / 1000) for v in (one.box[0], one.box[2]))
        y0, y1 = (int(v * page.image.height / 1000) for v in (one.box[1], one.box[3]))
        assert changed[max(y0 - 2, 0), x0:x1].mean() > 0.5, one
        assert changed[min(y1 + 2, changed.shape[0] - 1), x0:x1].mean() > 0.5, one


NAMES = bio(["address", "invoice_no", "total"])


def gathered(rows):
    """Fields of words given as (text, line, label, its probability); the rest of the probability is O's."""
    boxes = [(10 * k, 20 * row, 10 * k + 8, 20 * row + 8) for k, (_, row, _, _) in enumerate(rows)]
    words = tuple(Word(row[0], box, row[1]) for row, box in zip(rows, boxes, strict=True))
    odds = np.zeros((len(rows), len(NAMES)))
    for k, (_, _, label, share) in enumerate(rows):
        odds[k, NAMES.index(label)] += share
        odds[k, 0] += 1 - share
    return {one.name: one for one in gather(Page(words, (1.0, 1.0)), 0, odds, NAMES)}


def test_a_field_goes_on_further_down_past_other_words():
    found = gathered([("12", 0, "B-address", 0.9), ("Mill", 0, "I-address", 0.9), ("No", 0, "O", 1.0),
                      ("7", 0, "B-invoice_no", 0.9), ("Road", 1, "I-address", 0.7)])  # fmt: skip
    assert found["address"].text == "12 Mill Road"
    assert found["address"].box == (0, 0, 48, 28)
    assert found["address"].score == pytest.approx(0.7)
    assert found["invoice_no"].words == (3,)
    assert "total" not in found


def test_the_surest_of_two_stays_and_a_doubtful_word_between_two_sure_ones_belongs():
    found = gathered([("9", 0, "B-total", 0.6), ("10", 1, "B-total", 0.8), ("1", 2, "B-address", 0.9),
                      ("Old", 2, "I-address", 0.1), ("Lane", 2, "I-address", 0.9)])  # fmt: skip
    assert found["total"].text == "10"
    assert found["address"].text == "1 Old Lane"


def test_a_likely_word_is_taken_where_no_other_is_and_an_unlikely_one_never():
    assert gathered([("9", 0, "B-total", 0.4), ("x", 0, "O", 1.0)])["total"].text == "9"
    assert gathered([("9", 0, "B-total", 0.2), ("x", 0, "O", 1.0)]) == {}


# ------------------------------------------------------------------------------------------------ long pages


def long_page(count=1500):
    words = []
    for k, text in enumerate(word for seed in range(40) for word in make("letter", 50 + seed, None).page.texts):
        if k == count:
            break
        x, y = k % 15 * 66, k // 15 * 10
        words.append(Word(text, (x, y, x + 60, y + 8), k // 15))
    return Page(tuple(words), (1000.0, 1000.0))


@pytest.mark.claim("layoutlmv2/kleister-lost-words")
def test_a_long_page_loses_no_word(reader, claim):
    page = long_page()
    parts = windows(page, reader.tokenizer, 512, 128, size=128)
    assert len(parts) > 3
    assert all(a.stop > b.start for a, b in pairwise(parts))
    tags, scores = predict_tags(reader, [page])[0]
    assert (scores > 0).all()
    assert claim.holds(len(page.words) - len(tags))


@pytest.mark.claim("layoutlmv2/kleister-windows")
def test_windows_agree_on_their_overlap(claim):
    """By the shipped checkpoint, on words that two windows both show with 40 words or more around them."""
    reader, page = shipped(), long_page()
    parts = windows(page, reader.tokenizer, 512, 128, size=reader.cfg.image_size)
    with torch.inference_mode():
        best = [reader.model(collate([part]))[0, : len(part.ids)].argmax(-1).numpy()[part.first] for part in parts]
    same = both = 0
    for a, b, one, other in zip(parts, parts[1:], best, best[1:], strict=False):
        for word in range(b.start, a.stop):
            both += 1
            same += int(one[word - a.start] == other[word - b.start])
    assert both > 50
    assert claim.holds(same / both)


# ------------------------------------------------------------------------------------------------ reading


def test_words_of_a_pdf_are_those_written():
    sheet = Sheet(300, 200)
    sheet.text(20, 40, "Total due", 12)
    sheet.text(280, 40, "12.50", 12, align="right")
    sheet.text(20, 80, "naïve café", 12)
    import pypdfium2

    from systems.layoutlmv2.pages import pdf_words

    for turn in (0, 90, 180, 270):
        document = pypdfium2.PdfDocument(sheet.pdf())
        page = document[0]
        page.set_rotation(turn)
        words = pdf_words(page)
        image = np.asarray(page.render(scale=4).to_pil().convert("L"))
        assert sorted(word.text for word in words) == sorted(["Total", "due", "12.50", "naïve", "café"])
        for word in words:  # ink lies in every box, so boxes turn with the page
            x0, y0, x1, y1 = (
                int(v * side / 1000) for v, side in zip(word.box, (image.shape[1], image.shape[0]) * 2, strict=True)
            )
            assert image[y0 : y1 + 1, x0 : x1 + 1].min() < 100, (turn, word)
        document.close()


def test_a_scan_is_read_by_ocr(tmp_path):
    needs_ocr()
    sheet = Sheet(300, 120)
    sheet.text(20, 40, "Invoice Number", 14)
    sheet.text(200, 40, "482913", 14)
    sheet.picture(700).save(tmp_path / "a.png")
    page = read(tmp_path / "a.png").pages[0]
    assert [word.text for word in page.words] == ["Invoice", "Number", "482913"]
    assert all(0.5 < word.confidence <= 1 for word in page.words)
    placed = sheet.example("x", longest=None).page.words
    for mine, true in zip(page.words, placed, strict=True):
        assert np.abs(np.subtract(mine.box, true.box)).max() < 60


def test_lines_are_parted_into_words_by_their_share():
    parts = split_line("Total due 12.50", [[0, 0], [150, 0], [150, 10], [0, 10]])
    assert [text for text, _ in parts] == ["Total", "due", "12.50"]
    assert parts[0][1][0] == 0
    assert parts[-1][1][2] == pytest.approx(150)
    assert all(a[1][2] < b[1][0] for a, b in pairwise(parts))


@pytest.mark.parametrize("mode", ["L", "1", "RGBA", "LA", "P", "CMYK", "I;16", "F"])
def test_every_kind_of_picture_becomes_rgb(mode, tmp_path):
    grey = np.full((40, 50), 255, np.uint8)
    grey[10:20, 10:30] = 0
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32))
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    found = upright_rgb(image)
    assert found.mode == "RGB"
    assert found.getpixel((0, 0)) == (255, 255, 255)
    assert max(found.getpixel((15, 15))) < 60
    assert pixels(Page((), (50.0, 40.0), image), 64).shape == (3, 64, 64)


def test_exif_turns_a_picture_upright(tmp_path):
    image = Image.new("RGB", (60, 40), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    turned = upright_rgb(Image.open(tmp_path / "a.png"))
    assert turned.size == (40, 60)
    assert turned.getpixel((39, 0)) == (255, 0, 0)


def test_the_model_sees_blue_green_red():
    image = Image.new("RGB", (64, 64), (250, 120, 10))
    assert pixels(Page((), (1.0, 1.0), image), 32)[:, 0, 0].tolist() == [10, 120, 250]


# ------------------------------------------------------------------------------------------------ bad input


def batch_of(box):
    ids = torch.full((2, 3), 7)
    boxes = torch.zeros(2, 3, 4, dtype=torch.int64)
    boxes[1, 2] = torch.tensor(box)
    zero = torch.zeros_like(ids)
    image = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    return Batch(ids, zero, torch.arange(3).expand(2, -1), boxes, torch.ones(2, 3, dtype=torch.bool), image)


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 1001, 5), (9, 0, 5, 5), (0, 9, 5, 5)])
def test_a_box_off_the_grid_is_named(box):
    model = LayoutLMv2(TINY.with_(image_size=64))
    with pytest.raises(InputError, match=r"row 1 of the batch, token 2: .*0..1000") as caught:
        model(batch_of(box))
    assert isinstance(caught.value, ValueError)
    assert str(list(box)) in str(caught.value)


def test_ids_and_positions_beyond_the_tables_are_named():
    model = LayoutLMv2(TINY.with_(image_size=64, vocab_size=10))
    batch = batch_of((0, 0, 5, 5))
    with pytest.raises(InputError, match=r"row 0 of the batch, token 0: 10, expected an id below the vocabulary"):
        model(batch.with_(ids=batch.ids + 3))
    with pytest.raises(InputError, match="below 512: cut longer pages into windows"):
        model(batch.with_(pos=batch.pos + 511))
    with pytest.raises(InputError, match=r"tokens and .* boxes"):
        model(batch.with_(box=batch.box[:, :2]))
    with pytest.raises(InputError, match="multiples of 32"):
        model(batch.with_(image=batch.image[..., :50]))


def test_words_and_boxes_of_different_number_are_told():
    with pytest.raises(ValueError, match="2 words and 1 boxes"):
        page_of(["a", "b"], [(0, 0, 1, 1)], (10.0, 10.0))
    with pytest.raises(InputError, match="positive sides"):
        page_of(["a"], [(0, 0, 1, 1)], (0.0, 10.0))


def test_boxes_off_the_page_or_reversed_are_clipped_and_ordered():
    page = page_of(["a", "b"], [(-5, 20, 30, 10), (90, 80, 200, 300)], (100.0, 100.0))
    assert [word.box for word in page.words] == [(0, 100, 300, 200), (900, 800, 1000, 1000)]


def test_an_empty_page_has_no_fields_and_a_note(tmp_path, capsys):
    (tmp_path / "a.pdf").write_bytes(Sheet(200, 200).pdf())
    assert main(["extract", str(tmp_path / "a.pdf")]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "page 1 is empty" in err


def test_one_broken_file_stops_no_other(tmp_path, capsys):
    write_pdf("invoice", 1, tmp_path / "b.pdf")
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.4 and then nothing")
    (tmp_path / "c.png").write_bytes(b"no picture")
    (tmp_path / "d.txt").write_text("not for us")
    assert main(["extract", str(tmp_path), "--json", str(tmp_path / "out" / "x.json")]) == 2
    out, err = capsys.readouterr()
    assert "b.pdf" in out
    assert "total" in out
    complaints = [line for line in err.splitlines() if line.startswith("layoutlmv2: /")]
    assert len(complaints) == 2
    assert "a.pdf: a PDF that cannot be opened" in complaints[0]
    assert "c.png: no picture or PDF" in complaints[1]
    rows = json.loads((tmp_path / "out" / "x.json").read_text())
    assert [("error" in row, row["path"].rpartition("/")[2]) for row in rows] == [
        (True, "a.pdf"), (False, "b.pdf"), (True, "c.png"),
    ]  # fmt: skip


def test_an_encrypted_pdf_is_told(tmp_path):
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas(str(tmp_path / "a.pdf"), encrypt="secret")
    canvas.drawString(50, 50, "hidden")
    canvas.save()
    with pytest.raises(DocumentError, match=r"encrypted: remove its password"):
        read(tmp_path / "a.pdf")
    with pytest.raises(DocumentError, match="No such file"):
        read(tmp_path / "none.pdf")


def test_a_scan_without_an_engine_says_what_to_install(tmp_path, monkeypatch, capsys):
    from systems.layoutlmv2 import pages

    monkeypatch.setattr(pages, "_ENGINES", {"rapidocr": None, "tesseract": None})
    Image.new("RGB", (50, 50), "white").save(tmp_path / "a.png")
    with pytest.raises(MissingEngine, match="pip install rapidocr onnxruntime"):
        read(tmp_path / "a.png")
    assert main(["extract", str(tmp_path / "a.png")]) == 2
    assert "pip install rapidocr" in capsys.readouterr().err
    with pytest.raises(MissingEngine, match="ocr is 'none'"):
        recognise(Image.new("RGB", (5, 5)), ocr="none")


def test_a_garbled_text_layer_falls_to_ocr_and_says_so(tmp_path, monkeypatch):
    from systems.layoutlmv2 import pages

    assert garbage([Word("\x01\x02\ue000", (0, 0, 9, 9))]) == "its text layer is mostly unprintable"
    assert "off the page" in garbage([Word("abc", (1000, 0, 1000, 9))])
    assert garbage([Word("abc", (0, 0, 9, 9))]) == ""
    sheet = Sheet(200, 100)
    sheet.panel(20, 20, 60, 60, 0.2)
    (tmp_path / "a.pdf").write_bytes(sheet.pdf())

    def engine(image):
        return ["seen"], [(1, 1, 20, 20)], [0.9]

    monkeypatch.setattr(pages, "_ENGINES", {"rapidocr": engine})
    with pytest.warns(ReadingNote, match="page 1: it has no text layer, so its picture is read by OCR"):
        document = read(tmp_path / "a.pdf")
    assert document.pages[0].texts == ["seen"]


def test_a_vocabulary_that_is_too_large_or_incomplete_is_refused(tmp_path, reader):
    reader.save(tmp_path)
    with (tmp_path / "vocab.txt").open("a") as file:
        file.write("onemore\n")
    with pytest.raises(CheckpointError, match="another vocabulary"):
        Reader.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    with pytest.raises(InputError, match=r"without \[CLS\], \[SEP\], \[MASK\]"):
        Reader.load(tmp_path)
    with pytest.raises(InputError, match="more than the stride"):
        windows(Page((), (1.0, 1.0)), reader.tokenizer, 100, 99)


# ------------------------------------------------------------------------------------------------ the tool


def test_commands_work_together(tmp_path, capsys):
    assert main(["synth", "invoice", "--count", "2", "--out", str(tmp_path / "in")]) == 0
    facts = json.loads((tmp_path / "in" / "invoice-1.json").read_text())
    assert len(facts["words"]) == len(facts["tags"]) == len(facts["boxes"])
    assert main(["extract", str(tmp_path / "in"), "--picture", str(tmp_path / "pictures")]) == 0
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 2
    assert main(["extract", str(tmp_path / "in" / "invoice-0.pdf"), "--picture", str(tmp_path / "one.png")]) == 0
    assert Image.open(tmp_path / "one.png").size[0] > 500
    capsys.readouterr()
    assert main(["words", str(tmp_path / "in" / "invoice-0.pdf"), "--json", str(tmp_path / "words.json")]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(json.loads((tmp_path / "words.json").read_text())[0]) == len(rows)
    assert main(["info"]) == 0
    assert "B-invoice_no" in capsys.readouterr().out
    assert main(["convert", str(WEIGHTS), "--task", "tag", "--half", "--out", str(tmp_path / "converted")]) == 0
    assert main(["evaluate", "synth", "invoice:2", "--model", str(tmp_path / "converted"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["examples"] == 2
    for wrong in (["synth", "novel"], ["info", str(tmp_path / "none")], ["evaluate", "funsd", str(tmp_path)],
                  ["evaluate", "synth", "invoice"], ["extract", str(tmp_path / "none")]):  # fmt: skip
        assert main(wrong) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_pretraining_and_fine_tuning_from_the_command_line(tmp_path, capsys):
    common = ["--steps", "3", "--batch", "2", "--save-every", "2"]
    assert main(["pretrain", "synth:id_card:4", "--out", str(tmp_path / "pre"), *common]) == 0
    fine = ["finetune", "synth", "id_card:4", "--from", str(tmp_path / "pre"), "--out", str(tmp_path / "fine"), *common]
    assert main(fine) == 0
    out, err = capsys.readouterr()
    assert "pre-trained on 4 pages" in out
    assert "step 3/3" in err
    assert main(["evaluate", "synth", "id_card:3", "--model", str(tmp_path / "fine")]) == 0
    assert main([*fine[:-6], "--steps", "4", "--batch", "2"]) == 2  # the state is of another run
    assert "steps 3, expected 4" in capsys.readouterr().err


def test_many_files_are_shared_out_over_processes(tmp_path):
    paths = [tmp_path / f"{seed}.pdf" for seed in range(3)]
    for seed, path in enumerate(paths):
        write_pdf("invoice", seed, path)
    (tmp_path / "1.pdf").write_bytes(b"%PDF broken")
    alone = list(extract_many(paths))
    assert [bool(found.error) for found in alone] == [False, True, False]
    shared = list(extract_many(paths, jobs=2))
    assert [[(f.name, f.text) for f in found.fields] for found in shared] == [
        [(f.name, f.text) for f in found.fields] for found in alone
    ]


@pytest.mark.slow
def test_the_tool_starts_from_a_shell(tmp_path):
    write_pdf("invoice", 0, tmp_path / "a.pdf")
    command = [sys.executable, "-m", "systems.layoutlmv2", "extract", str(tmp_path / "a.pdf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "total" in done.stdout


def test_nothing_is_said_on_standard_error_without_reason(tmp_path, capsys):
    write_pdf("invoice", 2, tmp_path / "a.pdf")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert main(["extract", str(tmp_path / "a.pdf")]) == 0
    assert capsys.readouterr().err == ""
