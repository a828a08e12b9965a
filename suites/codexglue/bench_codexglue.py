"""Scoring as a workload, with its scores as a digest; and beside the strongest peers, on published outputs."""

import difflib
import inspect
import json
import tokenize
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from suites.codexglue import oracles
from systems.codexglue import codebleu, evaluate, metrics

pytestmark = pytest.mark.component("model")


def functions(count):
    """Functions of the standard library, each with a damaged copy: (originals, copies)."""
    import argparse
    import ast
    import logging
    import tarfile

    random = np.random.default_rng(0)
    originals, copies = [], []
    for module in (argparse, tarfile, logging, ast, difflib, tokenize):
        lines = inspect.getsource(module).split("\n")
        starts = [k for k, line in enumerate(lines) if line.lstrip().startswith("def ")]
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            code = inspect.cleandoc("\n".join(lines[start:end]))
            words = code.split(" ")
            for at in random.integers(0, len(words), 3):
                words[at] = "value"
            originals.append(code)
            copies.append(" ".join(words))
    return originals[:count], copies[:count]


def test_scoring(measure):
    """BLEU, edit similarity and CodeBLEU of 200 functions; every healthy machine gives the same digits."""
    originals, copies = functions(200)

    def score():
        return (
            metrics.bleu(originals, copies).score,
            metrics.smoothed_bleu4(originals, copies),
            metrics.edit_similarity(originals, copies),
            codebleu(originals, copies, "python", compat="pypi").score,
        )

    scores = measure(score, work=float(len(originals)), unit="op/s")
    measure.digest("scores", repr(scores).encode())


