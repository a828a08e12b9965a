"""Strong cheap baselines: what a trained model has to beat before it is called good.

    features = lexical_features(programs, "cpp")            # sparse TF-IDF rows; map_at_r(features, labels)
    model = RetrieveAndRename(sources, targets)
    model.predict("public int size ( ) { return count ; }")
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from systems.codexglue.languages import language
from systems.codexglue.trees import without_comments

_TOKEN = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|\w+|[^\w\s]')
_NAME = re.compile(r"[^\W\d]\w*$")


def code_tokens(code: str) -> list[str]:
    """Strings, words and marks of code."""
    return _TOKEN.findall(code)


def masked_tokens(code: str, keywords: frozenset[str]) -> list[str]:
    """`code_tokens` without comments, and with names that are no keywords replaced by one sign."""
    return [
        "I" if token not in keywords and _NAME.match(token) else token for token in code_tokens(without_comments(code))
    ]


def lexical_features(programs: Sequence[str], lang: str, orders: tuple[int, int] = (1, 3)) -> Any:
    """Sparse (programs, n-grams): which masked token n-grams a program has, by inverse document frequency, of length 1.

    Whether, not how often: a loop that is written out five times says no more than once. Raises KeyError for a
    language without keywords here.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    keywords = language(lang).keywords
    vectorizer = TfidfVectorizer(
        analyzer=lambda code: list(_ngrams(masked_tokens(code, keywords), orders)), binary=True, dtype=np.float32
    )
    return vectorizer.fit_transform(programs)


def _ngrams(tokens: Sequence[str], orders: tuple[int, int]) -> Iterable[str]:
    for order in range(orders[0], orders[1] + 1):
        for start in range(len(tokens) - order + 1):
            yield " ".join(tokens[start : start + order])


class LexicalClassifier:
    """The words of code by inverse document frequency, and logistic regression; of pairs, what they share and not."""

    def __init__(self, seed: int = 0) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        self._vectorizer = TfidfVectorizer(analyzer=_words_of, binary=True)
        self._model = LogisticRegression(max_iter=1000, random_state=seed)

    def fit(self, codes: Sequence[str], labels: Sequence[int]) -> LexicalClassifier:
        """Train on snippets with labels 0 or 1."""
        self._model.fit(self._vectorizer.fit_transform(codes), labels)
        return self

    def fit_pairs(self, pairs: Sequence[tuple[str, str]], labels: Sequence[int]) -> LexicalClassifier:
        """Train on pairs of snippets with labels 0 or 1."""
        self._vectorizer.fit([code for pair in pairs for code in pair])
        self._model.fit(self._pair_features(pairs), labels)
        return self

    def predict(self, codes: Sequence[str]) -> list[int]:
        """Labels of snippets."""
        return [int(label) for label in self._model.predict(self._vectorizer.transform(codes))]

    def predict_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """Labels of pairs of snippets."""
        return [int(label) for label in self._model.predict(self._pair_features(pairs))]

    def _pair_features(self, pairs: Sequence[tuple[str, str]]) -> Any:
        from scipy.sparse import csr_matrix, hstack

        left, right = (self._vectorizer.transform([pair[side] for pair in pairs]) for side in (0, 1))
        product = left.multiply(right)
        cosine = csr_matrix(3.0 * np.asarray(product.sum(1)))  # one column against thousands
        return hstack([cosine, product.sqrt(), abs(left - right)]).tocsr()


def _words_of(code: str) -> list[str]:
    return [token.lower() for token in code_tokens(code) if _NAME.match(token)]


class RetrieveAndRename:
    """Translation and repair without learning: the target of the nearest training source, with the names of the query.

    Nearest by TF-IDF cosine of tokens and token pairs. The tokens of that source are aligned with the query's; where
    one replaced another, the target's is replaced too, and so is its PascalCase form.
    """

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Raises ValueError where there are not as many targets as sources, or none."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        if len(sources) != len(targets) or not len(sources):
            raise ValueError(f"{len(sources)} sources and {len(targets)} targets: expected one for each")
        self._sources, self._targets = [code_tokens(text) for text in sources], list(targets)
        self._vectorizer = TfidfVectorizer(
            analyzer=lambda text: list(_ngrams(code_tokens(text), (1, 2))), sublinear_tf=True, dtype=np.float32
        )
        self._index = self._vectorizer.fit_transform(sources).T.tocsr()

    def predict(self, queries: Sequence[str]) -> list[str]:
        """A target for each query, white space as in the training target."""
        found = []
        for first in range(0, len(queries), 256):
            part = queries[first : first + 256]
            scores = (self._vectorizer.transform(part) @ self._index).toarray()
            for query, nearest in zip(part, scores.argmax(1), strict=True):
                found.append(self._renamed(code_tokens(query), int(nearest)))
        return found

    def _renamed(self, query: list[str], nearest: int) -> str:
        source = self._sources[nearest]
        votes: Counter[tuple[str, str]] = Counter()
        for tag, a, b, c, d in difflib.SequenceMatcher(None, source, query, autojunk=False).get_opcodes():
            if tag == "replace" and b - a == d - c:
                votes.update(zip(source[a:b], query[c:d], strict=True))
        renames: dict[str, str] = {}
        for (old, new), _ in votes.most_common():
            if old not in renames and new not in renames.values():
                renames[old] = new
        for old, new in list(renames.items()):
            renames.setdefault(_pascal(old), _pascal(new))
        return _TOKEN.sub(lambda token: renames.get(token[0], token[0]), self._targets[nearest])


def _pascal(name: str) -> str:
    return name[:1].upper() + name[1:]


def majority(labels: Sequence[Any]) -> Any:
    """The label that most rows have; of several, the one that comes first. Raises ValueError where there is none."""
    if not labels:
        raise ValueError("no label to count")
    return Counter(labels).most_common(1)[0][0]


class CachedNgramModel:
    """A language model for token completion: the longest context that was seen, in this file first.

    orders: tokens of context plus one at most. The file read so far is a cache that is asked before the corpus.
    """

    def __init__(self, files: Iterable[Sequence[str]], orders: int = 6) -> None:
        self._orders = orders
        self._counts: list[dict[tuple[str, ...], Counter[str]]] = [{} for _ in range(orders)]
        for tokens in files:
            self._learn(self._counts, tokens)
        self._best = [
            {context: following.most_common(1)[0][0] for context, following in counts.items()}
            for counts in self._counts
        ]

    def _learn(self, counts: list[dict[tuple[str, ...], Counter[str]]], tokens: Sequence[str]) -> None:
        for at, token in enumerate(tokens):
            for length in range(min(self._orders, at + 1)):
                counts[length].setdefault(tuple(tokens[at - length : at]), Counter())[token] += 1

    def predict(self, tokens: Sequence[str]) -> list[str]:
        """The token that is expected at each place, from those before it."""
        cache: list[dict[tuple[str, ...], str]] = [{} for _ in range(self._orders)]
        found = []
        for at, token in enumerate(tokens):
            found.append(self._next(tokens, at, cache))
            for length in range(1, min(self._orders, at + 1)):
                cache[length][tuple(tokens[at - length : at])] = token
        return found

    def _next(self, tokens: Sequence[str], at: int, cache: list[dict[tuple[str, ...], str]]) -> str:
        for length in range(min(self._orders - 1, at), -1, -1):
            context = tuple(tokens[at - length : at])
            if length > 1 and context in cache[length]:
                return cache[length][context]
            if context in self._best[length]:
                return self._best[length][context]
        return "<unk>"
