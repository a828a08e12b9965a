"""Makes the checkpoint that ships: `python -m systems.layoutlmv2.make_weights [--out FOLDER] [--steps N]`.

Trains a small tagger from a random start on synthetic invoices, receipts and letters (a few pages of the other kinds
teach it to find nothing), and writes config.json, small.safetensors in half precision and vocab.txt. Interrupted, it
goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from systems.layoutlmv2 import synth
from systems.layoutlmv2.batches import Tokenizer
from systems.layoutlmv2.config import TINY, Config
from systems.layoutlmv2.extract import WEIGHTS
from systems.layoutlmv2.finetune import Reader, bio, evaluate_reader, fit
from systems.layoutlmv2.model import TokenTagger
from systems.layoutlmv2.sheet import Example
from systems.layoutlmv2.training import FROM_SCRATCH

SHIPPED: Config = TINY.with_(dropout=0.0)  # hardly any page is seen twice
MIX = ("invoice", "invoice", "invoice", "invoice", "receipt", "letter", "invoice", "receipt", "table", "id_card")
FIRST, UNSEEN = 1_000_000, 2_000_000
"""Seeds of training and development pages; tests and examples use small ones, which are never trained on."""


def page(seed: int, kind: str | None = None) -> Example:
    """A page to learn from, its tags those of the shipped fields, with misread letters now and then."""
    chosen = kind or MIX[seed % len(MIX)]
    example = synth.make(chosen, seed, longest=256)
    random = np.random.default_rng([3, seed])
    tags = tuple(tag if tag[2:] in synth.FIELDS else "O" for tag in example.tags)
    words = list(example.page.words)
    if random.random() < 0.3:
        words = [replace(word, text=misread(word.text, random)) for word in words]
    jitter = random.integers(-3, 4, (len(words), 4))
    moved = []
    for word, (a, b, c, d) in zip(words, jitter.tolist(), strict=True):
        x0, y0, x1, y1 = word.box
        x0, y0 = min(max(x0 + a, 0), 1000), min(max(y0 + b, 0), 1000)
        moved.append(replace(word, box=(x0, y0, min(max(x1 + c, x0), 1000), min(max(y1 + d, y0), 1000))))
    return replace(example, page=replace(example.page, words=tuple(moved)), tags=tags)


def misread(text: str, random: np.random.Generator) -> str:
    """A word as OCR may give it: rarely, one letter for one that looks alike."""
    alike = {"0": "O", "O": "0", "1": "l", "l": "1", "5": "S", "S": "5", "8": "B", "rn": "m", ".": ",", "I": "l"}
    if random.random() < 0.03:
        for wrong, right in alike.items():
            if wrong in text:
                return text.replace(wrong, right, 1)
    return text


def pages(count: int, number: int) -> list[Example]:
    """`count` new pages of pass `number`."""
    return [page(FIRST + number * count + k) for k in range(count)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m systems.layoutlmv2.make_weights", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--state", type=Path, default=Path("runs/make_weights.state"), help="of an interrupted run")
    parser.add_argument("--stop-at", type=int, help="stop early at this step, as if interrupted")
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    texts = (word for k in range(1000) for word in synth.make(MIX[k % len(MIX)], FIRST + k, None).page.texts)
    tokenizer = Tokenizer.train(texts, 3000)
    names = bio(synth.FIELDS)
    reader = Reader(TokenTagger(SHIPPED.with_(vocab_size=len(tokenizer)), len(names)), tokenizer, names)
    dev = [page(UNSEEN + k, ("invoice", "invoice", "receipt", "letter")[k % 4]) for k in range(80)]
    started = time.monotonic()

    def progress(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"step {step}/{given.steps}  loss {loss:.4f}  {time.monotonic() - started:.0f} s", file=sys.stderr)

    count = 32 * given.batch  # for 64 batches: making a page costs a fifth of learning from it
    history = fit(
        reader, pages(count, 0), steps=given.steps, lr=given.lr, batch=given.batch, table_rate=FROM_SCRATCH,
        refresh=partial(pages, count), state=given.state, save_every=250, stop_at=given.stop_at, progress=progress,
    )  # fmt: skip
    value, _ = evaluate_reader(reader, dev)
    reader.save(given.out, torch.float16)
    (given.out / "model.safetensors").replace(given.out / "small.safetensors")
    size = sum(file.stat().st_size for file in given.out.iterdir()) / 2**20
    print(f"{given.out}: step {history.steps}, F1 {value:.4f} on {len(dev)} unseen pages, {size:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
