"""Metrics against their plain definitions, over any text; CodeBLEU over code that mutates."""

import difflib
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suites.codexglue import oracles
from systems.codexglue import codebleu, metrics
from systems.codexglue.dataflow import data_flow, matches, normalised
from systems.codexglue.files import read
from systems.codexglue.languages import LANGUAGES, parser
from systems.codexglue.platform import evaluate, validate
from systems.codexglue.tasks import TASKS, ValidationError, task
from systems.codexglue.trees import plant, shared_subtrees

TOKENS = st.one_of(st.sampled_from(["a", "b", "c", ";", "("]), st.text(min_size=1, max_size=4).filter(str.split))
SENTENCE = st.lists(TOKENS, max_size=12).map(" ".join)
PAIRS = st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=8)


@settings(max_examples=300)
@given(PAIRS)
def test_bleu_is_that_of_its_definition_to_the_last_bit(pairs):
    references, hypotheses = zip(*pairs, strict=True)
    want = oracles.bleu([text.split() for text in references], [text.split() for text in hypotheses])
    assert metrics.bleu(references, hypotheses).score == want


@given(PAIRS)
def test_python_counts_as_the_kernel_does(pairs):
    references, hypotheses = zip(*pairs, strict=True)
    (hyps, refs), vocabulary = metrics.encode(hypotheses, references)
    weights = np.array([1.0 if len(word) == 1 else 0.2 for word in vocabulary])
    compiled = metrics.ngram_matches(hyps, refs), metrics.weighted_unigrams(hyps, refs, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "library", lambda: None)
        plain = metrics.ngram_matches(hyps, refs), metrics.weighted_unigrams(hyps, refs, weights)
    np.testing.assert_array_equal(compiled[0], plain[0])
    np.testing.assert_allclose(compiled[1], plain[1], rtol=1e-12)


@settings(max_examples=300)
@given(st.text(max_size=60))
def test_summary_tokens_are_those_of_the_official_rules(text):
    assert metrics.summary_tokens(text) == oracles.summary_tokens(text)


@pytest.mark.parametrize(
    "text", ["a_b __init__ x-1 -2 3,4 5. .6", "&quot;x&quot; &lt;skipped&gt; <skipped>", "İ ß ﬁ", ""]
)
def test_summary_tokens_of_odd_text(text):
    assert metrics.summary_tokens(text) == oracles.summary_tokens(text)


@given(PAIRS, st.randoms())
def test_order_of_rows_does_not_matter(pairs, random):
    mixed = list(pairs)
    random.shuffle(mixed)
    (a, b), (c, d) = zip(*pairs, strict=True), zip(*mixed, strict=True)
    assert metrics.bleu(a, b).score == metrics.bleu(c, d).score
    assert metrics.smoothed_bleu4(a, b) == pytest.approx(metrics.smoothed_bleu4(c, d), abs=1e-12)


@given(st.lists(SENTENCE.filter(str.split), min_size=1, max_size=6))
def test_equal_files_score_full_marks(texts):
    assert metrics.bleu(texts, texts).score == 1.0
    assert metrics.exact_match(texts, texts) == 1.0
    assert metrics.edit_similarity(texts, texts) == 100.0


@given(PAIRS)
def test_scores_stay_in_their_range(pairs):
    references, hypotheses = zip(*pairs, strict=True)
    assert 0 <= metrics.bleu(references, hypotheses).score <= 1
    assert 0 <= metrics.smoothed_bleu4(references, hypotheses) <= 100 + 1e-9
    for backend in metrics.EDIT_BACKENDS:
        assert 0 <= metrics.edit_similarity(references, hypotheses, backend) <= 100


@given(st.lists(SENTENCE, min_size=2, max_size=3), SENTENCE)
def test_several_references_are_clipped_by_the_best_of_them(references, hypothesis):
    several = metrics.smoothed_bleu4([references], [hypothesis])
    tokens = metrics.summary_tokens(hypothesis)
    best = [metrics.summary_tokens(text) for text in references]
    found = []
    for order in range(1, 5):
        union = oracles.grams(best[0], order)
        for other in best[1:]:
            union |= oracles.grams(other, order)
        found.append(sum((oracles.grams(tokens, order) & union).values()))
    assert several == metrics.sentence_bleu(found, len(tokens), min(map(len, best))) * 100.0


