"""CodeBLEU: n-grams, n-grams weighted by keywords, syntax trees and data flow, a quarter each.

    codebleu(["int a = b;"], ["int c = b;"], "java").score

The definition is that of the benchmark's script with one change that makes it a function of its input: names are
de-duplicated in order of appearance, where the script's sets follow the hash seed of the run. Scores depend on the
grammars; `grammar` names their versions.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from systems.codexglue import metrics
from systems.codexglue.dataflow import data_flow, matches, normalised
from systems.codexglue.languages import language, other_than_pinned, parser, versions
from systems.codexglue.trees import Compat, plant, shared_subtrees, without_comments

WEIGHTS = (0.25, 0.25, 0.25, 0.25)


class CodeBleuWarning(UserWarning):
    """A part of the score says less than it seems to."""


@dataclass(frozen=True)
class CodeBleu:
    """score and its parts, 0 to 1; n: pairs; grammar: versions of tree-sitter and of the language's grammar;
    parse_errors: snippets (of 2 n) that are not whole programs of the language.
    """

    ngram: float
    weighted: float
    syntax: float
    dataflow: float
    score: float
    n: int
    grammar: dict[str, str]
    parse_errors: int


@dataclass(frozen=True)
class Counted:
    """Of some pairs: sub-trees matched and in all, records of data flow matched and in all, snippets with errors."""

    trees: int
    all_trees: int
    flows: int
    all_flows: int
    errors: int

    def __add__(self, other: Counted) -> Counted:
        return Counted(*(a + b for a, b in zip(_fields(self), _fields(other), strict=True)))


def _fields(counted: Counted) -> tuple[int, ...]:
    return counted.trees, counted.all_trees, counted.flows, counted.all_flows, counted.errors


def codebleu(
    references: Sequence[str], hypotheses: Sequence[str], lang: str, weights: Sequence[float] = WEIGHTS,
    compat: Compat = "official", jobs: int = 1,
) -> CodeBleu:  # fmt: skip
    """CodeBLEU of a corpus, one reference each. weights: of n-grams, weighted n-grams, syntax, data flow.

    compat: as for `trees.Compat`; "pypi" is what the package codebleu does.
    jobs: processes for trees and data flow; the result does not depend on it.
    Warns (`CodeBleuWarning`) of grammars that are not the pinned ones, and where no reference has a data flow: that
    part is 0 then. Raises KeyError for a language that is not known; ValueError for unequal counts, no pair, or
    weights that are not four.
    """
    chosen = language(lang)
    if len(references) != len(hypotheses) or not len(references):
        raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses: expected one for each")
    if len(weights) != 4:
        raise ValueError(f"{len(weights)} weights, expected 4: n-gram, weighted, syntax, data flow")
    if strange := other_than_pinned(lang):
        told = ", ".join(f"{package} {version}" for package, version in strange.items())
        warnings.warn(f"CodeBLEU by {told}: not the grammars that scores were recorded with", CodeBleuWarning, 2)
    references, hypotheses = [text.strip() for text in references], [text.strip() for text in hypotheses]

    (hyps, refs), vocabulary = metrics.encode(hypotheses, references)
    found = metrics.ngram_matches(hyps, refs)
    ngram = metrics.nltk_bleu(found, hyps.lengths(), refs.lengths())
    importance = np.array([1.0 if token in chosen.keywords else 0.2 for token in vocabulary])
    weighted = metrics.weighted_recall(hyps, refs, importance, found)

    counted = _counted(references, hypotheses, lang, compat, jobs)
    syntax = counted.trees / counted.all_trees
    if counted.all_flows:
        flow = counted.flows / counted.all_flows
    else:
        flow = 0.0
        warnings.warn("no reference has a data flow: that part of CodeBLEU is 0", CodeBleuWarning, 2)
    parts = (ngram, weighted, syntax, flow)
    score = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    return CodeBleu(*parts, score, len(references), versions(lang), counted.errors)


def _counted(references: Sequence[str], hypotheses: Sequence[str], lang: str, compat: Compat, jobs: int) -> Counted:
    pairs = len(references)
    if jobs < 2 or pairs < 2 * jobs:
        return count_pairs(references, hypotheses, lang, compat)
    cuts = [pairs * k // jobs for k in range(jobs + 1)]
    with ProcessPoolExecutor(jobs) as pool:
        parts = [
            pool.submit(count_pairs, references[a:b], hypotheses[a:b], lang, compat)
            for a, b in pairwise(cuts)
        ]
        return sum((part.result() for part in parts), Counted(0, 0, 0, 0, 0))


def count_pairs(references: Sequence[str], hypotheses: Sequence[str], lang: str, compat: Compat) -> Counted:
    """Trees and data flows of pairs. Pairs that are equal without comments are parsed once: all of them match."""
    collecting = gc.isenabled()
    gc.disable()  # trees are many objects without cycles, which the collector would walk again and again
    try:
        return _count_pairs(references, hypotheses, lang, compat)
    finally:
        if collecting:
            gc.enable()


def _count_pairs(references: Sequence[str], hypotheses: Sequence[str], lang: str, compat: Compat) -> Counted:
    rules, parse = language(lang).rules, parser(lang)
    trees = all_trees = flows = all_flows = errors = 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        reference, hypothesis = (without_comments(code, lang, compat) for code in (reference, hypothesis))
        ours = plant(parse, reference, compat)
        gold = normalised(data_flow(ours, rules))
        own = ours.subtrees()
        all_trees += own
        all_flows += len(gold)
        if reference == hypothesis:
            trees += own
            flows += len(gold)
            errors += 2 * ours.errors
            continue
        theirs = plant(parse, hypothesis, compat)
        errors += ours.errors + theirs.errors
        trees += shared_subtrees(ours, theirs)
        if gold:
            flows += matches(gold, normalised(data_flow(theirs, rules)))
    return Counted(trees, all_trees, flows, all_flows, errors)
