"""Every mistake in a file is named where it is, and nothing else happens."""

import pytest

from systems.codexglue import codebleu, evaluate, metrics, task, validate
from systems.codexglue.codebleu import CodeBleuWarning
from systems.codexglue.tasks import MissingData, ValidationError

ANSWERS = {
    "defect_detection": '{"idx": 1, "target": 0}\n{"idx": 2, "target": 1}\n',
    "clone_detection_bcb": "1\t2\t0\n1\t3\t1\n",
    "clone_detection_poj104": '{"index": "0", "answers": ["1", "2"]}\n{"index": "1", "answers": ["0", "2"]}\n',
    "code_search_adv": '{"url": "u", "idx": 0}\n',
    "code_search_webquery": "q-0\t1\n",
    "cloze_maxmin": "a-0<CODESPLIT>max\n",
    "code_completion_token": "<s> a b </s>\n",
    "code_translation": "int a ;\nint b ;\n",
    "text_to_code": '{"nl": "x", "code": "int a ;"}\n',
    "code_summarization": "0\tsum of two\n",
    "type_prediction": "0\tvoid\n",
}


@pytest.mark.parametrize(
    ("name", "predictions", "line", "kind", "words"),
    [
        ("defect_detection", "1\t0\n2\n", 2, "columns", "1 columns, expected 2"),
        ("defect_detection", "1\t0\n2\tyes\n", 2, "label", "expected 0 or 1"),
        ("defect_detection", "1\t0\n2\t2\n", 2, "label", "label '2'"),
        ("defect_detection", "1\t0\n2\t1\n3\t1\n", 3, "unknown", "'3' is not in the answers"),
        ("defect_detection", "1\t0\n2\t1\n1\t0\n", 3, "duplicate", "first on line 1"),
        ("defect_detection", "1\t0\n", 0, "missing", "no prediction for '2'"),
        ("clone_detection_bcb", "1\t2\t0\n1 3 1\n", 2, "columns", "1 columns, expected 3"),
        ("clone_detection_bcb", "1\t2\t0\n3\t1\t1\n", 2, "unknown", "'3 1'"),
        ("clone_detection_poj104", '{"index": "0", "answers": ["1", "2"]}\nnonsense\n', 2, "json", "not JSON"),
        ("clone_detection_poj104", '{"index": "0"}\n', 1, "columns", "no field 'answers'"),
        ("clone_detection_poj104", '{"index": "0", "answers": "1"}\n', 1, "json", "are no list"),
        ("clone_detection_poj104", '{"index": "0", "answers": ["1"]}\n', 1, "length", "1 ids for query '0'"),
        ("clone_detection_poj104", '{"index": "0", "answers": ["1", "1"]}\n', 1, "duplicate", "in query '0'"),
        ("clone_detection_poj104", '{"index": "0", "answers": ["1", "0"]}\n', 1, "label", "among its own answers"),
        ("clone_detection_poj104", "[1, 2]\n", 1, "json", "a JSON list, expected an object"),
        ("code_search_adv", '{"url": "u", "answers": [1, 1]}\n', 1, "duplicate", "duplicate ids"),
        ("cloze_maxmin", "a-0 max\n", 1, "columns", "no <CODESPLIT>"),
        ("cloze_maxmin", "a-0<CODESPLIT>max min\n", 1, "candidate", "not one candidate word"),
        ("code_completion_token", "<s> a </s>\n", 1, "length", "3 tokens, expected 4"),
        ("code_translation", "int a ;\n", 0, "count", "2 lines expected, 1 found"),
        ("text_to_code", "int a ;\nint b ;\n", 0, "count", "1 lines expected, 2 found"),
        ("code_summarization", "1\tsum\n", 1, "unknown", "'1' is not in the answers"),
        ("type_prediction", "0\n", 1, "columns", "1 columns"),
    ],
)  # fmt: skip
def test_each_mistake_is_named_where_it_is(tmp_path, name, predictions, line, kind, words):
    (tmp_path / "answers").write_text(ANSWERS[name])
    (tmp_path / "predictions").write_text(predictions)
    problems = validate(name, tmp_path / "answers", tmp_path / "predictions")
    assert any(p.line == line and p.kind == kind and words in p.message for p in problems), problems
    with pytest.raises(ValidationError, match="problems"):
        evaluate(name, tmp_path / "answers", tmp_path / "predictions")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers", "predictions"]


