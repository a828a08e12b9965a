"""Subwords of code: a byte-level BPE trained on the task's own text, or one that comes with pretrained weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""In this order, as of RoBERTa's vocabulary: the identifiers 0 to 4."""

_ALIASES = {
    "<s>": ("<s>", "[CLS]", "<|endoftext|>"),
    "<pad>": ("<pad>", "[PAD]", "<|pad|>", "<|endoftext|>"),
    "</s>": ("</s>", "[SEP]", "<|endoftext|>"),
    "<mask>": ("<mask>", "[MASK]"),
}


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer with the identifiers of its special tokens."""

    tokenizer: Tokenizer
    _ids: dict[str, int] = field(default_factory=dict)

    @classmethod
    def trained(cls, texts: Iterable[str], size: int = 4096, extra: Sequence[str] = ()) -> Vocabulary:
        """A byte-level BPE of at most `size` subwords, learned from `texts`; `extra` are never split. Deterministic."""
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[*SPECIALS, *extra],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_file(cls, path: Path) -> Vocabulary:
        """A saved `tokenizer.json`. Raises ValueError naming the file if it is none."""
        try:
            return cls(Tokenizer.from_file(str(path)))
        except Exception as error:
            raise ValueError(f"{path}: not a tokenizer file: {error}") from error

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def special(self, name: str) -> int:
        """The identifier of <s>, <pad>, </s> or <mask>. Raises ValueError where the vocabulary has none for it."""
        if name not in self._ids:
            found = (self.tokenizer.token_to_id(alias) for alias in _ALIASES[name])
            known = next((identifier for identifier in found if identifier is not None), None)
            if known is None:
                raise ValueError(f"the vocabulary has no token for {name}: looked for {', '.join(_ALIASES[name])}")
            self._ids[name] = known
        return self._ids[name]

    def ids(self, text: str) -> list[int]:
        """Subwords of a text, without special tokens around it."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def many(self, texts: Sequence[str]) -> list[list[int]]:
        """`ids` of many texts."""
        return [list(one.ids) for one in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def text(self, ids: Sequence[int]) -> str:
        """The text of subwords, without special tokens and outer spaces."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    @cached_property
    def starts_word(self) -> frozenset[int]:
        """Identifiers of subwords that begin a word, or are special: what ends the word before."""
        vocabulary = self.tokenizer.get_vocab()
        return frozenset(i for piece, i in vocabulary.items() if piece.startswith(("Ġ", "<")) or piece in SPECIALS)