def test_retrieval(measure):
    """MAP@R of 3,000 vectors by products of a chunk with all."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((3000, 256), dtype=np.float32)
    labels = random.integers(0, 30, 3000)
    measure(lambda: metrics.map_at_r(vectors, labels), work=3000.0**2 * 256 * 2, unit="FLOP/s")


# ------------------------------------------------------------------------------------------------ beside the peers


def lines(path):
    return path.read_text(encoding="utf-8").split("\n")[:-1]


@pytest.fixture
def repairs(data, measure):
    folder = data("codexglue/code_refinement/small")
    count = 5835 if measure.full else 300
    gold, said = lines(folder / "test.buggy-fixed.fixed"), lines(folder / "codebert.output")
    return [text.strip() for text in gold[:count]], [text.strip() for text in said[:count]]


def sacre(references, hypotheses):
    import sacrebleu

    return sacrebleu.corpus_bleu(hypotheses, [references], tokenize="none", force=True).score


@pytest.mark.slow
def test_bleu(measure, repairs):
    pytest.importorskip("sacrebleu", reason="a peer: pip install 'maat[peers]'")
    references, hypotheses = repairs

    def plain():
        return oracles.bleu([text.split() for text in references], [text.split() for text in hypotheses])

    contenders = {
        "maat": lambda: metrics.bleu(references, hypotheses).score,
        "dictionary": plain,
        "sacrebleu": lambda: sacre(references, hypotheses) / 100,  # smooths unigrams not at all, so only nearly equal
    }
    speed = measure.versus(contenders, check=lambda ours, theirs: abs(ours - theirs) < 1e-3)
    speed.over("dictionary").at_least(8)
    speed.over("sacrebleu").at_least(5)


@pytest.mark.slow
def test_smoothed_bleu4(measure, data):
    folder = data("codexglue/parity/code_summarization")
    gold = [line.split("\t")[1] for line in lines(folder / "gold.txt")]
    said = [[*line.strip().split("\t"), ""][1] for line in lines(folder / "predictions.txt")]
    times = 23 if measure.full else 1
    gold, said = (gold * times)[:10_000], (said * times)[:10_000]

    def plain():
        total = 0.0
        for reference, hypothesis in zip(gold, said, strict=True):
            ours, theirs = oracles.summary_tokens(hypothesis), oracles.summary_tokens(reference)
            found = [sum((oracles.grams(ours, order) & oracles.grams(theirs, order)).values()) for order in range(1, 5)]
            total += metrics.sentence_bleu(found, len(ours), len(theirs))
        return total * 100.0 / len(said)

    speed = measure.versus({"maat": lambda: metrics.smoothed_bleu4(gold, said), "official rules": plain})
    speed.over("official rules").at_least(4)


@pytest.mark.slow
@pytest.mark.parametrize("backend", metrics.EDIT_BACKENDS)
def test_edit_similarity(measure, repairs, backend):
    references, hypotheses = repairs
    pairs = list(zip(references, hypotheses, strict=True))

    def one_by_one(ratio):
        return [100 if a == b else round(100 * ratio(b, a)) if a and b else 0 for a, b in pairs]

    contenders = {"maat": lambda: metrics.edit_similarities(references, hypotheses, backend)}
    if backend == "difflib":
        cydifflib = pytest.importorskip("cydifflib", reason="a peer: pip install 'maat[peers]'")
        contenders["difflib"] = lambda: one_by_one(lambda a, b: difflib.SequenceMatcher(None, a, b).ratio())
        contenders["cydifflib"] = lambda: one_by_one(lambda a, b: cydifflib.SequenceMatcher(None, a, b).ratio())
    else:
        from rapidfuzz.distance import Indel

        contenders["rapidfuzz in a loop"] = lambda: one_by_one(Indel.normalized_similarity)
    speed = measure.versus(contenders, check=lambda ours, theirs: ours == theirs)
    if backend == "difflib":
        speed.over("difflib").at_least(4)
        speed.over("cydifflib").at_least(1)
    else:
        speed.over("rapidfuzz in a loop").at_least(1)


@pytest.mark.slow
@pytest.mark.parametrize("lang", ["c_sharp", "java"])
def test_codebleu(measure, data, repairs, lang):
    peer = pytest.importorskip("codebleu", reason="a peer: pip install --no-deps codebleu==0.7.0")
    references, hypotheses = repairs
    if lang == "c_sharp":
        folder = data("codexglue/code_translation")
        count = 1000 if measure.full else 100
        references = lines(folder / "test.java-cs.txt.cs")[:count]
        hypotheses = lines(folder / "roberta_code.java-cs.output")[:count]
    contenders = {
        "one process": lambda: codebleu(references, hypotheses, lang).score,
        "codebleu 0.7.0": lambda: peer.calc_codebleu(references, hypotheses, lang)["codebleu"],
        "two processes": lambda: codebleu(references, hypotheses, lang, jobs=2).score,
    }
    speed = measure.versus(contenders, check=lambda ours, theirs: abs(ours - theirs) < 2e-3)
    speed.over("codebleu 0.7.0").at_least(3)
    speed.over("codebleu 0.7.0", of="two processes").at_least(5)


@pytest.mark.slow
def test_map_at_r(measure):
    """12,000 vectors of 768 numbers, 24 labels of 500: a chunk at a time beside one sort of all."""
    n, width = (12_000, 768) if measure.full else (1_200, 64)
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(24), n // 24)
    vectors = random.standard_normal((n, width), dtype=np.float32)
    vectors += random.standard_normal((24, width), dtype=np.float32)[labels] * 0.2

    def full_sort():
        scores = vectors @ vectors.T
        np.fill_diagonal(scores, -np.inf)
        count = n // 24 - 1
        best = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        hits = labels[best] == labels[:, None]
        precision = np.cumsum(hits, axis=1) / np.arange(1, count + 1)
        return float(((precision * hits).sum(1) / count).mean())

    speed = measure.versus({"maat": lambda: metrics.map_at_r(vectors, labels), "full sort": full_sort})
    speed.over("full sort").at_least(3)
    if measure.full:
        peaks = []
        for run in (lambda: metrics.map_at_r(vectors, labels), full_sort):
            tracemalloc.start()
            run()
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        measure.record("peak memory", [peaks[0] / peaks[1]], "1", better="lower")
        assert peaks[0] <= peaks[1] / 8


@pytest.mark.slow
def test_rankings_from_files(measure, tmp_path):
    """12,000 queries of 499 ids: read, checked and scored, beside the plain reader that checks nothing."""
    queries, most = (12_000, 499) if measure.full else (400, 99)
    random = np.random.default_rng(0)
    with (tmp_path / "answers").open("w") as gold, (tmp_path / "predictions").open("w") as said:
        for query in range(queries):
            ids = random.choice(queries, most + 1, replace=False)
            ids = ids[ids != query][:most]
            gold.write(json.dumps({"index": str(query), "answers": [str(k) for k in ids]}) + "\n")
            others = np.delete(np.arange(queries), query)[: most // 2]  # half of what is predicted is right by chance
            ranked = random.permutation(np.unique(np.concatenate([ids[most // 2 :], others]))[:most])
            ranked = ranked if len(ranked) == most else ids
            said.write(json.dumps({"index": str(query), "answers": [str(k) for k in ranked]}) + "\n")

    def plain():
        gold, said = {}, {}
        for name, rows in (("answers", gold), ("predictions", said)):
            with (tmp_path / name).open() as file:
                for line in file:
                    row = json.loads(line.strip())
                    rows[row["index"]] = row["answers"]
        total = []
        for query, ids in gold.items():
            hits, precisions = 0, []
            wanted = set(ids)
            for rank, item in enumerate(said[query]):
                if item in wanted:
                    hits += 1
                    precisions.append(hits / (rank + 1))
            total.append(np.sum(precisions) / len(ids))
        return round(float(np.mean(total)), 4)

    speed = measure.versus({
        "maat": lambda: evaluate("clone_detection_poj104", tmp_path / "answers", tmp_path / "predictions")["map@r"],
        "plain": plain,
    })  # fmt: skip
    speed.over("plain").at_least(3)


@pytest.mark.slow
def test_tokens_from_files(measure, tmp_path):
    """A million tokens: read, checked and scored, beside the plain loop."""
    rows = 5000 if measure.full else 200
    random = np.random.default_rng(0)
    words = np.array(["self", ".", "x", "(", ")", "<EOL>", "=", "return", "<NUM_LIT>", "name"])
    gold, said = (words[random.integers(0, 10, (rows, 200))] for _ in range(2))
    for name, table in (("answers", gold), ("predictions", said)):
        (tmp_path / name).write_text("".join(f"<s> {' '.join(row)} </s>\n" for row in table.tolist()))

    def plain():
        right = total = 0
        with (tmp_path / "answers").open() as one, (tmp_path / "predictions").open() as other:
            for a, b in zip(one, other, strict=True):
                for x, y in zip(a.split(), b.split(), strict=True):
                    if x not in ["<s>", "</s>", "<EOL>", "<pad>"]:
                        total += 1
                        right += x == y
        return round(100 * right / total, 2)

    speed = measure.versus({
        "maat": lambda: evaluate("code_completion_token", tmp_path / "answers", tmp_path / "predictions")["accuracy"],
        "plain": plain,
    })  # fmt: skip
    speed.over("plain").at_least(3)


@pytest.mark.slow
def test_labels_from_files(measure, tmp_path):
    """224,415 rows: read, checked and scored, beside the plain loop."""
    rows = 224_415 if measure.full else 5_000
    random = np.random.default_rng(0)
    names = np.array(["string", "number", "void", "Observable", "any"])
    for name in ("answers", "predictions"):
        labels = names[random.integers(0, 5, rows)].tolist()
        (tmp_path / name).write_text("".join(f"{k}\t{label}\n" for k, label in enumerate(labels)))

    def plain():
        tables = []
        for name in ("answers", "predictions"):
            table = {}
            with (tmp_path / name).open() as file:
                for line in file:
                    key, label = line.strip().split("\t")
                    table[key] = label
            tables.append(table)
        gold, said = tables
        right = []
        for key in gold:
            if key not in said:
                raise KeyError(key)
            right.append(gold[key] == said[key])
        return float(np.mean(right))

    speed = measure.versus({
        "maat": lambda: evaluate("type_prediction", tmp_path / "answers", tmp_path / "predictions")["accuracy"],
        "plain": plain,
    })  # fmt: skip
    speed.over("plain").at_least(1)


@pytest.mark.slow
def test_everything(measure, data):
    """All parity files, CodeBLEU included, on two cores."""
    from suites.codexglue.test_acceptance import VARIANTS

    folder = data("codexglue/parity")
    rows = json.loads((folder / "parity.json").read_text())

    def score():
        found = Counter()
        for row in rows:
            variant = next((one for text, one in VARIANTS.items() if text in row["note"]), None)
            files = (folder / file for file in row["files"][-2:])
            found += Counter(evaluate(row["task"], *files, variant, jobs=2).exact)
        return found

    assert measure(score, metric="seconds")["bleu"] > 0


@pytest.mark.component("model")
@pytest.mark.parametrize(
    "family",
    [pytest.param("encoder", marks=pytest.mark.slow), "causal", pytest.param("seq2seq", marks=pytest.mark.slow)],
)
def test_train_step(measure, device, family):
    """Steps of each family on generated functions: subwords a second, padding not counted."""
    from suites.codexglue import miniature
    from systems.codexglue.recipes import model_for, train_model
    from systems.codexglue.training import Budget

    name = {"encoder": "defect_detection", "causal": "text_to_code", "seq2seq": "code_translation"}[family]
    count = 512 if measure.full else 32
    rows = (
        [{"source": row["java"], "target": row["cs"]} for row in miniature.pairs(count)]
        if family == "seq2seq"
        else miniature.rows_of(name, count)
    )
    model = model_for(name, rows).to(device)
    rates = []
    for _ in range(5 if measure.full else 1):
        done = train_model(name, model, rows, Budget(steps=4 if measure.full else 1))
        rates.append(done.tokens / done.seconds)
    measure.record("rate", rates, "token/s")
