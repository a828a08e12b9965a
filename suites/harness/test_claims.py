"""Seeds and claims: every seed can be used, every mark names one, and what a test measures is recorded."""

import re
import tomllib

import pytest

from fixtures.claims import SeedError, claims_with_tests, load_claims
from fixtures.ratio import Ratio
from suites.harness.test_gate import CONFTEST, ROOT
from systems.anubis.records import read_runs

SYSTEMS = ("agatha", "anubis", "argus", "codexglue", "layoutlmv2", "ngra", "safe", "spider", "superscaler", "textnas")
SEED = """
schema = 1
[paper]
system = "demo"
title = "A demonstration"
[[claim]]
id = "speed"
statement = "It is fast."
metric = "speed-up"
value = 5.9
unit = "x"
status = "stated"
here = { op = ">=", value = 2.0, why = "a slower machine" }
[[claim]]
id = "share"
statement = "A share in a band."
metric = "share"
unit = "%"
status = "second-hand"
here = { op = "in", value = [10.0, 11.0], why = "as in the paper" }
"""


@pytest.fixture
def project(pytester, monkeypatch):
    pytester.makeconftest(CONFTEST)
    pytester.makeini(
        "[pytest]\npython_files = test_*.py\nmarkers =\n    component(name)\n    claim(id, ...)\n    gpu\n    slow\n"
    )
    pytester.syspathinsert(ROOT)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    (pytester.path / "seeds").mkdir()
    (pytester.path / "seeds/demo.toml").write_text(SEED)
    (pytester.path / "suites/demo").mkdir(parents=True)

    def run(body, *args):
        (pytester.path / "suites/demo/test_demo.py").write_text(
            "import pytest\nfrom fixtures.ratio import Ratio\n" + body
        )
        result = pytester.runpytest_inprocess("suites", "--quiet-wait", "0s", "-p", "no:cacheprovider", *args)
        runs = read_runs(pytester.path / "runs").runs
        return result, [row for row in (runs[-1].rows if runs else ()) if row.component == "claim"]

    return run


@pytest.mark.parametrize("system", SYSTEMS)
def test_each_system_has_a_seed_with_a_paper_and_usable_claims(system):
    path = ROOT / "seeds" / f"{system}.toml"
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    assert content["paper"]["system"] == system
    assert content["paper"]["title"]
    claims = {name: c for name, c in load_claims(ROOT / "seeds").items() if name.startswith(f"{system}/")}
    assert claims
    for name, claim in claims.items():
        assert re.fullmatch(r"[a-z0-9]+/[a-z0-9]+(-[a-z0-9]+)*", name)
        assert len(claim.statement) > 15
        assert claim.op == "report" or claim.why


def test_every_claim_that_a_test_names_is_in_a_seed():
    named = {name for name in claims_with_tests(ROOT / "suites") if not name.startswith("demo/")}
    assert named <= set(load_claims(ROOT / "seeds"))


def test_a_claim_that_holds_is_recorded_with_its_value(project):
    body = """
@pytest.mark.claim('demo/speed')
def test_x(claim, measure):
    assert claim.value == 5.9
    assert claim.holds(2.5)
"""
    result, rows = project(body, "--record")
    assert result.ret == 0
    (row,) = rows
    assert (row.metric, row.values, row.unit, row.status, row.claim) == (
        "demo/claim/speed",
        (2.5,),
        "x",
        "pass",
        "demo/speed",
    )


def test_a_claim_that_falls_short_is_recorded_too_and_fails_the_test(project):
    body = "@pytest.mark.claim('demo/speed')\ndef test_x(claim):\n    assert claim.holds(1.5), claim\n"
    result, rows = project(body, "--record")
    assert result.ret == 1
    assert [(row.values, row.status) for row in rows] == [((1.5,), "defect")]


def test_a_band_a_nan_and_a_report(project):
    body = """
@pytest.mark.claim('demo/share')
def test_x(claim):
    assert claim.holds(10.5) and not claim.seed.holds_for(11.5) and not claim.seed.holds_for(float("nan"))
@pytest.mark.claim('demo/speed')
def test_y(claim):
    claim.report(1.0, "on two cores")
"""
    result, rows = project(body, "--record")
    assert result.ret == 0
    assert [row.status for row in rows] == ["pass", "recorded"]
    assert rows[1].evidence[0] == "on two cores"  # what is seen of a busy machine comes after it


def test_a_ratio_is_held_to_its_lower_bound_and_not_judged_in_a_plain_run(project):
    body = """
@pytest.mark.claim('demo/speed')
def test_x(claim):
    assert claim.holds(Ratio(2.5, {low}, 3.0, judged={judged}))
"""
    assert project(body.format(low=2.1, judged=True), "--record")[0].ret == 0
    assert project(body.format(low=1.9, judged=True), "--record")[0].ret == 1
    assert project(body.format(low=1.9, judged=False))[0].ret == 0
    assert isinstance(Ratio(1, 1, 1), float)


def test_a_claim_that_no_seed_holds_is_a_usage_error(project):
    result, _ = project("@pytest.mark.claim('demo/nothing')\ndef test_x():\n    assert True\n")
    assert result.ret == 4
    assert "no claim 'demo/nothing' in seeds/" in result.stderr.str() + result.stdout.str()


@pytest.mark.parametrize(
    ("find", "put", "message"),
    [
        ('id = "share"', 'id = "speed"', "stands there twice"),
        ('metric = "share"', "", "lacks metric"),
        ('op = ">="', 'op = "about"', "expected one of"),
        ('status = "stated"', 'status = "sure"', "expected one of"),
        ("value = 2.0, ", "", "needs here.value"),
        ("schema = 1", "schema = ", "not TOML"),
    ],
)
def test_a_broken_seed_names_its_file_and_claim(tmp_path, find, put, message):
    assert find in SEED
    (tmp_path / "demo.toml").write_text(SEED.replace(find, put))
    with pytest.raises(SeedError, match=message) as caught:
        load_claims(tmp_path)
    assert "demo.toml" in str(caught.value)


def test_several_claims_of_one_test_are_recorded_each(project):
    body = """
@pytest.mark.claim('demo/speed', 'demo/share')
def test_x(claim, measure):
    assert claim.misses({'speed': 2.5, 'share': 10.5}) == []
    with pytest.raises(pytest.UsageError, match="does not name 'other'"):
        claim.misses({'other': 1.0})
    (missed,) = claim.misses({'speed': 1e-9})
    assert missed.startswith('speed: 1e-09, expected')
"""
    result, rows = project(body, "--record")
    assert result.ret == 0
    assert [row.claim for row in rows] == ["demo/speed", "demo/share", "demo/speed"]
    assert [row.status for row in rows] == ["pass", "pass", "defect"]
