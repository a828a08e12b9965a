"""What a network has to beat: linear models on TF-IDF, and hand-made networks on the same vectors.

    score = linear(train, valid, "tfidf-lr")                   # scikit-learn, in about a second
    net = make("textcnn", vectors, classes=2); fit(net, ...)   # trained by the same `fit`
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from systems.textnas.data import TextData
from systems.textnas.space import ArchError

Linear = Literal["tfidf-lr", "tfidf-svm", "nb-lr"]
LINEAR = ("tfidf-lr", "tfidf-svm", "nb-lr")
SEED_STRENGTHS = (1.0, 10.0)
BUCKETS = 1 << 16


@dataclass(frozen=True)
class LinearModel:
    """A fitted linear model: `predict` texts, and what it scored on validation."""

    name: str
    valid_acc: float
    parameters: int
    cpu_seconds: float
    predict: Callable[[TextData], np.ndarray]

    def accuracy(self, data: TextData) -> float:
        """The share of rows predicted right."""
        return float((self.predict(data) == data.labels).mean())


def linear(train: TextData, valid: TextData, name: Linear = "tfidf-lr") -> LinearModel:
    """TF-IDF of words and pairs of words with logistic regression ("tfidf-lr") or a linear support vector machine, or
    logistic regression on features weighted by naive Bayes ("nb-lr", arXiv 1412.5335).

    The strength of regularisation is chosen on `valid`. Of text pairs, |u - v| and u * v are the features.
    """
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if name not in LINEAR:
        raise ArchError(f"linear model {name!r}; expected one of {', '.join(LINEAR)}")
    start = time.process_time()
    settings = {"ngram_range": (1, 2), "token_pattern": r"\S+", "lowercase": False}
    vectorizer = (
        CountVectorizer(binary=True, **settings) if name == "nb-lr" else TfidfVectorizer(sublinear_tf=True, **settings)
    )
    vectorizer.fit(_sides(train, 0) + (_sides(train, 1) if train.pair else []))

    def features(data: TextData) -> Any:
        left = vectorizer.transform(_sides(data, 0))
        if not data.pair:
            return left
        from scipy.sparse import hstack

        right = vectorizer.transform(_sides(data, 1))
        return hstack((abs(left - right), left.multiply(right))).tocsr()

    x = features(train)
    weights: list[Any] = [1.0]
    if name == "nb-lr":
        weights = [_log_ratio(x, train.labels == label) for label in range(len(train.classes))]

    def scores(models: Sequence[Any], data: TextData) -> np.ndarray:
        x = features(data)
        if name != "nb-lr":
            return models[0].predict(x)
        columns = [model.decision_function(x.multiply(w).tocsr()) for model, w in zip(models, weights, strict=True)]
        return np.argmax(np.stack(columns, 1), 1)

    best: tuple[float, list[Any]] | None = None
    for strength in SEED_STRENGTHS:
        if name == "tfidf-svm":
            models = [LinearSVC(C=strength / 10).fit(x, train.labels)]
        elif name == "tfidf-lr":
            models = [LogisticRegression(C=strength, max_iter=300).fit(x, train.labels)]
        else:
            models = [
                LogisticRegression(C=strength / 10, max_iter=300).fit(x.multiply(w).tocsr(), train.labels == label)
                for label, w in enumerate(weights)
            ]
        score = float((scores(models, valid) == valid.labels).mean())
        if best is None or score > best[0]:
            best = (score, models)
    assert best is not None
    chosen = best[1]
    count = sum(model.coef_.size + model.intercept_.size for model in chosen)
    return LinearModel(name, best[0], count, time.process_time() - start, lambda data: scores(chosen, data))


def _sides(data: TextData, side: int) -> list[str]:
    return [text if isinstance(text, str) else text[side] for text in data.texts]


def _log_ratio(x: Any, inside: np.ndarray) -> np.ndarray:
    """log of how much more frequent each feature is inside a class than outside, with one added to each count."""
    p = np.asarray(x[inside].sum(0))[0] + 1.0
    q = np.asarray(x[~inside].sum(0))[0] + 1.0
    return np.log(p / p.sum()) - np.log(q / q.sum())


# -------------------------------------------------------------------------------------------------------- networks


class _Encoder(nn.Module):
    """Word vectors, and what a subclass makes of them: (B, T, width) and a mask to (B, size)."""

    size: int

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.embedding = nn.Parameter(vectors.detach().clone())

    def look_up(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embedding, sparse=True)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        raise NotImplementedError


class _FastText(_Encoder):
    """The mean of the vectors of words and of hashed pairs of neighbouring words."""

    def __init__(self, vectors: Tensor, dropout: float) -> None:
        super().__init__(vectors)
        self.size = vectors.shape[1]
        self.pairs = nn.EmbeddingBag(BUCKETS, self.size, mode="sum")
        nn.init.zeros_(self.pairs.weight)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum(1, keepdim=True)
        pairs = (tokens[:, :-1] * 1_000_003 + tokens[:, 1:]) % BUCKETS
        there = mask[:, 1:].float()
        total = (self.look_up(tokens) * mask[..., None]).sum(1)
        if pairs.shape[1]:
            total = total + self.pairs(pairs, per_sample_weights=there)
        return total / count


class _TextCNN(_Encoder):
    """Convolutions of 3, 4 and 5 words, the largest value of each (arXiv 1408.5882)."""

    def __init__(self, vectors: Tensor, dropout: float, filters: int = 100) -> None:
        super().__init__(vectors)
        self.size = 3 * filters
        self.convolutions = nn.ModuleList(nn.Conv1d(vectors.shape[1], filters, k, padding=k - 1) for k in (3, 4, 5))
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = (self.look_up(tokens) * mask[..., None]).transpose(1, 2)
        return self.drop(torch.cat([F.relu(conv(x)).amax(2) for conv in self.convolutions], 1))


class _Recurrent(_Encoder):
    """A recurrent layer in both directions, the mean of its states over the words."""

    def __init__(self, vectors: Tensor, dropout: float, kind: type[nn.RNNBase], hidden: int = 96) -> None:
        super().__init__(vectors)
        self.size = 2 * hidden
        self.rnn = kind(vectors.shape[1], hidden, batch_first=True, bidirectional=True)  # type: ignore[call-arg,arg-type]
        self.drop = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.drop(self.look_up(tokens))
        lengths = mask.sum(1).cpu()
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        y = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])[0]
        return self.drop(y.sum(1) / mask.sum(1, keepdim=True))


class _Transformer(_Encoder):
    """Two pre-norm transformer layers on learned positions, the mean over the words."""

    def __init__(self, vectors: Tensor, dropout: float, hidden: int = 128, layers: int = 2) -> None:
        super().__init__(vectors)
        self.size = hidden
        self.into = nn.Linear(vectors.shape[1], hidden)
        self.places = nn.Parameter(0.02 * torch.randn(256, hidden))
        layer = nn.TransformerEncoderLayer(hidden, 4, 2 * hidden, dropout, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(hidden), enable_nested_tensor=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.into(self.look_up(tokens)) + self.places[: tokens.shape[1]]
        y = self.layers(x, src_key_padding_mask=~mask)
        return (y * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


NETWORKS: dict[str, Callable[[Tensor, float], _Encoder]] = {
    "fasttext": _FastText,
    "textcnn": _TextCNN,
    "bigru": lambda vectors, dropout: _Recurrent(vectors, dropout, nn.GRU),
    "bilstm": lambda vectors, dropout: _Recurrent(vectors, dropout, nn.LSTM),
    "transformer": _Transformer,
}


class Baseline(nn.Module):
    """A hand-made encoder and a linear layer; of pairs, on [u, v, |u - v|, u * v]."""

    def __init__(self, encoder: _Encoder, classes: int, pair: bool) -> None:
        super().__init__()
        self.encoder, self.pair = encoder, pair
        self.head = nn.Linear(encoder.size * (4 if pair else 1), classes)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """As `TextNet.forward`."""
        mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        x = self.encoder(tokens, mask)
        if self.pair:
            u, v = x.chunk(2)
            x = torch.cat((u, v, (u - v).abs(), u * v), 1)
        return self.head(x)

    def count(self) -> int:
        """Weights, those of words left out."""
        return sum(p.numel() for p in self.parameters()) - self.encoder.embedding.numel()


def make(name: str, vectors: Tensor, classes: int, pair: bool = False, dropout: float = 0.2, seed: int = 0) -> Baseline:
    """A new baseline network. Raises ArchError on an unknown name."""
    if name not in NETWORKS:
        raise ArchError(f"baseline {name!r}; expected one of {', '.join(NETWORKS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Baseline(NETWORKS[name](vectors, dropout), classes, pair)
