"""The encoder: RoBERTa with the head of one objective, for labels, pairs, vectors and masked words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from systems.codexglue.rows import like_long, padded
from systems.codexglue.training import Budget, Recipe, Training, train
from systems.codexglue.vocabulary import Vocabulary
from systems.codexglue.weights import ModelError, pretrained, roberta_config, size_named, write_model

Objective = Literal["classify", "compare", "retrieve", "cloze"]
OBJECTIVES: tuple[Objective, ...] = ("classify", "compare", "retrieve", "cloze")


class EncoderNet(nn.Module):
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
        self, net: EncoderNet, vocabulary: Vocabulary, objective: Objective, recipe: Recipe,
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
        body = RobertaModel(roberta_config(vocabulary, chosen), add_pooling_layer=False)
        net = EncoderNet(body, objective, classes)
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
            body, vocabulary = pretrained(RobertaModel, name, add_pooling_layer=False)
            torch.manual_seed(seed)
            return cls(EncoderNet(body, objective, classes), vocabulary, objective, recipe or Recipe())
        whole, vocabulary = pretrained(RobertaForMaskedLM, name)  # it can fill masks without more training
        net = EncoderNet(whole.roberta, objective, classes)
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
        return padded(rows, self.vocabulary.special("<pad>"), self.device)

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
        for chosen in like_long([len(row) for row in rows], batch):
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
        for chosen in like_long([len(row) for row in rows], batch):
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
        for chosen in like_long([len(row) for row in rows], batch):
            found[chosen] = self._vectors(rows, chosen)[0]
        return found

    def save(self, folder: Path) -> None:
        """Weights, vocabulary and what else `load` needs, into a folder."""
        head = self.net.head[-1] if self.objective in ("classify", "compare") else None
        record = {
            "objective": self.objective, "candidates": list(self.candidates), "length": self.recipe.length,
            "classes": head.out_features if head is not None else 2,
        }  # fmt: skip
        write_model(folder, self.family, self.net, self.vocabulary, {"body": self.net.body.config.to_dict()}, record)


def _word(candidate: str) -> str:
    """The token that stands for a candidate as an answer, in a vocabulary that is trained for a cloze."""
    return f"<word:{candidate}>"


def _features(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of two vectors, what they share and not: (rows, 4 hidden)."""
    return torch.cat([a, b, (a - b).abs(), a * b], -1)
