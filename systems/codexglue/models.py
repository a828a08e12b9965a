"""The three baseline families of the paper, on transformers' configurations: encoder, causal, encoder-decoder.

    model = Seq2Seq.build(sources + targets, size="tiny")
    model.fit(sources, targets, Budget(minutes=1.0))
    model.predict(["public int size ( ) { return count ; }"])

`build` starts from random weights and a vocabulary trained on the given text; `from_pretrained` takes a folder, or a
name of the hub (microsoft/codebert-base, microsoft/CodeGPT-small-py, ...). The encoder-decoder is a RoBERTa encoder
with a Transformer decoder on top, as of the paper's section 4; both halves share the table of subwords.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from systems.codexglue.tasks import CodexError
from systems.codexglue.training import Budget, Recipe, Training, train
from systems.codexglue.vocabulary import Vocabulary

Objective = Literal["classify", "compare", "retrieve", "cloze"]
OBJECTIVES: tuple[Objective, ...] = ("classify", "compare", "retrieve", "cloze")
IGNORED = -100


class ModelError(CodexError):
    """A model that cannot be built, loaded or asked this."""


@dataclass(frozen=True)
class Size:
    """layers, hidden: width; heads; positions: the longest row; subwords: of a vocabulary that is trained."""

    layers: int
    hidden: int
    heads: int
    positions: int
    subwords: int
    lr: float


SIZES = {
    "tiny": Size(2, 128, 4, 514, 4096, 1e-3),
    "small": Size(4, 256, 8, 514, 8192, 5e-4),
    "base": Size(12, 768, 12, 1026, 50_000, 5e-5),
}


def size_named(name: str) -> Size:
    """One of `SIZES`. Raises ModelError, which lists them."""
    if name not in SIZES:
        raise ModelError(f"no size {name!r}; there are {', '.join(SIZES)}")
    return SIZES[name]


def _padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """((rows, longest) int64, the same of int64 that is 1 where a row is)."""
    longest = max(1, *(len(row) for row in rows)) if rows else 1
    ids = torch.full((len(rows), longest), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[k, : len(row)] = 1
    return ids.to(device), mask.to(device)


def _like_long(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows in batches of like length, the longest first: what they predict is put back by row."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[k : k + size] for k in range(0, len(order), size)]


def _roberta(vocabulary: Vocabulary, size: Size, **more: Any) -> Any:
    from transformers import RobertaConfig

    return RobertaConfig(
        vocab_size=len(vocabulary), hidden_size=size.hidden, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, intermediate_size=4 * size.hidden, max_position_embeddings=size.positions,
        type_vocab_size=1, bos_token_id=vocabulary.special("<s>"), pad_token_id=vocabulary.special("<pad>"),
        eos_token_id=vocabulary.special("</s>"), **more,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- encoder


class _EncoderNet(nn.Module):
    """RoBERTa with the head of one objective."""

    def __init__(self, body: Any, objective: Objective, classes: int) -> None:
        super().__init__()
        self.body = body
        width = body.config.hidden_size
        if objective in ("classify", "compare"):
            wide = width if objective == "classify" else 4 * width
            self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(wide, width), nn.Tanh(), nn.Linear(width, classes))
        elif objective == "cloze":
            self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
            self.bias = nn.Parameter(torch.zeros(body.config.vocab_size))

    def mean(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(rows, hidden): the mean over subwords."""
        out = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(out.dtype)
        return (out * weight).sum(1) / weight.sum(1).clamp(min=1.0)

    def masked(self, ids: torch.Tensor, mask: torch.Tensor, mask_id: int) -> torch.Tensor:
        """(masks in the batch, subwords): logits at each mask, row by row."""
        out = self.body(input_ids=ids, attention_mask=mask).last_hidden_state
        hidden = self.head(out[ids == mask_id])
        return hidden @ self.body.embeddings.word_embeddings.weight.T + self.bias