@given(st.lists(st.tuples(SENTENCE, SENTENCE, st.booleans()), min_size=1, max_size=5))
def test_tokens_are_matched_line_by_line(rows):
    marks = "<s> {} <EOL> </s>"
    gold = [" ".join(text.split()) for text, _, _ in rows]
    gold = [marks.format(text) if wrap else text for text, (_, _, wrap) in zip(gold, rows, strict=True)]
    said = [" ".join(text.split()) for _, text, _ in rows]
    want = []
    for a, b in zip(map(str.split, gold), map(str.split, said), strict=True):
        counted = [k for k, token in enumerate(a) if token not in {"<s>", "</s>", "<EOL>", "<pad>"}]
        want.append([len(a), len(b), len(counted), sum(k < len(b) and a[k] == b[k] for k in counted)])
    assert metrics.token_matches(gold, said).tolist() == want
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "library", lambda: None)
        assert metrics.token_matches(gold, said).tolist() == want


WORD = st.text(alphabet="abAB (){};=é\U0001f600", max_size=40)
LONG = st.integers(0, 2**32 - 1).map(
    lambda seed: "".join(np.random.default_rng(seed).choice(list("etaoin ();x"), size=230 + seed % 90))
)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.one_of(WORD, LONG), st.one_of(WORD, LONG)), min_size=1, max_size=4))
def test_edit_similarity_is_that_of_difflib(pairs):
    ours, theirs = zip(*pairs, strict=True)
    want = []
    for a, b in pairs:
        if a == b:
            want.append(100)
        else:
            want.append(round(100 * difflib.SequenceMatcher(None, a, b).ratio()) if a and b else 0)
    assert metrics.edit_similarities(theirs, ours) == want


@given(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=4))
def test_edit_similarity_by_insertions_and_deletions(pairs):
    want = []
    for a, b in pairs:
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            row, old = [i], row
            for j, y in enumerate(b, 1):
                row.append(old[j - 1] if x == y else 1 + min(old[j], row[j - 1]))
        want.append(100 if a == b else round(100 * (1 - row[-1] / (len(a) + len(b)))) if a and b else 0)
    assert metrics.edit_similarities([b for _, b in pairs], [a for a, _ in pairs], "levenshtein") == want


@given(st.sets(st.integers(0, 9), min_size=1), st.permutations(range(10)), st.lists(st.integers(10, 20), max_size=5))
def test_average_precision_and_a_wrong_tail(relevant, ranked, tail):
    value = metrics.average_precision(relevant, ranked)
    assert value == pytest.approx(oracles.average_precision(relevant, ranked))
    assert metrics.average_precision(relevant, [*ranked, *tail]) == value
    gold = min(relevant)
    assert metrics.reciprocal_rank(gold, [*ranked, *tail]) == metrics.reciprocal_rank(gold, ranked)


@settings(max_examples=60)
@given(st.integers(2, 30), st.integers(1, 4), st.integers(0, 99), st.sampled_from([1, 3, 512]), st.booleans())
def test_map_at_r_is_that_of_a_full_sort(n, kinds, seed, chunk, sparse):
    from scipy.sparse import csr_matrix

    random = np.random.default_rng(seed)
    vectors = random.integers(-2, 3, (n, 3)).astype(np.float32)  # with many ties
    labels = random.integers(0, kinds, n)
    if np.bincount(labels).max() < 2:
        labels[:2] = labels[0]
    values = []
    for query in range(n):
        relevant = {k for k in range(n) if labels[k] == labels[query] and k != query}
        if relevant:
            scores = vectors @ vectors[query]
            ranked = sorted((k for k in range(n) if k != query), key=lambda k: (-scores[k], k))[: len(relevant)]
            values.append(oracles.average_precision(relevant, ranked))
    found = metrics.map_at_r(csr_matrix(vectors) if sparse else vectors, labels, chunk)
    assert found == pytest.approx(sum(values) / len(values), abs=1e-12)


# ----------------------------------------------------------------------------------------------------- CodeBLEU

