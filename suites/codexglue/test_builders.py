"""Sets built from the standard library, and what the baselines make of them."""

import json
import sysconfig
from pathlib import Path

import pytest

from systems.codexglue import evaluate, metrics, validate
from systems.codexglue.baselines import CachedNgramModel, LexicalClassifier, masked_tokens
from systems.codexglue.builders import (
    cloze,
    frequent_literals,
    line_completion,
    normalised,
    search,
    token_completion,
)
from systems.codexglue.data import load
from systems.codexglue.hub import write_layout

LIBRARY = Path(sysconfig.get_path("stdlib"))
SOME = sorted(LIBRARY.glob("[a-d]*.py"))


def test_a_file_by_the_rules_of_the_benchmark():
    code = 'x = \'name\'  # why\nif y > 1.5:\n    print(f\'a{x}\', """two\nlines""")\n'
    literals = frequent_literals([code])
    assert literals["num"] == ["1.5"]
    tokens = normalised(code, {"str": ["name"], "num": []})
    assert tokens[:5] == ["<s>", "x", "=", "'<STR_LIT:name>'", "<EOL>"]
    assert "<NUM_LIT>" in tokens
    assert '"""<STR_LIT>"""' in tokens
    assert "# why" not in " ".join(tokens)
    assert tokens[-1] == "</s>"
    assert not any(mark.isspace() for token in tokens for mark in token)


def test_built_completion_passes_its_own_validator(tmp_path):
    files = token_completion(SOME[:20])
    assert files == token_completion(SOME[:20])
    text = "".join(f"{' '.join(tokens)}\n" for tokens in files)
    (tmp_path / "answers").write_text(text)
    (tmp_path / "predictions").write_text(text)
    assert validate("code_completion_token", tmp_path / "answers", tmp_path / "predictions") == []
    assert evaluate("code_completion_token", tmp_path / "answers", tmp_path / "predictions")["accuracy"] == 100.0
    rows = line_completion(files, 50)
    assert rows == line_completion(files, 50)
    assert rows != line_completion(files, 50, seed=1)
    (tmp_path / "answers").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "predictions").write_text("".join(metrics.without_literals(row["gt"]) + "\n" for row in rows))
    assert validate("code_completion_line", tmp_path / "answers", tmp_path / "predictions") == []
    scores = evaluate("code_completion_line", tmp_path / "answers", tmp_path / "predictions")
    assert scores["exact_match"] == 100.0


def test_built_cloze_hides_one_word_and_keeps_it():
    rows, answers = cloze(SOME, ["max", "min", "len", "name"])
    assert (rows, answers) == cloze(SOME, ["max", "min", "len", "name"])
    assert len(rows) > 20
    for row in rows:
        assert row["pl_tokens"].count("<mask>") == 1
        assert answers[row["idx"]] in {"max", "min", "len", "name"}
        assert 3 <= len(row["nl_tokens"]) <= 256


def test_what_cannot_be_built_from_is_told(tmp_path):
    (tmp_path / "bad.py").write_text("def (:")
    (tmp_path / "latin.py").write_bytes(b"x = '\xff'")
    (tmp_path / "good.py").write_text("x = 1\n")
    skipped = []
    assert len(token_completion(tmp_path.glob("*.py"), skipped=skipped)) == 1
    assert [path.name for path in skipped] == ["bad.py", "latin.py"]
    with pytest.raises(ValueError, match="no line of two tokens"):
        line_completion([["<s>", "</s>"]], 5)
    with pytest.raises(ValueError, match="no candidate words"):
        cloze([], [])
    with pytest.raises(ValueError, match="keywords: if"):
        cloze([], ["if"])


def test_a_cache_of_the_file_at_hand_helps_an_n_gram_model():
    files = token_completion(SOME)
    train, test = files[: len(files) * 4 // 5], files[len(files) * 4 // 5 :][:6]
    model, unigram = CachedNgramModel(train), CachedNgramModel(train, orders=1)
    lines = [" ".join(tokens) for tokens in test]
    shares = []
    for one in (model, unigram):
        *_, scored, right = metrics.token_matches(lines, [" ".join(one.predict(tokens)) for tokens in test]).sum(0)
        shares.append(right / scored)
    assert shares[0] > 0.4
    assert shares[0] > 3 * shares[1]
    assert model.predict([]) == []


def test_pairs_of_clones_are_told_apart(data):
    root = data("codexglue")
    train, valid = (list(load("clone_detection_bcb", split, root=root)) for split in ("train", "valid"))
    model = LexicalClassifier().fit_pairs(
        [(row["func1"], row["func2"]) for row in train], [row["label"] for row in train]
    )
    said = model.predict_pairs([(row["func1"], row["func2"]) for row in valid])
    counts = metrics.binary_counts([row["label"] for row in valid], said)
    assert counts.f1 >= 0.92  # about half of the pairs are clones
    alone = LexicalClassifier().fit([row["func1"] for row in train], [row["label"] for row in train])
    assert set(alone.predict([row["func1"] for row in valid])) <= {0, 1}


def test_names_are_masked_and_keywords_are_not():
    tokens = masked_tokens('int a1 = b; // c\nreturn "s" + 12;', frozenset({"int", "return"}))
    assert tokens == ["int", "I", "=", "I", ";", "return", '"s"', "+", "12", ";"]


DOCUMENTED = '''
def largest(values, other=None):
    """The largest of all values, or other.

    More of it.
    """
    best = other
    for one in values:
        best = one if best is None or one > best else best
    return max(best, *values, key=lambda other: other)

def test_of_it(values):
    """A test of what is there."""
    a = 1
    return a

def linked(values):
    """See https://example.org for more of this."""
    a = 1
    return a

def __hidden__(values):
    """The hidden one of all values."""
    a = 1
    return a
'''


def test_searched_functions_are_documented_ones(tmp_path):
    (tmp_path / "a.py").write_text(DOCUMENTED)
    (tmp_path / "b.py").write_text(DOCUMENTED)  # the same code again
    (tmp_path / "c.py").write_text("def broken(:")
    skipped = []
    (row,) = search(tmp_path.glob("*.py"), skipped=skipped)
    assert [path.name for path in skipped] == ["c.py"]
    assert row["func_name"] == "largest"
    assert row["docstring_tokens"] == ["The", "largest", "of", "all", "values", ",", "or", "other", "."]
    assert row["code_tokens"][:3] == ["def", "largest", "("]
    assert "More of it" not in row["code"]


def test_masked_functions_do_the_same_under_other_names(tmp_path):
    (tmp_path / "a.py").write_text(DOCUMENTED)
    (row,) = search(tmp_path.glob("*.py"), masked=True)
    assert not {"largest", "values", "best", "one", "other"} & set(row["code_tokens"])
    space = {}
    exec(compile(row["code"], "masked", "exec"), space)
    assert space["Func"]([3, 9, 2]) == 9
    assert space["Func"]([3, 9, 2], 11) == 11


def test_the_standard_library_has_functions_to_search_and_summarise(tmp_path):
    rows = search(SOME)
    assert len(rows) > 50
    assert len({row["url"] for row in rows}) == len(rows)
    for name in ("code_search_adv", "code_summarization"):
        variant = "python" if name == "code_summarization" else None
        write_layout(name, "train", variant, rows[:5], tmp_path)
        again = list(load(name, "train", variant, tmp_path))
        assert [row["func_name"] for row in again] == [row["func_name"] for row in rows[:5]]
