"""LayoutLMv2 as a tool: read documents into named fields, or train a reader on your own pages. Works offline.

  python -m systems.layoutlmv2 extract invoice.pdf                          # a table of fields
  python -m systems.layoutlmv2 extract scans/ --json out.json --picture out/  # a folder; a broken file stops nothing
  python -m systems.layoutlmv2 words scan.png                               # words and boxes in reading order
  python -m systems.layoutlmv2 synth invoice --count 5 --out pages          # synthetic pages with their labels
  python -m systems.layoutlmv2 pretrain pages/*.pdf --out mine              # three objectives, on pages without labels
  python -m systems.layoutlmv2 finetune funsd FUNSD --from mine --out reader
  python -m systems.layoutlmv2 evaluate funsd FUNSD --model reader
  python -m systems.layoutlmv2 convert pytorch_model.bin --out folder       # to safetensors, checked name by name
  python -m systems.layoutlmv2 info layoutlmv2-base-uncased                 # what a checkpoint is made of

Exit status: 0 done, 2 refused (one line on standard error says why; other files of a folder go on).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from systems.layoutlmv2.config import CheckpointError, InputError, LayoutError
from systems.layoutlmv2.pages import ENGINES

SIZES = ("tiny", "small", "base", "large")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    given = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, category, *_, **__: (
            print(f"layoutlmv2: note: {message}", file=sys.stderr) if issubclass(category, UserWarning) else None
        )
        warnings.simplefilter("default", UserWarning)
        try:
            return int(given.act(given) or 0)
        except (LayoutError, OSError) as error:
            print(f"layoutlmv2: {' '.join(str(error).split())}", file=sys.stderr)
            return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m systems.layoutlmv2", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("extract", help="named fields of PDFs and pictures")
    one.add_argument("paths", nargs="+", help="files or folders")
    one.add_argument("--model", type=Path, help="a folder made by finetune; default: the checkpoint that ships")
    one.add_argument("--json", type=Path, metavar="OUT", help="write all fields, boxes and scores")
    one.add_argument("--picture", type=Path, metavar="OUT", help="draw the fields: a .png, or a folder for many pages")
    one.add_argument("--ocr", choices=ENGINES, default="auto", help="for pages without a text layer")
    one.add_argument("--jobs", type=int, default=1, help="processes, which share the files out")
    one.set_defaults(act=_extract)

    one = commands.add_parser("words", help="words and boxes of a document, in reading order")
    one.add_argument("path", type=Path)
    one.add_argument("--ocr", choices=ENGINES, default="auto")
    one.add_argument("--json", type=Path, metavar="OUT")
    one.set_defaults(act=_words)

    one = commands.add_parser("synth", help="synthetic pages as PDF (or scans) with their labels")
    one.add_argument("kind", help="form, receipt, invoice, letter, table or id_card")
    one.add_argument("--count", type=int, default=1)
    one.add_argument("--seed", type=int, default=0, help="of the first page")
    one.add_argument("--scan", action="store_true", help="noisy PNG instead of PDF")
    one.add_argument("--out", type=Path, default=Path("."), help="a folder")
    one.set_defaults(act=_synth)

    one = commands.add_parser("pretrain", help="train on pages without labels")
    one.add_argument("paths", nargs="+", help="documents or folders; or synth:KIND:COUNT")
    one.add_argument("--out", type=Path, required=True, help="a folder; an interrupted run goes on from there")
    one.add_argument("--from", dest="start", type=Path, help="a checkpoint folder to start from")
    one.add_argument("--vocab", type=Path, help="vocab.txt; default: that of --from, else trained on the pages")
    one.add_argument("--size", choices=SIZES, default="tiny", help="without --from")
    _add_training(one, steps=1000, batch=16)
    one.add_argument("--ocr", choices=ENGINES, default="auto")
    one.set_defaults(act=_pretrain)

    for name, text in (("finetune", "train a reader on labelled pages"), ("evaluate", "score a reader")):
        one = commands.add_parser(name, help=text)
        one.add_argument("data", help="funsd, cord, sroie, kleister-nda, xfund, rvl-cdip, docvqa, or synth")
        one.add_argument("folder", help="of the official layout; for synth: KIND:COUNT")
        one.add_argument("--split", default="train" if name == "finetune" else "test")
        one.add_argument("--task", choices=("tag", "classify", "answer"), help="default: what the data set is for")
        if name == "evaluate":
            one.add_argument("--model", type=Path, help="a folder made by finetune; default: the one that ships")
            one.add_argument("--json", action="store_true")
            one.set_defaults(act=_evaluate)
        else:
            one.add_argument("--from", dest="start", type=Path, help="a checkpoint folder (config, weights, vocab.txt)")
            one.add_argument("--size", choices=SIZES, default="tiny", help="without --from")
            one.add_argument("--out", type=Path, required=True, help="a folder; an interrupted run goes on")
            one.add_argument("--dev", help="split to stop early by")
            one.add_argument("--patience", type=int, default=5)
            one.add_argument("--weighted", action="store_true", help="class weights")
            one.add_argument("--still", action="store_true", help="without box augmentation")
            _add_training(one, steps=1000, batch=8)
            one.set_defaults(act=_finetune)

    one = commands.add_parser("convert", help="a public weight file to a folder of safetensors")
    one.add_argument("path", type=Path, help="a folder, or a weight file beside its config.json")
    one.add_argument("--task", choices=("tag", "classify", "answer"))
    one.add_argument("--half", action="store_true", help="store in half precision")
    one.add_argument("--out", type=Path, required=True)
    one.set_defaults(act=_convert)

    one = commands.add_parser("info", help="sizes, labels and parameters of a checkpoint")
    one.add_argument("path", type=Path, nargs="?", help="default: the checkpoint that ships")
    one.set_defaults(act=_info)
    return parser


def _add_training(parser: argparse.ArgumentParser, steps: int, batch: int) -> None:
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table-rate", type=float, help="of the bias tables over --lr; default 30, 1 with --from")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--save-every", type=int, default=100, help="steps between saved states")


def _table_rate(given: argparse.Namespace) -> float:
    from systems.layoutlmv2.training import FROM_SCRATCH

    if given.table_rate is not None:
        return float(given.table_rate)
    return 1.0 if given.start else FROM_SCRATCH


def _progress(steps: int) -> Callable[[int, float], None]:
    started = time.monotonic()

    def show(step: int, loss: float) -> None:
        if step % max(1, steps // 100) == 0 or step == steps:
            print(f"step {step}/{steps}  loss {loss:.4f}  {time.monotonic() - started:.0f} s", file=sys.stderr)

    return show


# ------------------------------------------------------------------------------------------------ reading


def _extract(given: argparse.Namespace) -> int:
    from systems.layoutlmv2.checkpoint import written_whole
    from systems.layoutlmv2.extract import documents, extract_many
    from systems.layoutlmv2.pages import draw

    paths = documents(given.paths)
    many = len(paths) > 1
    rows: list[dict[str, Any]] = []
    failed = drawn = 0

    def progress(done: int) -> None:
        if many:
            print(f"{done}/{len(paths)} files", file=sys.stderr)

    for found in extract_many(paths, ocr=given.ocr, jobs=given.jobs, folder=given.model, progress=progress):
        for note in found.notes:
            print(f"layoutlmv2: note: {note}", file=sys.stderr)
        if found.document is None:
            failed += 1
            print(f"layoutlmv2: {' '.join(found.error.split())}", file=sys.stderr)
            rows.append({"path": found.path, "error": found.error})
            continue
        if many:
            print(found.path)
        for one in found.fields:
            where = f"page {one.page + 1}  " if len(found.document.pages) > 1 else ""
            print(f"{where}{one.name:<12}{one.text:<44} {one.score:.2f}")
        fields = [
            {"name": one.name, "text": one.text, "page": one.page, "box": list(one.box), "score": round(one.score, 4)}
            for one in found.fields
        ]
        rows.append({"path": found.path, "pages": len(found.document.pages), "fields": fields})
        if given.picture is not None:
            for number, page in enumerate(found.document.pages):
                single = given.picture.suffix.lower() == ".png" and not many and len(found.document.pages) == 1
                name = f"{drawn:04}-{Path(found.path).stem}-{number + 1}.png"
                with written_whole(given.picture if single else given.picture / name) as file:
                    draw(page, [one for one in found.fields if one.page == number]).save(file, "PNG", optimize=True)
                drawn += 1
    if given.json is not None:
        with written_whole(given.json) as file:
            file.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 2 if failed else 0


def _words(given: argparse.Namespace) -> None:
    from systems.layoutlmv2.checkpoint import written_whole
    from systems.layoutlmv2.pages import read

    document = read(given.path, given.ocr)
    for number, page in enumerate(document.pages):
        for word in page.words:
            print(number + 1, word.line, *word.box, word.text, sep="\t")
    if given.json is not None:
        rows = [
            [{"text": w.text, "box": list(w.box), "line": w.line, "confidence": w.confidence} for w in page.words]
            for page in document.pages
        ]
        with written_whole(given.json) as file:
            file.write_text(json.dumps(rows, ensure_ascii=False) + "\n", encoding="utf-8")


def _synth(given: argparse.Namespace) -> None:
    from systems.layoutlmv2.checkpoint import written_whole
    from systems.layoutlmv2.synth import write_pdf, write_png

    for seed in range(given.seed, given.seed + given.count):
        path = given.out / f"{given.kind}-{seed}.{'png' if given.scan else 'pdf'}"
        example = (write_png if given.scan else write_pdf)(given.kind, seed, path)
        facts = {
            "label": example.label, "fields": dict(example.fields), "words": example.page.texts,
            "boxes": [list(word.box) for word in example.page.words], "tags": list(example.tags),
        }  # fmt: skip
        with written_whole(path.with_suffix(".json")) as file:
            file.write_text(json.dumps(facts, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)


# ------------------------------------------------------------------------------------------------ training


def _synthetic(text: str, longest: int = 448) -> list[Any]:
    """Examples of KIND:COUNT[:SEED]; kind `mixed` takes all in turn."""
    from systems.layoutlmv2.synth import KINDS, make

    kind, _, rest = text.partition(":")
    count, _, seed = rest.partition(":")
    if not count.isdigit() or (seed and not seed.isdigit()):
        raise InputError(f"{text!r}: expected KIND:COUNT or KIND:COUNT:SEED, such as invoice:500")
    first = int(seed or 500_000)
    kinds = KINDS if kind == "mixed" else (kind,)
    return [make(kinds[k % len(kinds)], first + k, longest) for k in range(int(count))]


def _pretrain(given: argparse.Namespace) -> None:
    from systems.layoutlmv2 import checkpoint, config
    from systems.layoutlmv2.batches import Tokenizer
    from systems.layoutlmv2.extract import documents
    from systems.layoutlmv2.model import Pretrainer
    from systems.layoutlmv2.pages import read
    from systems.layoutlmv2.pretrain import pretrain
    from systems.layoutlmv2.training import place

    import torch  # isort: skip

    pages = []
    for text in given.paths:
        if text.startswith("synth:"):
            pages += [example.page for example in _synthetic(text.removeprefix("synth:"))]
            continue
        for path in documents([text]):
            try:
                pages += read(path, given.ocr).pages
            except LayoutError as error:
                print(f"layoutlmv2: {' '.join(str(error).split())}", file=sys.stderr)
    vocabulary = given.vocab or (given.start and given.start / "vocab.txt") or given.out / "vocab.txt"
    if vocabulary.exists() or given.vocab or given.start:
        tokenizer = Tokenizer.from_vocab(vocabulary)
    else:
        tokenizer = Tokenizer.train(word for page in pages for word in page.texts)
    torch.manual_seed(given.seed)
    if given.start:
        model = checkpoint.load(given.start, "pretrain")
    else:
        model = Pretrainer(getattr(config, given.size.upper()).with_(vocab_size=len(tokenizer)))
    rank, _ = place()
    if rank == 0:
        tokenizer.save(given.out / "vocab.txt")
    given.out.mkdir(parents=True, exist_ok=True)
    pretrain(
        model.to(given.device), pages, tokenizer, steps=given.steps, lr=given.lr, batch=given.batch, seed=given.seed,
        table_rate=_table_rate(given), precision=given.precision, state=given.out / "pretrain.state",
        save_every=given.save_every, progress=_progress(given.steps),
    )  # fmt: skip
    if rank == 0:
        checkpoint.save(model, given.out)
        print(f"{given.out}: pre-trained on {len(pages)} pages")


TASK_OF = {"rvl-cdip": "classify", "docvqa": "answer"}


def _examples(given: argparse.Namespace, split: str) -> list[Any]:
    from systems.layoutlmv2.datasets import DATASETS, Matched, thin_pictures, warn_unmatched

    if given.data == "synth":
        shift = {"train": 500_000, "dev": 600_000}.get(split, 700_000)
        return _synthetic(f"{given.folder}:{shift}" if given.folder.count(":") == 1 else given.folder)
    if given.data not in DATASETS:
        raise InputError(f"data set {given.data!r}, expected one of {', '.join(DATASETS)} or synth")
    if given.data in ("sroie", "kleister-nda", "docvqa"):
        matched = Matched()
        found = list(thin_pictures(DATASETS[given.data](given.folder, split, matched=matched)))
        print(f"layoutlmv2: {matched}", file=sys.stderr)
        warn_unmatched(matched)
        return found
    return list(thin_pictures(DATASETS[given.data](given.folder, split)))


def _finetune(given: argparse.Namespace) -> None:
    from systems.layoutlmv2 import checkpoint, config
    from systems.layoutlmv2.batches import Tokenizer
    from systems.layoutlmv2.finetune import Reader, fit
    from systems.layoutlmv2.training import place

    import torch  # isort: skip

    examples = _examples(given, given.split)
    task = given.task or TASK_OF.get(given.data, "tag")
    if task == "answer":
        names: list[str] = []
    elif task == "classify":
        names = sorted({example.label or "" for example in examples})
    else:
        found = {tag[2:] for example in examples for tag in example.tags if tag != "O"}
        names = ["O", *(f"{part}-{name}" for name in sorted(found) for part in "BI")]
    torch.manual_seed(given.seed)
    if given.start:
        reader = Reader.load(given.start, task, names)
    else:
        tokenizer = Tokenizer.train(word for example in examples for word in example.page.texts)
        cfg = getattr(config, given.size.upper()).with_(vocab_size=len(tokenizer))
        head = checkpoint.HEADS[task]
        reader = Reader(head(cfg) if task == "answer" else head(cfg, len(names)), tokenizer, names)
    reader.model.to(given.device)
    given.out.mkdir(parents=True, exist_ok=True)
    dev = _examples(given, given.dev) if given.dev else []
    fit(
        reader, examples, steps=given.steps, lr=given.lr, batch=given.batch, seed=given.seed, moved=not given.still,
        weighted=given.weighted, dev=dev, patience=given.patience if dev else None, precision=given.precision,
        table_rate=_table_rate(given),
        state=given.out / "finetune.state", save_every=given.save_every, progress=_progress(given.steps),
    )  # fmt: skip
    if place()[0] == 0:
        reader.save(given.out)
        print(f"{given.out}: fine-tuned on {len(examples)} examples")


def _evaluate(given: argparse.Namespace) -> None:
    from systems.layoutlmv2.extract import WEIGHTS
    from systems.layoutlmv2.finetune import Reader, evaluate_reader

    task = given.task or TASK_OF.get(given.data, "tag")
    reader = Reader.load(given.model or WEIGHTS, task)
    examples = _examples(given, given.split)
    _, scores = evaluate_reader(reader, examples)
    if given.json:
        print(json.dumps({"examples": len(examples), **scores}))
        return
    for name, value in scores.items():
        print(f"{name:<12}{value:.4f}")


def _convert(given: argparse.Namespace) -> None:
    import torch

    from systems.layoutlmv2 import checkpoint

    names = checkpoint.label_names(given.path) if given.task else []
    model = checkpoint.load(given.path, given.task)
    checkpoint.save(model, given.out, names, torch.float16 if given.half else None)
    vocabulary = (given.path if given.path.is_dir() else given.path.parent) / "vocab.txt"
    if vocabulary.exists():
        (given.out / "vocab.txt").write_bytes(vocabulary.read_bytes())
    print(f"{given.out}: {sum(1 for _ in model.state_dict())} tensors")


def _info(given: argparse.Namespace) -> None:
    from systems.layoutlmv2 import checkpoint
    from systems.layoutlmv2.config import Config
    from systems.layoutlmv2.extract import WEIGHTS

    path = given.path or WEIGHTS
    if not path.exists():
        raise CheckpointError(f"{path}: no folder or weight file there")
    cfg = Config.from_json(path if path.is_dir() else path.parent)
    weights = checkpoint.read_weights(path)
    count = sum(value.numel() for value in weights.values())
    visual = sum(value.numel() for name, value in weights.items() if "visual.backbone" in name)
    print(f"layers {cfg.layers}, hidden {cfg.hidden}, heads {cfg.heads}, intermediate {cfg.intermediate}")
    print(f"vocabulary {cfg.vocab_size}, positions {cfg.max_positions}, image {cfg.image_size} pixels")
    print(f"parameters {count:,}, of which backbone {visual:,}")
    print(f"labels {', '.join(checkpoint.label_names(path)) or 'none'}")


if __name__ == "__main__":
    sys.exit(main())