def test_what_is_not_utf8_is_named_by_its_line(tmp_path):
    (tmp_path / "answers").write_text(ANSWERS["code_search_webquery"])
    (tmp_path / "predictions").write_bytes(b"q-0\t1\nq-1\t\xff\n")
    (problem,) = validate("code_search_webquery", tmp_path / "answers", tmp_path / "predictions")
    assert (problem.line, problem.kind) == (2, "encoding")


def test_a_file_that_is_not_there_is_named(tmp_path):
    (tmp_path / "answers").write_text(ANSWERS["code_search_webquery"])
    with pytest.raises(MissingData, match="predictions does not exist"):
        evaluate("code_search_webquery", tmp_path / "answers", tmp_path / "predictions")
    with pytest.raises(MissingData, match="is a folder"):
        evaluate("code_search_webquery", tmp_path / "answers", tmp_path)
    (problem,) = validate("code_search_webquery", tmp_path / "answers", tmp_path / "predictions")
    assert problem.kind == "missing"
    with pytest.raises(MissingData, match="none of the folders ruby"):
        evaluate("cloze_all", tmp_path, tmp_path)


def test_many_mistakes_of_a_kind_are_counted(tmp_path):
    (tmp_path / "answers").write_text("".join(f"q-{k}\t1\n" for k in range(100)))
    (tmp_path / "predictions").write_text("q-0\t1\n")
    problems = validate("code_search_webquery", tmp_path / "answers", tmp_path / "predictions")
    assert len(problems) == 21
    assert "79 more of kind 'missing'" in problems[-1].message


def test_unknown_names_list_what_there_is(tmp_path):
    with pytest.raises(KeyError, match="there are clone_detection_bcb"):
        task("clone")
    with pytest.raises(KeyError, match="there are java-cs, cs-java"):
        evaluate("code_translation", tmp_path, tmp_path, "java-python")
    with pytest.raises(KeyError, match="no variants"):
        evaluate("defect_detection", tmp_path, tmp_path, "small")
    with pytest.raises(KeyError, match="there are java, c_sharp"):
        codebleu(["a"], ["a"], "cobol")


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 references and 2 hypotheses"):
        metrics.bleu(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="expected one for each"):
        codebleu([], [], "java")
    with pytest.raises(ValueError, match="3 weights"):
        codebleu(["a"], ["a"], "java", weights=(1, 1, 1))
    with pytest.raises(ValueError, match="edit back end is 'fuzzy'"):
        metrics.edit_similarity(["a"], ["b"], "fuzzy")
    for empty in (metrics.smoothed_bleu4, metrics.edit_similarity, metrics.exact_match, metrics.accuracy, metrics.mrr):
        with pytest.raises(ValueError, match="no "):
            empty([], [])
    with pytest.raises(ValueError, match="no label has two items"):
        metrics.map_at_r([[1.0], [2.0]], [0, 1])
    with pytest.raises(ValueError, match="one row a label"):
        metrics.map_at_r([[1.0], [2.0]], [0, 1, 1])


def test_code_that_no_parser_takes_is_counted_and_scored():
    with pytest.warns(CodeBleuWarning, match="no reference has a data flow"):
        score = codebleu(["{{{{ ((", ""], ["}}", "\ud800"], "java")
    assert score.parse_errors >= 2
    assert score.dataflow == 0.0


def test_another_grammar_is_a_warning(monkeypatch):
    from systems.codexglue import languages

    monkeypatch.setattr(languages, "PINNED", {**languages.PINNED, "tree-sitter-java": "0.0.1"})
    with pytest.warns(CodeBleuWarning, match="not the grammars that scores were recorded with"):
        codebleu(["int a = b;"], ["int a = b;"], "java")