PROGRAMS = {
    "java": """public int METHOD_1 ( int a ) { int x = a ; for ( int i = 0 ; i < a ; i ++ ) { x = x + i ; if ( x > 3 )
        { a = x ; } else { x -= 1 ; } } for ( String s : names ) { use ( s , "text" ) ; } while ( x > 0 ) { x -- ; }
        // remark
        return x ; }""",
    "c_sharp": """public int M(int a){int x = a; foreach (var y in z) { x = y; } for (int i = 0; i < 3; i++) { x += i; }
        if (x > 1) { a = x; } return x ?? a;}""",
    "python": """def f(a, b=3, *c):
    x, y = a, b
    for i, j in zip(c, c):
        x += i  # more
        y = [k for k in c if k > x]
    while x:
        x -= 1
        if x > y: a = x
        elif y: a = y
        else: a = 0
    return f'{x}' + "é" """,
    "go": """func f(a int) int { var x int = a; for i := 0; i < a; i++ { x = x + i };
        if x > 1 { x++ } else { a = x }; return x }""",
    "php": """<?php function f($a, $b = 2) { $x = $a; foreach ($c as $v) { $x += $v; }
        for ($i = 0; $i < 3; $i++) { $x = $i; } if ($x) { $b = $x; } else { $x++; } return $x; }""",
    "javascript": """function f(a) { var x = a; for (var i = 0; i < 3; i++) { x += i; } while (x) { x--; }
        if (x) { let y = `t${x}`; } else { x = 1; } return x; }""",
    "ruby": """def f(a, b: 2)
  x = a
  for i in c do
    x += i
  end
  x, y = y, x
  if x then b = x elsif y then b = y else b = 0 end
  x = 1 unless y
  until x do x = 2 end
  x
end
""",
    "c": "int f(int a) { int x = a; for (int i = 0; i < a; i++) { x += i; } if (x) { a = x; } return x; }",
    "cpp": "int f(int a) { auto x = a; for (auto y : z) { x += y; } while (x) { x--; } cout << x << endl; return x; }",
}  # fmt: skip


@st.composite
def mutated(draw, code):
    words = code.split(" ")
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(words) - 1))
        act = draw(st.sampled_from(["drop", "swap", "double", "word"]))
        if act == "drop" and len(words) > 1:
            del words[at]
        elif act == "swap":
            other = draw(st.integers(0, len(words) - 1))
            words[at], words[other] = words[other], words[at]
        elif act == "double":
            words.insert(at, words[at])
        else:
            words[at] = draw(st.sampled_from(["x", "(", ")", "{", "}", "é", "@", ";", "\n", '"']))
    return " ".join(words)


@pytest.mark.parametrize("lang", LANGUAGES)
@settings(max_examples=40)
@given(st.data())
def test_subtrees_are_shared_where_s_expressions_are_equal(lang, data):
    codes = [data.draw(mutated(PROGRAMS[lang])) for _ in range(2)]
    trees = [plant(parser(lang), code) for code in codes]
    texts = [oracles.subtrees(parser(lang).parse(code.encode()).root_node) for code in codes]
    assert [tree.subtrees() for tree in trees] == list(map(len, texts))
    there = set(texts[1])
    assert shared_subtrees(*trees) == sum(text in there for text in texts[0])


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_program_is_its_own_equal(lang):
    code = PROGRAMS[lang]
    for compat in ("official", "pypi", "fixed"):
        score = codebleu([code], [code], lang, compat=compat)
        assert score.ngram == score.syntax == score.dataflow == 1.0
        assert score.weighted == pytest.approx(1.0)
    assert score.n == 1


