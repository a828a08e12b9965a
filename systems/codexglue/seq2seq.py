"""The encoder-decoder: a RoBERTa encoder and a Transformer decoder on one table of subwords, which rewrites text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from systems.codexglue.rows import IGNORED, like_long, padded
from systems.codexglue.training import Budget, Recipe, Training, train
from systems.codexglue.vocabulary import Vocabulary
from systems.codexglue.weights import ModelError, pretrained, roberta_config, size_named, write_model


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
        net = random_pair(
            roberta_config(vocabulary, chosen),
            roberta_config(vocabulary, deep, is_decoder=True, add_cross_attention=True),
        )
        return cls(tied(net, vocabulary), vocabulary, recipe or Recipe(lr=chosen.lr))

    @classmethod
    def from_pretrained(cls, name: str, *, layers: int = 6, recipe: Recipe | None = None, seed: int = 0) -> Seq2Seq:
        """An encoder of RoBERTa's kind from a folder or the hub, and a decoder of `layers` layers at random."""
        from transformers import EncoderDecoderModel, RobertaConfig, RobertaForCausalLM, RobertaModel

        encoder, vocabulary = pretrained(RobertaModel, name, add_pooling_layer=False)
        torch.manual_seed(seed)
        config = RobertaConfig.from_dict(
            encoder.config.to_dict() | {"is_decoder": True, "add_cross_attention": True, "num_hidden_layers": layers}
        )
        net = EncoderDecoderModel(encoder=encoder, decoder=RobertaForCausalLM(config))
        return cls(tied(net, vocabulary), vocabulary, recipe or Recipe(lr=5e-5, batch=16, length=512))

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
            ids, mask = padded([read[k] for k in chosen], pad, self.device)
            out, out_mask = padded([written[k] for k in chosen], pad, self.device)
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
        for chosen in like_long([len(row) for row in rows], batch):
            ids, mask = padded([rows[k] for k in chosen], pad, self.device)
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
        write_model(folder, self.family, self.net, self.vocabulary, configs, {"length": self.recipe.length})


def random_pair(encoder: Any, decoder: Any) -> Any:
    """An encoder and a decoder of these configurations, from random weights."""
    from transformers import EncoderDecoderModel, RobertaForCausalLM, RobertaModel

    return EncoderDecoderModel(
        encoder=RobertaModel(encoder, add_pooling_layer=False), decoder=RobertaForCausalLM(decoder)
    )


def tied(net: Any, vocabulary: Vocabulary) -> Any:
    """One table of subwords for what is read, what was written and what to write."""
    table = net.encoder.embeddings.word_embeddings
    net.decoder.roberta.embeddings.word_embeddings = table
    net.decoder.lm_head.decoder.weight = table.weight
    net.config.decoder_start_token_id = vocabulary.special("<s>")
    net.config.pad_token_id = vocabulary.special("<pad>")
    return net
