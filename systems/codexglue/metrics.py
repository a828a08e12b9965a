"""The metrics of the benchmark, as the official evaluators compute them, to the last digit; no file is read here.

    bleu(["int a ;"], ["int b ;"]).score         # corpus BLEU-4 with add-one smoothing, 0 to 1
    edit_similarity("int a", "int b")            # 0 to 100
    map_at_r(vectors, labels)                    # mean average precision over the first R

Text is split at white space as `str.split` does. Scores are fractions unless a docstring says percent. The hot loops
are compiled (kernels.c); without a compiler the same numbers come from Python.
"""

from __future__ import annotations

import ctypes
import difflib
import math
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from systems import native

ORDERS = 4
_OTHER_SPACE = re.compile(r"[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
EDIT_BACKENDS = ("difflib", "levenshtein")
EditBackend = Literal["difflib", "levenshtein"]
UNSCORED = frozenset({"<s>", "</s>", "<EOL>", "<pad>"})
"""Gold tokens that token accuracy leaves out."""

Ints = NDArray[np.int64]


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None without a compiler."""
    loaded = native.load(Path(__file__).with_name("kernels.c"))
    if loaded is not None:
        loaded.shared_spans.restype = ctypes.c_int64
    return loaded


def _at(values: array[Any] | NDArray[Any]) -> int:
    return values.buffer_info()[0] if isinstance(values, array) else values.ctypes.data


# --------------------------------------------------------------------------------------------------------- n-grams


@dataclass(frozen=True)
class Encoded:
    """Texts as token ids: text k has ids[at[k]:at[k + 1]]. One vocabulary, in order of appearance, for all."""

    ids: array[int]
    at: array[int]

    def __len__(self) -> int:
        return len(self.at) - 1

    def lengths(self) -> Ints:
        """(texts,): tokens of each."""
        at: Ints = np.frombuffer(self.at, dtype=np.int64)
        return at[1:] - at[:-1]


def encode(*corpora: Iterable[str | Sequence[str]]) -> tuple[list[Encoded], list[str]]:
    """Token ids of several corpora in one vocabulary, and the vocabulary. A text is a str or a list of tokens."""
    codes: defaultdict[str, int] = defaultdict(count().__next__)
    code = codes.__getitem__
    encoded = []
    for texts in corpora:
        ids, at = array("i"), array("q", [0])
        for text in texts:
            ids.extend(map(code, text.split() if isinstance(text, str) else text))
            at.append(len(ids))
        encoded.append(Encoded(ids, at))
    return encoded, list(codes)


def ngram_matches(hypotheses: Encoded, references: Encoded) -> Ints:
    """(pairs, 4): n-grams of each hypothesis, n from 1, that its reference has, none more often than there."""
    matches = np.zeros((len(hypotheses), ORDERS), dtype=np.int64)
    compiled = library()
    if compiled is not None and len(hypotheses):
        done = compiled.ngram_matches(
            ctypes.c_void_p(_at(hypotheses.ids)), ctypes.c_void_p(_at(hypotheses.at)),
            ctypes.c_void_p(_at(references.ids)), ctypes.c_void_p(_at(references.at)),
            ctypes.c_int64(len(hypotheses)), ctypes.c_void_p(_at(matches)),
        )  # fmt: skip
        if not done:
            raise MemoryError("no memory for the table of n-grams")
        return matches
    for pair in range(len(hypotheses)):
        one, other = (part.ids[part.at[pair] : part.at[pair + 1]] for part in (hypotheses, references))
        for order in range(1, ORDERS + 1):
            ours, theirs = (Counter(zip(*(ids[k:] for k in range(order)), strict=False)) for ids in (one, other))
            matches[pair, order - 1] = sum(min(n, theirs[gram]) for gram, n in ours.items())
    return matches


def possible(lengths: Ints) -> Ints:
    """(pairs, 4): n-grams that texts of these lengths have."""
    return np.maximum(lengths[:, None] - np.arange(ORDERS), 0)


@dataclass(frozen=True)
class Bleu:
    """score: 0 to 1; precisions: (4,), smoothed; brevity: the factor for short hypotheses; lengths in tokens."""

    score: float
    precisions: tuple[float, ...]
    brevity: float
    hypothesis_length: int
    reference_length: int

    @property
    def official(self) -> float:
        """As the official script prints it: percent, two decimals."""
        return round(100 * self.score, 2)


def bleu(references: Sequence[str | Sequence[str]], hypotheses: Sequence[str | Sequence[str]]) -> Bleu:
    """Corpus BLEU-4, one reference each, with one added to numerator and denominator of every order, unigrams too.

    Raises ValueError where there are not as many references as hypotheses.
    """
    _same_count(references, hypotheses)
    (hyps, refs), _ = encode(hypotheses, references)
    return corpus_bleu(ngram_matches(hyps, refs), hyps.lengths(), refs.lengths())


def corpus_bleu(matches: Ints, hyp_lengths: Ints, ref_lengths: Ints) -> Bleu:
    """`bleu` from counts by pair: matches (pairs, 4), lengths (pairs,)."""
    found = matches.sum(0).tolist()
    total = possible(hyp_lengths).sum(0).tolist()
    precisions = [(m + 1.0) / (g + 1.0) for m, g in zip(found, total, strict=True)]
    hyp, ref = int(hyp_lengths.sum()), int(ref_lengths.sum())
    mean = math.exp(sum(0.25 * math.log(p) for p in precisions)) if min(precisions) > 0 else 0.0
    if ref == 0:
        brevity = 1.0
    elif hyp == 0:
        brevity = 0.0
    else:
        ratio = hyp / ref
        brevity = 1.0 if ratio > 1.0 else math.exp(1 - 1.0 / ratio)
    return Bleu(mean * brevity, tuple(precisions), brevity, hyp, ref)


def nltk_bleu(matches: Ints, hyp_lengths: Ints, ref_lengths: Ints) -> float:
    """Corpus BLEU-4 as in CodeBLEU's n-gram part: no smoothing but 0.1 for a numerator of 0 (Chen and Cherry, 1)."""
    found = matches.sum(0).tolist()
    total = np.maximum(possible(hyp_lengths), 1).sum(0).tolist()
    return _geometric(found, total, int(hyp_lengths.sum()), int(ref_lengths.sum()))


def weighted_recall(hypotheses: Encoded, references: Encoded, weights: NDArray[np.float64], matches: Ints) -> float:
    """CodeBLEU's weighted n-gram match: recall of reference n-grams, unigrams by weight of the token (vocabulary,).

    Its brevity factor takes every reference to be 2 tokens long, since the official script measures the pair of tokens
    and weights instead of the tokens: in effect there is none.
    """
    found, total = weighted_unigrams(hypotheses, references, weights)
    ref_lengths = references.lengths()
    numerators: list[float] = [sum(found), *matches.sum(0).tolist()[1:]]
    denominators: list[float] = [
        sum(max(1, value) for value in total), *np.maximum(possible(ref_lengths), 1).sum(0).tolist()[1:]
    ]  # fmt: skip
    return _geometric(numerators, denominators, int(hypotheses.lengths().sum()), 2 * len(references))


def weighted_unigrams(
    hypotheses: Encoded, references: Encoded, weights: NDArray[np.float64]
) -> tuple[list[float], list[float]]:
    """By pair: weights of the reference tokens that the hypothesis has, and of all reference tokens."""
    pairs = len(hypotheses)
    found, total = np.zeros(pairs), np.zeros(pairs)
    compiled = library()
    if compiled is not None and pairs:
        scratch = np.zeros(2 * len(weights) + 2, dtype=np.int32)
        weights = np.ascontiguousarray(weights, dtype=np.float64)
        addresses = (
            _at(hypotheses.ids), _at(hypotheses.at), _at(references.ids), _at(references.at), pairs,
            _at(weights), _at(scratch), _at(found), _at(total),
        )  # fmt: skip
        compiled.weighted_recall(*map(ctypes.c_void_p, addresses))
        return found.tolist(), total.tolist()
    for pair in range(pairs):
        ours = Counter(hypotheses.ids[hypotheses.at[pair] : hypotheses.at[pair + 1]])
        for token, times in Counter(references.ids[references.at[pair] : references.at[pair + 1]]).items():
            found[pair] += min(times, ours[token]) * weights[token]
            total[pair] += times * weights[token]
    return found.tolist(), total.tolist()


def _geometric(numerators: Sequence[float], denominators: Sequence[float], hyp: int, ref: int) -> float:
    if hyp == 0 or numerators[0] == 0:
        return 0.0
    brevity = 1.0 if hyp > ref else math.exp(1 - ref / hyp)
    logs = [0.25 * math.log((n or 0.1) / d) for n, d in zip(numerators, denominators, strict=True)]
    return brevity * math.exp(math.fsum(logs))


# ------------------------------------------------------------------------------------------- sentences of summaries

_WORDS = re.compile(r"[^\W_]+|_|[^\w\s]")
_TINY = 2.2250738585072014e-308


def summary_tokens(text: str) -> list[str]:
    """Tokens of a sentence: lower case, runs of letters and digits, every other character alone.

    This is what the official chain (punctuation split off, then the normalisation of mteval-v11a) comes to: after its
    first step no two marks touch, so that of all later rules only the one that parts words at `_` finds anything.
    """
    return _WORDS.findall(text.strip().lower())


@lru_cache(maxsize=1 << 16)
def _log(found: int, possible: int) -> float:
    # Of natural numbers, to which the tiny number adds nothing unless they are 0; in this order, or the last bit moves.
    return math.log(found + _TINY) - math.log(possible + _TINY)


def sentence_bleu(matches: Sequence[int], hyp_length: int, ref_length: int) -> float:
    """Smoothed BLEU-4 of one sentence, 0 to 1; ref_length: of the shortest reference."""
    log = 0.0
    for order in range(ORDERS):
        smooth = 1 if order else 0
        total = max(hyp_length - order, 0)
        log += _log(matches[order] + smooth, total + smooth)
    log /= 4
    return math.exp(log + min(0.0, 1 - float(ref_length + 1) / (hyp_length + 1)))


def smoothed_bleu4(references: Sequence[str | Sequence[str]], hypotheses: Sequence[str]) -> float:
    """Mean smoothed BLEU-4 of sentences, percent, added in the order given; an item of references is one or several.

    Raises ValueError where there are not as many items as hypotheses, or none.
    """
    _same_count(references, hypotheses)
    if not hypotheses:
        raise ValueError("no sentence to score")
    several = [k for k, item in enumerate(references) if not isinstance(item, str)]
    firsts = [item if isinstance(item, str) else item[0] for item in references]
    (hyps, refs), _ = encode(map(summary_tokens, hypotheses), map(summary_tokens, firsts))
    matches, lengths, shortest = ngram_matches(hyps, refs).tolist(), hyps.lengths().tolist(), refs.lengths().tolist()
    for k in several:
        tokens = [summary_tokens(text) for text in references[k]]
        matches[k] = _clipped_by_the_best(summary_tokens(hypotheses[k]), tokens)
        shortest[k] = min(map(len, tokens))
    score = 0.0
    for found, length, shortest_length in zip(matches, lengths, shortest, strict=True):
        score += sentence_bleu(found, length, shortest_length)
    return score * 100.0 / len(hypotheses)


def _clipped_by_the_best(hypothesis: list[str], references: list[list[str]]) -> list[int]:
    found = []
    for order in range(1, ORDERS + 1):
        ours, *theirs = (
            Counter(zip(*(tokens[k:] for k in range(order)), strict=False)) for tokens in (hypothesis, *references)
        )
        found.append(sum(min(n, max(counts[gram] for counts in theirs)) for gram, n in ours.items()))
    return found


# ------------------------------------------------------------------------------------------------- edit similarity

_LITERAL = re.compile(r"<(?:STR|NUM|CHAR)_LIT:(.*?)>", re.DOTALL)


def without_literals(code: str) -> str:
    """Code with the place holders of literals put back: `<NUM_LIT>` is 0, `<STR_LIT:x>` is x, others are nothing."""
    code = code.replace("<NUM_LIT>", "0").replace("<STR_LIT>", "").replace("<CHAR_LIT>", "")
    return _LITERAL.sub(r"\1", code)


def edit_similarities(
    references: Sequence[str], hypotheses: Sequence[str], backend: EditBackend = "difflib"
) -> list[int]:
    """By pair, percent: how alike two strings are, rounded half to even.

    difflib: Ratcliff-Obershelp with its rule for popular characters, the hypothesis being the first string;
    levenshtein: 1 - insertions and deletions / length of both. Equal strings are 100, one empty string is 0.
    Raises ValueError for another back end, or where there are not as many references as hypotheses.
    """
    if backend not in EDIT_BACKENDS:
        raise ValueError(f"edit back end is {backend!r}, expected one of {', '.join(EDIT_BACKENDS)}")
    _same_count(references, hypotheses)
    if backend == "levenshtein":
        return _indel_percents(references, hypotheses)
    scores = [100 if one == other else 0 for one, other in zip(hypotheses, references, strict=True)]
    open_pairs = [k for k, score in enumerate(scores) if not score and hypotheses[k] and references[k]]
    ours, theirs = [hypotheses[k] for k in open_pairs], [references[k] for k in open_pairs]
    for k, ratio in zip(open_pairs, _difflib_ratios(ours, theirs), strict=True):
        scores[k] = round(100 * ratio)
    return scores


def edit_similarity(references: Sequence[str], hypotheses: Sequence[str], backend: EditBackend = "difflib") -> float:
    """Mean of `edit_similarities`, percent. Raises ValueError as it does, and where there is no pair."""
    scores = edit_similarities(references, hypotheses, backend)
    if not scores:
        raise ValueError("no pair to compare")
    return sum(scores) / len(scores)


def _indel_percents(references: Sequence[str], hypotheses: Sequence[str]) -> list[int]:
    from rapidfuzz.distance import Indel
    from rapidfuzz.process import cpdist

    if not hypotheses:
        return []
    # Equal strings are 1 here and a lone empty one 0, so that no pair needs a rule of its own.
    ratios = cpdist(hypotheses, references, scorer=Indel.normalized_similarity, dtype=np.float64)
    percents: list[int] = np.rint(100 * ratios).astype(int).tolist()
    return percents


def _difflib_ratios(ours: list[str], theirs: list[str]) -> list[float]:
    compiled = library()
    if compiled is None:
        return [difflib.SequenceMatcher(None, a, b).ratio() for a, b in zip(ours, theirs, strict=True)]
    (a, a_at), (b, b_at) = _code_points(ours), _code_points(theirs)
    sums = np.zeros(len(ours), dtype=np.int64)
    compiled.matched_characters(*map(ctypes.c_void_p, (_at(a), _at(a_at), _at(b), _at(b_at), len(ours), _at(sums))))
    if (sums < 0).any():
        raise MemoryError("no memory to compare two strings")
    lengths = np.diff(a_at) + np.diff(b_at)
    return [2.0 * found / length for found, length in zip(sums.tolist(), lengths.tolist(), strict=True)]


def _code_points(texts: list[str]) -> tuple[NDArray[np.uint32], Ints]:
    points = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    at = np.zeros(len(texts) + 1, dtype=np.int64)
    np.cumsum([len(text) for text in texts], out=at[1:])
    return points, at


# --------------------------------------------------------------------------------------------------- classification


@dataclass(frozen=True)
class Counts:
    """Pairs (answer, prediction) of a yes-no question; positive is 1."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int

    @property
    def precision(self) -> float:
        """0 where nothing was predicted to be positive."""
        predicted = self.true_positive + self.false_positive
        return self.true_positive / predicted if predicted else 0.0

    @property
    def recall(self) -> float:
        """0 where nothing is positive."""
        positive = self.true_positive + self.false_negative
        return self.true_positive / positive if positive else 0.0

    @property
    def f1(self) -> float:
        """0 where precision and recall are."""
        counted = 2 * self.true_positive + self.false_positive + self.false_negative
        return 2 * self.true_positive / counted if counted else 0.0

    @property
    def accuracy(self) -> float:
        """Raises ZeroDivisionError where there is no pair."""
        right = self.true_positive + self.true_negative
        return right / (right + self.false_positive + self.false_negative)

    @property
    def undefined(self) -> tuple[str, ...]:
        """Names of the scores that are 0 only because nothing defines them."""
        names = []
        if not self.true_positive + self.false_positive:
            names.append("precision")
        if not self.true_positive + self.false_negative:
            names.append("recall")
        return tuple(names)


def binary_counts(answers: ArrayLike, predictions: ArrayLike) -> Counts:
    """Labels 0 or 1, (n,) each."""
    gold, said = np.asarray(answers, dtype=bool), np.asarray(predictions, dtype=bool)
    both = int((gold & said).sum())
    return Counts(both, int(said.sum()) - both, int(gold.sum()) - both, int((~gold & ~said).sum()))


def accuracy(answers: Sequence[Any], predictions: Sequence[Any]) -> float:
    """Share of equal labels. Raises ValueError where there is none."""
    _same_count(answers, predictions)
    if not len(answers):
        raise ValueError("no label to compare")
    return sum(a == b for a, b in zip(answers, predictions, strict=True)) / len(answers)


def token_matches(answers: Sequence[str], predictions: Sequence[str]) -> Ints:
    """(lines, 4): tokens of the answer, of the prediction; of the answer's those that count, and are met in place.

    Tokens of structure do not count. Lines hold no line ends. Raises ValueError where they are not as many.
    """
    _same_count(answers, predictions)
    compiled = library()
    texts = ["\n".join(lines) + "\n" for lines in (answers, predictions)]
    if compiled is not None and len(answers) and all(text.isascii() or not _OTHER_SPACE.search(text) for text in texts):
        counts = np.zeros((len(answers), 4), dtype=np.int64)
        one, other = (text.encode("utf-8", "surrogatepass") for text in texts)
        compiled.token_matches(one, other, ctypes.c_int64(len(answers)), ctypes.c_void_p(_at(counts)))
        return counts
    rows = []
    for gold, said in zip(map(str.split, answers), map(str.split, predictions), strict=True):
        scored = [(a, b) for a, b in zip_longest(gold, said) if a is not None and a not in UNSCORED]
        rows.append((len(gold), len(said), len(scored), sum(a == b for a, b in scored)))
    return np.array(rows, dtype=np.int64).reshape(-1, 4)


# -------------------------------------------------------------------------------------------------------- retrieval


def average_precision(relevant: set[Any] | frozenset[Any], ranked: Sequence[Any]) -> float:
    """Sum of the precisions at the ranks of relevant ids, over their number R; 0 without any."""
    if not relevant:
        return 0.0
    ranks = np.flatnonzero(np.fromiter(map(relevant.__contains__, ranked), dtype=bool, count=len(ranked))) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).sum() / len(relevant))


def map_at_r(vectors: Any, labels: ArrayLike, chunk: int = 512, device: str | None = None) -> float:
    """MAP@R of a corpus in which every item asks for the others of its label: by inner product, itself left out.

    vectors: (n, dimensions), dense or a scipy sparse matrix; labels: (n,). Ties go to the item that comes first.
    Memory is chunk x n products, not n x n. A label with one item only has no query. device: of torch, for a GPU.
    Raises ValueError where shapes do not fit or no label has two items.
    """
    kinds = np.unique(np.asarray(labels), return_inverse=True)[1]
    sparse = hasattr(vectors, "tocsr")
    dense = vectors.tocsr() if sparse else np.ascontiguousarray(np.asarray(vectors))
    n = dense.shape[0]
    if dense.ndim != 2 or len(kinds) != n:
        raise ValueError(f"vectors have shape {dense.shape}, expected ({len(kinds)}, dimensions): one row a label")
    sizes = np.bincount(kinds)
    if not len(sizes) or sizes.max() < 2:
        raise ValueError("no label has two items, so that there is nothing to find")
    most = int(sizes.max()) - 1
    other = _Products(dense, sparse, device)
    total, queries = 0.0, 0
    ranks = np.arange(1, most + 1)
    for first in range(0, n, chunk):
        rows = np.arange(first, min(first + chunk, n))
        asked = rows[sizes[kinds[rows]] > 1]
        if not len(asked):
            continue
        best = other.best(asked, most)
        hits = kinds[best] == kinds[asked][:, None]
        hits &= ranks <= (sizes[kinds[asked]] - 1)[:, None]
        precision = np.cumsum(hits, axis=1) / ranks
        total += float(((precision * hits).sum(1) / (sizes[kinds[asked]] - 1)).sum())
        queries += len(asked)
    return total / queries


class _Products:
    """Inner products of rows with all rows, a chunk at a time, and the best of them."""

    def __init__(self, vectors: Any, sparse: bool, device: str | None) -> None:
        self.sparse, self.vectors = sparse, vectors
        self.turned = vectors.T.tocsr() if sparse else None
        self.device = None if sparse else device
        if self.device is not None:
            import torch

            self.vectors = torch.as_tensor(vectors, device=device)

    def best(self, rows: Ints, most: int) -> Ints:
        """(rows, most): indices by falling product, without the row itself; ties by index."""
        if self.device is not None:
            return self._by_torch(rows, most)
        # Negative products, so that the best are the least.
        far = -(self.vectors[rows] @ self.turned).toarray() if self.sparse else -self.vectors[rows] @ self.vectors.T
        if far.dtype.kind != "f":
            far = far.astype(np.float64)
        far[np.arange(len(rows)), rows] = np.inf
        if most >= far.shape[1] - 1:
            return np.argsort(far, axis=1, kind="stable")[:, :most]
        found = np.argpartition(far, most - 1, axis=1)[:, :most]
        found.sort(axis=1)
        near = np.take_along_axis(far, found, axis=1)
        bar = near.max(1)
        for k in np.flatnonzero((far == bar[:, None]).sum(1) > (near == bar[:, None]).sum(1)):
            # Of those that are as far as the last, the ones that come first.
            closer = np.flatnonzero(far[k] < bar[k])
            found[k] = np.sort(np.concatenate([closer, np.flatnonzero(far[k] == bar[k])[: most - len(closer)]]))
            near[k] = far[k, found[k]]
        return np.take_along_axis(found, np.argsort(near, axis=1, kind="stable"), axis=1)

    def _by_torch(self, rows: Ints, most: int) -> Ints:
        import torch

        index = torch.as_tensor(rows, device=self.device)
        scores = self.vectors[index] @ self.vectors.T
        scores[torch.arange(len(rows), device=self.device), index] = -torch.inf
        best = torch.argsort(scores, dim=1, descending=True, stable=True)[:, :most]
        found: Ints = best.cpu().numpy()
        return found


def reciprocal_rank(gold: Any, ranked: Sequence[Any]) -> float:
    """1 / rank of the first that is `gold`; 0 where none is."""
    try:
        return 1.0 / (ranked.index(gold) + 1)
    except ValueError:
        return 0.0


def mrr(gold: Sequence[Any], ranked: Sequence[Sequence[Any]]) -> float:
    """Mean reciprocal rank. Raises ValueError where there is no query."""
    _same_count(gold, ranked)
    if not len(gold):
        raise ValueError("no query to score")
    return sum(map(reciprocal_rank, gold, ranked)) / len(gold)


def mean(values: Sequence[float]) -> float:
    """Raises ValueError where there is none."""
    if not len(values):
        raise ValueError("no value to average")
    return sum(values) / len(values)


def exact_match(references: Sequence[str], hypotheses: Sequence[str], by_tokens: bool = False) -> float:
    """Share of equal pairs: without white space at the ends, or token by token."""
    _same_count(references, hypotheses)
    if not references:
        raise ValueError("no pair to compare")
    if by_tokens:
        return sum(a.split() == b.split() for a, b in zip(references, hypotheses, strict=True)) / len(references)
    return sum(a.strip() == b.strip() for a, b in zip(references, hypotheses, strict=True)) / len(references)


def _same_count(references: Sequence[Any], hypotheses: Sequence[Any]) -> None:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses: expected one for each")


__all__ = [
    "Bleu",
    "Counts",
    "binary_counts",
    "bleu",
    "edit_similarity",
    "exact_match",
    "map_at_r",
    "mrr",
    "smoothed_bleu4",
]