@pytest.mark.parametrize("lang", LANGUAGES)
@settings(max_examples=40)
@given(st.data())
def test_any_code_has_a_score(lang, data):
    codes = [data.draw(mutated(PROGRAMS[lang])) for _ in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        score = codebleu(codes[:2], codes[2:], lang)
    assert all(0 <= part <= 1 + 1e-12 for part in (score.ngram, score.syntax, score.dataflow, score.score))


@pytest.mark.parametrize("lang", ["python", "java", "javascript"])
@settings(max_examples=40)
@given(st.data())
def test_renamed_variables_have_the_same_data_flow(lang, data):
    code = data.draw(mutated(PROGRAMS[lang]))
    renamed = re.sub(r"\bx\b", "q", code)  # as long as before: recovery from errors goes by length
    rules, parse = LANGUAGES[lang].rules, parser(lang)
    flows = [normalised(data_flow(plant(parse, text, "fixed"), rules)) for text in (code, renamed)]
    assert matches(*flows) == len(flows[0])


def test_the_score_does_not_depend_on_hash_seed_or_processes(tmp_path):
    codes = [PROGRAMS["java"].replace("x", name) for name in ("x", "total", "count", "b")]
    (tmp_path / "codes.json").write_text(json.dumps(codes))
    script = (
        "import json, sys; from systems.codexglue import codebleu\n"
        "codes = json.load(open(sys.argv[1]))\n"
        "print(repr(codebleu(codes, codes[1:] + codes[:1], 'java', jobs=int(sys.argv[2])).score))\n"
    )
    root = Path(__file__).parents[2]
    found = set()
    for seed, jobs in ((0, 1), (1, 1), (2, 2)):
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", script, str(tmp_path / "codes.json"), str(jobs)]
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1


# ------------------------------------------------------------------------------------------------------- files


def small_files(name):
    """Answers and right predictions of a task, four rows."""
    rows = {
        "clone_detection_bcb": ("1\t2\t0\n1\t3\t1\n2\t3\t0\n2\t4\t1\n",) * 2,
        "clone_detection_poj104": (
            '{"index": "0", "answers": ["1", "2"]}\n{"index": "1", "answers": ["0", "2"]}\n',
        ) * 2,
        "defect_detection": ('{"idx": 1, "target": 0}\n{"idx": 2, "target": 1}\n', "1\t0\n2\t1\n"),
        "cloze_all": ("a-0<CODESPLIT>max\na-1<CODESPLIT>min\n",) * 2,
        "cloze_maxmin": ("a-0<CODESPLIT>max\na-1<CODESPLIT>min\n",) * 2,
        "code_completion_token": ("<s> a b </s>\n<s> c <EOL> d </s>\n",) * 2,
        "code_completion_line": (
            '{"id": 0, "input": "<s> a", "gt": "b c"}\n{"id": 1, "input": "", "gt": "<STR_LIT:x>"}\n', "b c\nx\n",
        ),
        "code_search_adv": (
            '{"url": "u", "idx": 0}\n{"url": "v", "idx": 1}\n',
            '{"url": "u", "answers": [0, 1]}\n{"url": "v", "answers": [1, 0]}\n',
        ),
        "code_search_webquery": ("q-0\t1\nq-1\t0\n",) * 2,
        "text_to_code": (
            '{"nl": "x", "code": "int a ( ) { int c = b ; return c ; }"}\n', "int a ( ) { int c = b ; return c ; }\n",
        ),
        "code_summarization": ("0\tReturn the sum .\n1\tAdd two .\n",) * 2,
        "type_prediction": ("0\tstring\n1\tvoid\n",) * 2,
    }  # fmt: skip
    return rows.get(name, ("int a ( ) { int c = b ; return c ; }\nint d ( ) { return e ; }\n",) * 2)


@pytest.fixture
def pair(tmp_path):
    def write(name, change=lambda text: text):
        gold, said = small_files(name)
        (tmp_path / "answers").write_text(gold)
        (tmp_path / "predictions").write_bytes(change(said.encode()))
        return tmp_path / "answers", tmp_path / "predictions"

    return write


@pytest.mark.parametrize("name", TASKS)
def test_right_predictions_have_no_problem_and_full_marks(name, pair):
    answers, predictions = pair(name)
    assert validate(name, answers, predictions) == []
    scores = evaluate(name, answers, predictions, lang=None if name.startswith("cloze") else "java")
    for metric, value in scores.exact.items():
        top = 1.0 if metric in {"accuracy", "f1", "precision", "recall", "map@r", "mrr"} else 100.0
        if name == "code_completion_token":
            top = 100.0
        assert value == pytest.approx(top, abs=1e-9), metric


@pytest.mark.parametrize("name", TASKS)
@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_file_gives_problems_or_a_score_and_never_another_error(name, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    gold, said = small_files(name)
    content = bytearray(said.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        if data.draw(st.booleans()):
            del content[at : at + data.draw(st.integers(1, 9))]
        else:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=3))
    (folder / "answers").write_text(gold)
    (folder / "predictions").write_bytes(bytes(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problems = validate(name, folder / "answers", folder / "predictions")
        if problems:
            with pytest.raises(ValidationError) as caught:
                evaluate(name, folder / "answers", folder / "predictions")
            assert {problem.kind for problem in caught.value.problems} == {problem.kind for problem in problems}
        else:
            assert all(value >= 0 for value in evaluate(name, folder / "answers", folder / "predictions").values())


@settings(max_examples=40)
@given(st.dictionaries(st.text(alphabet="abc-0", min_size=1), st.sampled_from(["0", "1"]), min_size=1))
def test_what_is_written_is_read(labels):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions"
        path.write_text("".join(f"{key}\t{label}\n" for key, label in labels.items()))
        table = read(task("defect_detection"), "predictions", path)
    assert {key: str(value) for key, value in table.rows.items()} == labels
    assert not table.problems