class Encoder:
    """Understands code: labels of a text, labels of a pair, vectors whose neighbours are alike, or a masked word.

    objective: classify, compare, retrieve or cloze. candidates: the words of a cloze, each one subword here.
    """

    family = "encoder"

    def __init__(
        self, net: _EncoderNet, vocabulary: Vocabulary, objective: Objective, recipe: Recipe,
        candidates: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.net, self.vocabulary, self.objective, self.recipe = net, vocabulary, objective, recipe
        self.candidates = tuple(candidates)
        self.net.eval()

    @classmethod
    def build(
        cls, texts: Sequence[str], objective: Objective, *, size: str = "tiny", classes: int = 2,
        candidates: Sequence[str] = (), recipe: Recipe | None = None, seed: int = 0,
    ) -> Encoder:  # fmt: skip
        """From random weights, with a vocabulary trained on `texts`. Raises ModelError for a size or objective."""
        from transformers import RobertaModel

        chosen = size_named(size)
        if objective not in OBJECTIVES:
            raise ModelError(f"no objective {objective!r}; there are {', '.join(OBJECTIVES)}")
        if (objective == "cloze") != bool(candidates):
            raise ModelError("a cloze has candidate words, and nothing else does")
        vocabulary = Vocabulary.trained(texts, chosen.subwords, [_word(one) for one in candidates])
        torch.manual_seed(seed)
        body = RobertaModel(_roberta(vocabulary, chosen), add_pooling_layer=False)
        net = _EncoderNet(body, objective, classes)
        return cls(net, vocabulary, objective, recipe or Recipe(lr=chosen.lr), candidates)

    @classmethod
    def from_pretrained(
        cls, name: str, objective: Objective, *, classes: int = 2, candidates: Sequence[str] = (),
        recipe: Recipe | None = None, seed: int = 0,
    ) -> Encoder:  # fmt: skip
        """Weights of RoBERTa's kind, from a folder or the hub. Raises ModelError.

        The head starts at random, but for a cloze: that of masked language modelling comes with the weights.
        """
        from transformers import RobertaForMaskedLM, RobertaModel

        if objective != "cloze":
            body, vocabulary = _pretrained(RobertaModel, name, add_pooling_layer=False)
            torch.manual_seed(seed)
            return cls(_EncoderNet(body, objective, classes), vocabulary, objective, recipe or Recipe())
        whole, vocabulary = _pretrained(RobertaForMaskedLM, name)  # it can fill masks without more training
        net = _EncoderNet(whole.roberta, objective, classes)
        net.head[0].load_state_dict(whole.lm_head.dense.state_dict())
        net.head[2].load_state_dict(whole.lm_head.layer_norm.state_dict())
        net.bias.data.copy_(whole.lm_head.bias.data)
        return cls(net, vocabulary, objective, recipe or Recipe(), candidates)

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    def to(self, device: str | torch.device) -> Encoder:
        """Moves the weights."""
        self.net.to(device)
        return self

    def _rows(self, texts: Sequence[str] | Sequence[tuple[str, str]]) -> list[list[int]]:
        """<s> text </s>, or <s> one </s> </s> other </s> with half of the length for each, cut at the end."""
        start, end = self.vocabulary.special("<s>"), self.vocabulary.special("</s>")
        length = min(self.recipe.length, self.net.body.config.max_position_embeddings - 2)
        if texts and isinstance(texts[0], tuple):
            ones, others = (self.vocabulary.many([pair[side] for pair in texts]) for side in (0, 1))
            half = (length - 4) // 2
            return [
                [start, *a[:half], end, end, *b[: length - 4 - min(half, len(a))], end]
                for a, b in zip(ones, others, strict=True)
            ]
        return [[start, *ids[: length - 2], end] for ids in self.vocabulary.many(texts)]  # type: ignore[arg-type]

    def _batch(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        return _padded(rows, self.vocabulary.special("<pad>"), self.device)

    def fit(
        self, texts: Sequence[str] | Sequence[tuple[str, str]], labels: Sequence[Any], budget: Budget, *,
        seed: int = 0, folder: Path | None = None, progress: bool = False,
    ) -> Training:  # fmt: skip
        """Train on texts (or pairs of texts) with a label each.

        classify: texts or pairs, labels are classes from 0. compare: pairs, each read apart. retrieve: texts with the
        group that each belongs to, or pairs of a query and its answer (labels are not looked at). cloze: texts with
        one <mask>, labels are the words. Raises ModelError where these do not fit together.
        """
        if len(texts) != len(labels):
            raise ModelError(f"{len(texts)} texts and {len(labels)} labels: expected one for each")
        if not len(texts):
            raise ModelError("no text to train on")
        paired = isinstance(texts[0], tuple)
        if self.objective == "compare" and not paired:
            raise ModelError("objective 'compare' wants pairs of texts")
        if self.objective == "cloze":
            return self._fit_cloze(texts, labels, budget, seed, folder, progress)  # type: ignore[arg-type]
        if self.objective == "classify":
            rows = self._rows(texts)
            answers = torch.tensor([int(label) for label in labels], device=self.device)

            def classified(chosen: list[int]) -> tuple[torch.Tensor, int]:
                ids, mask = self._batch([rows[k] for k in chosen])
                loss = nn.functional.cross_entropy(self.net.head(self.net.mean(ids, mask)), answers[chosen])
                return loss, int(mask.sum())

            lengths = [len(row) for row in rows]
            return train(
                self.net, classified, lengths, budget, self.recipe, seed=seed, folder=folder,
                progress=progress,
            )  # fmt: skip
        if self.objective == "retrieve" and not paired:
            return self._fit_groups(texts, labels, budget, seed, folder, progress)  # type: ignore[arg-type]
        ones, others = (self._rows([pair[side] for pair in texts]) for side in (0, 1))
        lengths = [len(a) + len(b) for a, b in zip(ones, others, strict=True)]
        if self.objective == "compare":
            answers = torch.tensor([int(label) for label in labels], device=self.device)

            def compared(chosen: list[int]) -> tuple[torch.Tensor, int]:
                a, seen = self._vectors(ones, chosen)
                b, more = self._vectors(others, chosen)
                return nn.functional.cross_entropy(self.net.head(_features(a, b)), answers[chosen]), seen + more

            return train(
                self.net, compared, lengths, budget, self.recipe, seed=seed, folder=folder, progress=progress
            )

        def matched(chosen: list[int]) -> tuple[torch.Tensor, int]:
            a, seen = self._vectors(ones, chosen)
            b, more = self._vectors(others, chosen)
            scores = 20.0 * nn.functional.normalize(a, dim=-1) @ nn.functional.normalize(b, dim=-1).T
            return nn.functional.cross_entropy(scores, torch.arange(len(chosen), device=scores.device)), seen + more

        return train(self.net, matched, lengths, budget, self.recipe, seed=seed, folder=folder, progress=progress)

    def _vectors(self, rows: Sequence[Sequence[int]], chosen: Sequence[int]) -> tuple[torch.Tensor, int]:
        ids, mask = self._batch([rows[k] for k in chosen])
        return self.net.mean(ids, mask), int(mask.sum())

    def _fit_groups(
        self, texts: Sequence[str], groups: Sequence[Any], budget: Budget, seed: int, folder: Path | None,
        progress: bool,
    ) -> Training:  # fmt: skip
        """Each row with another of its group; the other groups of the batch are what it has to be told from."""
        rows = self._rows(texts)
        members: dict[Any, list[int]] = {}
        for k, group in enumerate(groups):
            members.setdefault(group, []).append(k)
        alone = [group for group, rows_of in members.items() if len(rows_of) < 2]
        if len(members) < 2 or len(alone) == len(members):
            raise ModelError(f"{len(members)} groups, {len(alone)} of one text: expected two groups of two and more")
        number = {group: k for k, group in enumerate(members)}
        of_row = torch.tensor([number[group] for group in groups])

        def told_apart(chosen: list[int]) -> tuple[torch.Tensor, int]:
            partners = []
            for k in chosen:
                others = members[groups[k]]
                pick = int(torch.randint(len(others), (1,)))
                partners.append(others[pick - 1] if others[pick] == k else others[pick])
            a, seen = self._vectors(rows, chosen)
            b, more = self._vectors(rows, partners)
            scores = 20.0 * nn.functional.normalize(a, dim=-1) @ nn.functional.normalize(b, dim=-1).T
            same = (of_row[chosen][:, None] == of_row[partners][None, :]).to(scores.device)
            likely = scores.log_softmax(-1).masked_fill(~same, float("-inf"))
            return -likely.logsumexp(-1).mean(), seen + more

        lengths = [len(row) for row in rows]
        return train(self.net, told_apart, lengths, budget, self.recipe, seed=seed, folder=folder, progress=progress)

    def _fit_cloze(
        self, texts: Sequence[str], words: Sequence[str], budget: Budget, seed: int, folder: Path | None,
        progress: bool,
    ) -> Training:  # fmt: skip
        rows, answers = self._cloze_rows(texts), self._candidate_ids()
        unknown = sorted(set(words) - set(answers))
        if unknown:
            raise ModelError(f"words that are no candidates: {', '.join(unknown[:5])}")
        wanted = torch.tensor([answers[word] for word in words], device=self.device)

        def filled(chosen: list[int]) -> tuple[torch.Tensor, int]:
            ids, mask = self._batch([rows[k] for k in chosen])
            logits = self.net.masked(ids, mask, self.vocabulary.special("<mask>"))
            return nn.functional.cross_entropy(logits, wanted[chosen]), int(mask.sum())

        lengths = [len(row) for row in rows]
        return train(self.net, filled, lengths, budget, self.recipe, seed=seed, folder=folder, progress=progress)

    def _candidate_ids(self) -> dict[str, int]:
        found = {}
        for word in self.candidates:
            added = self.vocabulary.tokenizer.token_to_id(_word(word))
            ids = [added] if added is not None else self.vocabulary.ids(f" {word}")
            if len(ids) != 1:
                raise ModelError(f"candidate {word!r} is {len(ids)} subwords of this vocabulary: expected one")
            found[word] = ids[0]
        return found

    def _cloze_rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Rows with the one mask in them, however long the text: cut around it."""
        start, end, mask = (self.vocabulary.special(name) for name in ("<s>", "</s>", "<mask>"))
        length = min(self.recipe.length, self.net.body.config.max_position_embeddings - 2) - 2
        rows = []
        for number, (text, ids) in enumerate(zip(texts, self.vocabulary.many(texts), strict=True)):
            if ids.count(mask) != 1:
                raise ModelError(f"text {number}: {ids.count(mask)} <mask> in {text[:60]!r}, expected one")
            at = ids.index(mask)
            first = max(0, min(at - length // 2, len(ids) - length))
            rows.append([start, *ids[first : first + length], end])
        return rows

    @torch.inference_mode()
    def vectors(self, texts: Sequence[str], batch: int = 64) -> NDArray[np.float32]:
        """(texts, hidden) of length 1: neighbours are alike."""
        self.net.eval()
        rows = self._rows(texts)
        found = np.zeros((len(rows), self.net.body.config.hidden_size), np.float32)
        for chosen in _like_long([len(row) for row in rows], batch):
            out, _ = self._vectors(rows, chosen)
            found[chosen] = nn.functional.normalize(out, dim=-1).float().cpu().numpy()
        return found

    @torch.inference_mode()
    def predict(self, texts: Sequence[str] | Sequence[tuple[str, str]], batch: int = 64) -> list[Any]:
        """Classes (classify, compare), or words (cloze), a text each. Raises ModelError for objective 'retrieve'."""
        if self.objective == "retrieve":
            raise ModelError("objective 'retrieve' has no labels: ask for vectors")
        self.net.eval()
        if self.objective == "compare":
            vectors = [self.vectors_raw([pair[side] for pair in texts], batch) for side in (0, 1)]
            return [int(label) for label in self.net.head(_features(*vectors)).argmax(-1)] if len(texts) else []
        cloze = self.objective == "cloze"
        rows = self._cloze_rows(texts) if cloze else self._rows(texts)  # type: ignore[arg-type]
        found: list[Any] = [None] * len(rows)
        ids_of = torch.tensor(list(self._candidate_ids().values()), device=self.device) if cloze else None
        for chosen in _like_long([len(row) for row in rows], batch):
            ids, mask = self._batch([rows[k] for k in chosen])
            if ids_of is not None:
                scores = self.net.masked(ids, mask, self.vocabulary.special("<mask>"))[:, ids_of]
            else:
                scores = self.net.head(self.net.mean(ids, mask))
            for k, label in zip(chosen, scores.argmax(-1).tolist(), strict=True):
                found[k] = self.candidates[label] if cloze else label
        return found

    @torch.inference_mode()
    def vectors_raw(self, texts: Sequence[str], batch: int = 64) -> torch.Tensor:
        """(texts, hidden), of any length."""
        rows = self._rows(texts)
        found = torch.zeros((len(rows), self.net.body.config.hidden_size), device=self.device)
        for chosen in _like_long([len(row) for row in rows], batch):
            found[chosen] = self._vectors(rows, chosen)[0]
        return found

    def save(self, folder: Path) -> None:
        """Weights, vocabulary and what else `load` needs, into a folder."""
        head = self.net.head[-1] if self.objective in ("classify", "compare") else None
        record = {
            "objective": self.objective, "candidates": list(self.candidates), "length": self.recipe.length,
            "classes": head.out_features if head is not None else 2,
        }  # fmt: skip
        _save(folder, self.family, self.net, self.vocabulary, {"body": self.net.body.config.to_dict()}, record)


def _word(candidate: str) -> str:
    """The token that stands for a candidate as an answer, in a vocabulary that is trained for a cloze."""
    return f"<word:{candidate}>"


def _features(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of two vectors, what they share and not: (rows, 4 hidden)."""
    return torch.cat([a, b, (a - b).abs(), a * b], -1)


# ---------------------------------------------------------------------------------------------------------- causal


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

        net, vocabulary = _pretrained(GPT2LMHeadModel, name)
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
            ids, mask = _padded([rows[k] for k in chosen], pad, self.device)
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
            batch, mask = _padded(
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
        for chosen in _like_long([len(row) for row in rows], batch):
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
        _save(
            folder, self.family, self.net, self.vocabulary, {"body": self.net.config.to_dict()},
            {"length": self.recipe.length},
        )  # fmt: skip


# -------------------------------------------------------------------------------------------------- encoder-decoder


class Seq2Seq:
    """Rewrites text: a RoBERTa encoder, a Transformer decoder that attends to it, one table of subwords."""

    family = "seq2seq"

    def __init__(self, net: Any, vocabulary: Vocabulary, recipe: Recipe) -> None:
        self.net, self.vocabulary, self.recipe = net, vocabulary, recipe
        self.net.eval()

    @classmethod
    def build(
        cls, texts: Sequence[str], *, size: str = "tiny", recipe: Recipe | None = None, seed: int = 0
    ) -> Seq2Seq:
        """From random weights, with a vocabulary trained on `texts` (sources and targets)."""
        chosen = size_named(size)
        vocabulary = Vocabulary.trained(texts, chosen.subwords)
        torch.manual_seed(seed)
        deep = chosen if size != "base" else replace(chosen, layers=6)
        net = _pair(
            _roberta(vocabulary, chosen), _roberta(vocabulary, deep, is_decoder=True, add_cross_attention=True)
        )
        return cls(_tied(net, vocabulary), vocabulary, recipe or Recipe(lr=chosen.lr))

    @classmethod
    def from_pretrained(cls, name: str, *, layers: int = 6, recipe: Recipe | None = None, seed: int = 0) -> Seq2Seq:
        """An encoder of RoBERTa's kind from a folder or the hub, and a decoder of `layers` layers at random."""
        from transformers import EncoderDecoderModel, RobertaConfig, RobertaForCausalLM, RobertaModel

        encoder, vocabulary = _pretrained(RobertaModel, name, add_pooling_layer=False)
        torch.manual_seed(seed)
        config = RobertaConfig.from_dict(
            encoder.config.to_dict() | {"is_decoder": True, "add_cross_attention": True, "num_hidden_layers": layers}
        )
        net = EncoderDecoderModel(encoder=encoder, decoder=RobertaForCausalLM(config))
        return cls(_tied(net, vocabulary), vocabulary, recipe or Recipe(lr=5e-5, batch=16, length=512))

    @property
    def device(self) -> torch.device:
        return next(iter(self.net.parameters())).device

    def to(self, device: str | torch.device) -> Seq2Seq:
        """Moves the weights."""
        self.net.to(device)
        return self

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        start, end = self.vocabulary.special("<s>"), self.vocabulary.special("</s>")
        length = min(self.recipe.length, self.net.config.encoder.max_position_embeddings - 2)
        return [[start, *ids[: length - 2], end] for ids in self.vocabulary.many(texts)]

    def fit(
        self, sources: Sequence[str], targets: Sequence[str], budget: Budget, *, seed: int = 0,
        folder: Path | None = None, progress: bool = False,
    ) -> Training:  # fmt: skip
        """Train to write each target from its source. Raises ModelError where there is not one for each."""
        if len(sources) != len(targets):
            raise ModelError(f"{len(sources)} sources and {len(targets)} targets: expected one for each")
        read, written = self._rows(sources), self._rows(targets)
        pad = self.vocabulary.special("<pad>")

        def rewritten(chosen: list[int]) -> tuple[torch.Tensor, int]:
            ids, mask = _padded([read[k] for k in chosen], pad, self.device)
            out, out_mask = _padded([written[k] for k in chosen], pad, self.device)
            logits = self.net(
                input_ids=ids, attention_mask=mask, decoder_input_ids=out[:, :-1],
                decoder_attention_mask=out_mask[:, :-1],
            ).logits  # fmt: skip
            labels = out.masked_fill(out_mask == 0, IGNORED)[:, 1:]
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
            return loss, int(mask.sum() + out_mask.sum())

        lengths = [len(a) + len(b) for a, b in zip(read, written, strict=True)]
        return train(self.net, rewritten, lengths, budget, self.recipe, seed=seed, folder=folder, progress=progress)

    @torch.inference_mode()
    def predict(
        self, sources: Sequence[str], *, beam: int = 1, most: int | None = None, batch: int = 64
    ) -> list[str]:
        """A target for each source. most: subwords of a target, by default as many as training took."""
        self.net.eval()
        rows = self._rows(sources)
        pad, found = self.vocabulary.special("<pad>"), [""] * len(rows)
        for chosen in _like_long([len(row) for row in rows], batch):
            ids, mask = _padded([rows[k] for k in chosen], pad, self.device)
            out = self.net.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=(most or self.recipe.length) - 1, num_beams=beam,
                do_sample=False, early_stopping=beam > 1, decoder_start_token_id=self.vocabulary.special("<s>"),
                pad_token_id=pad, eos_token_id=self.vocabulary.special("</s>"),
            )  # fmt: skip
            for k, row in zip(chosen, out.tolist(), strict=True):
                found[k] = self.vocabulary.text(row)
        return found

    def save(self, folder: Path) -> None:
        """Weights, vocabulary and what else `load` needs, into a folder."""
        configs = {"encoder": self.net.encoder.config.to_dict(), "decoder": self.net.decoder.config.to_dict()}
        _save(folder, self.family, self.net, self.vocabulary, configs, {"length": self.recipe.length})


def _pair(encoder: Any, decoder: Any) -> Any:
    """An encoder and a decoder of these configurations, from random weights."""
    from transformers import EncoderDecoderModel, RobertaForCausalLM, RobertaModel

    return EncoderDecoderModel(
        encoder=RobertaModel(encoder, add_pooling_layer=False), decoder=RobertaForCausalLM(decoder)
    )


def _tied(net: Any, vocabulary: Vocabulary) -> Any:
    """One table of subwords for what is read, what was written and what to write."""
    table = net.encoder.embeddings.word_embeddings
    net.decoder.roberta.embeddings.word_embeddings = table
    net.decoder.lm_head.decoder.weight = table.weight
    net.config.decoder_start_token_id = vocabulary.special("<s>")
    net.config.pad_token_id = vocabulary.special("<pad>")
    return net


# ---------------------------------------------------------------------------------------------------- files of models

Model = Encoder | CausalLM | Seq2Seq


def _save(
    folder: Path, family: str, net: nn.Module, vocabulary: Vocabulary, configs: dict[str, Any], record: dict[str, Any]
) -> None:
    from safetensors.torch import save_model

    folder.mkdir(parents=True, exist_ok=True)
    record = {"family": family, **record, "configs": configs}
    temporary = folder / ".model.safetensors.partial"
    try:
        save_model(net, str(temporary))
        temporary.replace(folder / "model.safetensors")
    finally:
        temporary.unlink(missing_ok=True)
    vocabulary.tokenizer.save(str(folder / "tokenizer.json"))
    partial = folder / ".model.json.partial"
    partial.write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")
    partial.replace(folder / "model.json")


def load_model(folder: Path) -> Model:
    """A model that `save` wrote. Raises ModelError that names the file that is missing or is not what it should be."""
    from safetensors.torch import load_model as fill
    from transformers import GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaModel

    for name in ("model.json", "model.safetensors", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name}: no such file; expected a folder that `train` wrote")
    try:
        record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        configs, family = record["configs"], record["family"]
        recipe = Recipe(length=int(record["length"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / 'model.json'}: not a model's record: {error}") from error
    try:
        vocabulary = Vocabulary.from_file(folder / "tokenizer.json")
    except ValueError as error:
        raise ModelError(str(error)) from error
    model: Model
    if family == Encoder.family:
        body = RobertaModel(RobertaConfig.from_dict(configs["body"]), add_pooling_layer=False)
        net = _EncoderNet(body, record["objective"], record["classes"])
        model = Encoder(net, vocabulary, record["objective"], recipe, record["candidates"])
    elif family == CausalLM.family:
        model = CausalLM(GPT2LMHeadModel(GPT2Config.from_dict(configs["body"])), vocabulary, recipe)
    elif family == Seq2Seq.family:
        halves = (RobertaConfig.from_dict(configs[half]) for half in ("encoder", "decoder"))
        model = Seq2Seq(_tied(_pair(*halves), vocabulary), vocabulary, recipe)
    else:
        raise ModelError(f"{folder / 'model.json'}: family {family!r}, expected encoder, causal or seq2seq")
    try:
        fill(model.net, str(folder / "model.safetensors"))
    except Exception as error:  # RuntimeError of torch, SafetensorError of a damaged file
        raise ModelError(f"{folder / 'model.safetensors'}: not the weights of this model: {error}") from error
    model.net.eval()
    return model


def _pretrained(kind: Any, name: str, **more: Any) -> tuple[Any, Vocabulary]:
    """Weights and vocabulary of a folder, or of the hub. Raises ModelError that says what was looked for."""
    from transformers import AutoTokenizer

    try:
        net = kind.from_pretrained(name, **more)
        tokenizer = AutoTokenizer.from_pretrained(name)
        backend = tokenizer.backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{name}: no weights of {kind.__name__} there ({first}); give a folder with config.json, model.safetensors "
            "and tokenizer files, or go online"
        ) from error
    return net, Vocabulary(backend)
