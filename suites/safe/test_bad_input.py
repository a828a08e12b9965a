"""Whatever is given, the answer is a diagnosis: never a traceback, never "verified"."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suites.safe.conformance import programs
from systems.safe import Cache, Limits, SafeError, verify, verify_many
from systems.safe.__main__ import main
from systems.safe.syntax import tokenize

GOOD = next(program.text for program in programs() if program.name == "loops/counts_to_n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fn main() {}",
        "verus! {",
        "verus! { fn f() { }",
        "verus! { fn f() { let x = ; } }",
        "verus! { fn f() { ( } }",
        "verus! { \x00 }",
        "verus! { fn f() { /* } }",
        "verus! { fn f() { 'ab' } }",
        "verus! { spec fn }",
        "verus! { trait T { } }",
        "verus! { fn f() { " + "(" * 3000 + "1" + ")" * 3000 + "; } }",
        "verus! { fn f() { let x = " + "!" * 3000 + "true; } }",
        "verus! { fn f() { " + "{" * 3000 + "}" * 3000 + " } }",
        "verus! { spec fn f() -> bool { " + " && ".join(["true"] * 4000) + " } }",
        "verus! { fn f() { while true invariant { } } } ",
    ],
    ids=lambda text: text[:24],
)
def test_a_program_that_cannot_be_read_is_reported_with_a_place(text):
    report = verify(text)
    assert not report.ok
    assert report.compile_error
    assert report.diagnostics[0].line >= 1
    assert report.diagnostics[0].message


def test_long_files_are_read():
    functions = "".join(f"spec fn f{number}(x: int) -> int {{\n    x + {number}\n}}\n" for number in range(3000))
    assert verify(f"verus! {{\n{functions}}}").ok


def test_an_unknown_edition_is_misuse():
    with pytest.raises(SafeError, match="expected one of 2024-08, current"):
        verify(GOOD, edition="2015")


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, len(GOOD) - 1),
    st.integers(1, 40),
    st.sampled_from(["", "{", "}", "(", "@", "==>", "forall|x|", "ö", "0"]),
)
def test_a_damaged_program_never_raises(start, length, insert):
    report = verify(GOOD[:start] + insert + GOOD[start + length :])
    assert isinstance(report.ok, bool)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_is_tokens_or_a_syntax_problem(text):
    try:
        tokens = tokenize(text)
    except SafeError:
        return
    assert all(text[token.start : token.end] == token.text for token in tokens[:-1])


def test_little_resource_is_no_proof():
    hard = next(program for program in programs() if program.name == "loops/nested")
    report = verify(hard.text, limits=Limits(rlimit=100))
    assert not report.ok
    assert any(problem.status == "resource_limit" for problem in report.diagnostics)


def test_the_cache_gives_the_same_report_and_survives_damage(tmp_path):
    cache = Cache(tmp_path)
    fresh, filled, cached = verify(GOOD), verify(GOOD, cache=cache), verify(GOOD, cache=cache)
    entries = list(tmp_path.rglob("*.json"))
    assert entries
    entries[0].write_text('{"verdicts": ["proved"]', encoding="utf-8")
    for entry in entries[1:]:
        entry.write_text('{"verdicts": ["certain"], "rlimits": [1]}', encoding="utf-8")
    damaged = verify(GOOD, cache=cache)
    for report in (filled, cached, damaged):
        assert (report.ok, report.rlimit_used, report.diagnostics) == (fresh.ok, fresh.rlimit_used, fresh.diagnostics)


def test_processes_give_the_reports_of_one_process_in_order():
    texts = [program.text for program in programs()[:12]]
    alone = [report.diagnostics for report in verify_many(texts, limits=Limits(workers=1))]
    together = [report.diagnostics for report in verify_many(texts, limits=Limits(workers=2))]
    assert alone == together


def test_the_tool_prints_places_and_verus_summary(tmp_path, capsys):
    good, bad = tmp_path / "good.rs", tmp_path / "bad.rs"
    good.write_text(GOOD, encoding="utf-8")
    bad.write_text(GOOD.replace("i == n,\n{", "i == n + 1,\n{"), encoding="utf-8")
    assert main(["verify", str(good), "--smt", str(tmp_path / "smt"), "--workers", "1"]) == 0
    assert "verification results:: 2 verified, 0 errors" in capsys.readouterr().out
    assert len(list((tmp_path / "smt").glob("*.smt2"))) == 2
    assert main(["verify", str(bad), "--workers", "1"]) == 1
    shown = capsys.readouterr().out
    assert "error: postcondition not satisfied" in shown
    assert f"--> {bad}:13:" in shown
    assert "failed this postcondition" in shown
    assert main(["verify", str(bad), "--json", "--workers", "1"]) == 1
    assert json.loads(capsys.readouterr().out)["errors"] == 1


def test_files_that_are_not_text_or_not_there(tmp_path, capsys):
    binary = tmp_path / "binary.rs"
    binary.write_bytes(b"\xff\xfe\x00verus!")
    assert main(["verify", str(binary)]) == 1
    assert "not UTF-8" in capsys.readouterr().err
    assert main(["verify", str(tmp_path / "absent.rs")]) == 2
    assert main(["gate", str(binary), str(binary)]) == 1


def test_help_teaches():
    done = subprocess.run([sys.executable, "-m", "systems.safe", "--help"], capture_output=True, text=True, check=True)
    assert "exit status" in done.stdout
