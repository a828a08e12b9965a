"""The causal model: GPT-2 from left to right, which completes code and writes it after a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from systems.codexglue.rows import IGNORED, like_long, padded
from systems.codexglue.training import Budget, Recipe, Training, train
from systems.codexglue.vocabulary import Vocabulary
from systems.codexglue.weights import ModelError, pretrained, size_named, write_model


class CausalLM:
    """Continues code: GPT-2 from left to right."""

    family = "causal"

    def __init__(self, net: Any, vocabulary: Vocabulary, recipe: Recipe) -> None:
        self.net, self.vocabulary, self.recipe = net, vocabulary, recipe
        self.net.eval()

    @classmethod
    def build(
        cls, texts: Sequence[str], *, size: str = "tiny", extra: Sequence[str] = (), recipe: Recipe | None = None,
        seed: int = 0,
    ) -> CausalLM:  # fmt: skip
        """From random weights, with a vocabulary trained on `texts` in which `extra` are never split."""
        from transformers import GPT2Config, GPT2LMHeadModel

        chosen = size_named(size)
        vocabulary = Vocabulary.trained(texts, chosen.subwords, extra)
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=len(vocabulary), n_positions=chosen.positions, n_embd=chosen.hidden, n_layer=chosen.layers,
            n_head=chosen.heads, bos_token_id=vocabulary.special("<s>"), eos_token_id=vocabulary.special("</s>"),
            pad_token_id=vocabulary.special("<pad>"),
        )  # fmt: skip
        return cls(GPT2LMHeadModel(config), vocabulary, recipe or Recipe(lr=chosen.lr, batch=16, weight_decay=0.01))

    @classmethod
    def from_pretrained(cls, name: str, *, recipe: Recipe | None = None) -> CausalLM:
        """Weights of GPT-2's kind, from a folder or the hub. Raises ModelError."""
        from transformers import GPT2LMHeadModel

        net, vocabulary = pretrained(GPT2LMHeadModel, name)
        return cls(net, vocabulary, recipe or Recipe(lr=8e-5, batch=8, length=1024, weight_decay=0.01))

    @property
    def device(self) -> torch.device:
        return next(iter(self.net.parameters())).device

    def to(self, device: str | torch.device) -> CausalLM:
        """Moves the weights."""
        self.net.to(device)
        return self

    @property
    def block(self) -> int:
        """Subwords that it reads at most."""
        return min(self.recipe.length, int(self.net.config.n_positions))

    def fit(
        self, texts: Sequence[str], budget: Budget, *, prompts: Sequence[str] | None = None, seed: int = 0,
        folder: Path | None = None, progress: bool = False,
    ) -> Training:  # fmt: skip
        """Train on texts: cut into blocks of one stream, or, with a prompt each, to write the text after its prompt."""
        end, pad = self.vocabulary.special("</s>"), self.vocabulary.special("<pad>")
        block = self.block
        if prompts is None:
            stream = [piece for ids in self.vocabulary.many(texts) for piece in (*ids, end)]
            rows = [stream[k : k + block] for k in range(0, len(stream) - 1, block)]
            starts = [0] * len(rows)
        else:
            if len(prompts) != len(texts):
                raise ModelError(f"{len(prompts)} prompts and {len(texts)} texts: expected one for each")
            asked = [ids[-(block // 2) :] for ids in self.vocabulary.many(prompts)]
            told = self.vocabulary.many(texts)
            begin = self.vocabulary.special("<s>")
            rows = [[*a, begin, *b[: block - len(a) - 2], end] for a, b in zip(asked, told, strict=True)]
            starts = [len(a) for a in asked]

        def continued(chosen: list[int]) -> tuple[torch.Tensor, int]:
            ids, mask = padded([rows[k] for k in chosen], pad, self.device)
            labels = ids.masked_fill(mask == 0, IGNORED)
            for line, k in enumerate(chosen):
                labels[line, : starts[k] + 1] = IGNORED
            out = self.net(input_ids=ids, attention_mask=mask).logits
            loss = nn.functional.cross_entropy(out[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
            return loss, int(mask.sum())

        lengths = [len(row) for row in rows]
        return train(self.net, continued, lengths, budget, self.recipe, seed=seed, folder=folder, progress=progress)

    @torch.inference_mode()
    def next_tokens(self, files: Sequence[Sequence[str]]) -> list[list[str]]:
        """The token expected at each place of each file, from those before it; the first is `<s>`.

        Greedy: a token's subwords are written one by one, and it is the expected one only if the next would begin
        another word. Long files are read in windows that overlap by half.
        """
        self.net.eval()
        return [self._next_of(tokens) for tokens in files]

    def _next_of(self, tokens: Sequence[str]) -> list[str]:
        pieces = self.vocabulary.many([f" {token}" for token in tokens])
        ids = [piece for token in pieces for piece in token]
        if not ids:
            return []
        best = self._best_after(ids)
        starts, found, at = self.vocabulary.starts_word, ["<s>"], len(pieces[0])
        for token, own in zip(tokens[1:], pieces[1:], strict=True):
            guess = best[at - 1 : at - 1 + len(own)]  # what is expected where each of its subwords stands
            wrong = next((k for k, (a, b) in enumerate(zip(guess, own, strict=True)) if a != b), None)
            after = best[at + len(own) - 1]
            if wrong is not None:
                found.append(self.vocabulary.text([*own[:wrong], guess[wrong]]) or "<unk>")
            else:
                found.append(token if after in starts else token + self.vocabulary.text([after]))
            at += len(own)
        return found

    def _best_after(self, ids: list[int]) -> list[int]:
        """The likeliest subword after each."""
        block, step = self.block, max(1, self.block // 2)
        best = [0] * len(ids)
        windows = [(0, 0)]
        while windows[-1][0] + block < len(ids):
            windows.append((windows[-1][0] + step, windows[-1][0] + block))
        for k in range(0, len(windows), 16):
            part = windows[k : k + 16]
            batch, mask = padded(
                [ids[first : first + block] for first, _ in part], self.vocabulary.special("<pad>"), self.device
            )
            out = self.net(input_ids=batch, attention_mask=mask).logits.argmax(-1).tolist()
            for (first, new), row in zip(part, out, strict=True):
                stop = min(first + block, len(ids))
                best[new:stop] = row[new - first : stop - first]
        return best

    @torch.inference_mode()
    def complete(
        self, prompts: Sequence[str], *, stop: str | None = None, begin: bool = False, most: int = 100, beam: int = 1,
        batch: int = 16,
    ) -> list[str]:  # fmt: skip
        """What follows each prompt, up to `stop` or `</s>` or `most` subwords. begin: mark where the prompt ends, as
        `fit` with prompts does.
        """
        self.net.eval()
        pad, begin_id = self.vocabulary.special("<pad>"), self.vocabulary.special("<s>")
        room = self.block - most - 1
        if room < 1:
            raise ModelError(f"most={most} leaves no room for a prompt in {self.block} subwords")
        rows = [[*ids[-room:], *([begin_id] if begin else [])] or [begin_id] for ids in self.vocabulary.many(prompts)]
        found = [""] * len(rows)
        ends = [self.vocabulary.special("</s>")]
        stop_id = self.vocabulary.tokenizer.token_to_id(stop) if stop else None
        if stop_id is not None:
            ends.append(stop_id)
        for chosen in like_long([len(row) for row in rows], batch):
            longest = max(len(rows[k]) for k in chosen)
            ids = torch.tensor([[pad] * (longest - len(rows[k])) + rows[k] for k in chosen], device=self.device)
            mask = torch.tensor([[0] * (longest - len(rows[k])) + [1] * len(rows[k]) for k in chosen])
            out = self.net.generate(
                input_ids=ids, attention_mask=mask.to(self.device), max_new_tokens=most, num_beams=beam,
                do_sample=False, pad_token_id=pad, eos_token_id=ends,
            )  # fmt: skip
            for k, row in zip(chosen, out[:, longest:].tolist(), strict=True):
                last = next((at for at, piece in enumerate(row) if piece in ends), len(row))
                text = self.vocabulary.text(row[:last])
                found[k] = text.split(stop)[0].strip() if stop else text
        return found

    def save(self, folder: Path) -> None:
        """Weights, vocabulary and what else `load` needs, into a folder."""
        write_model(
            folder, self.family, self.net, self.vocabulary, {"body": self.net.config.to_dict()},
            {"length": self.recipe.length},
        )  # fmt: skip
