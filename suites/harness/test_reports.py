"""The report: every number it shows is that of the run files, and nothing in them can break it."""

from __future__ import annotations

import base64
import json
import os
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reports import NotAReport, build, gather, summarise
from reports.__main__ import main
from reports.claims import bound, holds, read_seeds
from reports.compare import compare, table
from reports.figures import axis_limits, band, bucket, headroom
from reports.interactive import interactive
from reports.overview import Overview
from reports.page import FILES, html, page_of, write_report
from reports.quantity import duration, exact, stated
from reports.superbench import ImportFailed, import_results, rule_of, split_key
from reports.verdict import EXIT_CODES, SIGNS, TONES, status_of
from systems.anubis.criteria import StoredCriterion, save_criteria
from systems.anubis.machine import Machine, Noise
from systems.anubis.records import RUN_SCHEMA, STATUSES, Journal, Measurement, Run, metric_id, read_runs, write_run
from systems.anubis.units import quantity, significant
from systems.anubis.validator import Criterion, learn, one_sided

KIND = "x86_64-test-2c-8g-ssd-nogpu"
START = datetime(2026, 3, 1, 6, 0, tzinfo=UTC)
METRICS = (
    ("hardware/compute/gemm/throughput", "compute", {"device": "cpu", "n": "1024"}, "FLOP/s", "higher", 9e10),
    ("hardware/memory/triad/bandwidth", "memory", {}, "B/s", "higher", 1.9e10),
    ("hardware/disk/write/bandwidth", "disk", {"block": "1MiB"}, "B/s", "higher", 1.2e9),
    ("hardware/disk/fsync/latency", "disk", {}, "s", "lower", 4e-4),
    ("hardware/models/bert/step", "model", {"mode": "train"}, "sample/s", "higher", 11.0),
)


def machine(number: int, kind: str = KIND) -> Machine:
    return Machine(kind=kind, node=f"{number:02x}" * 8, stack="python 3.11", facts={"hostname": f"node{number}"})


def sample(rng: np.random.Generator, middle: float, factor: float = 1.0) -> tuple[float, ...]:
    return tuple(float(v) for v in middle * factor * rng.normal(1, 0.01, 40))


@pytest.fixture(scope="module")
def criteria() -> dict[str, StoredCriterion]:
    """Criteria for every metric, learned from eight generated nodes."""
    rng = np.random.default_rng(7)
    found = {}
    for name, component, params, unit, better, middle in METRICS:
        learned = learn([sample(rng, middle) for _ in range(8)], better)
        found[metric_id(name, params)] = StoredCriterion(
            criterion=learned.criterion,
            unit=unit,
            component=component,
            runs=tuple(f"r{i}" for i in range(8)),
            stack="python 3.11",
            seconds=1.0,
            learned_at="2026-02-27T06:00:00+00:00",
        )
    return found


def judged_run(
    criteria: Mapping[str, StoredCriterion],
    number: int = 1,
    *,
    factors: Mapping[str, float] | None = None,
    started: datetime = START,
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
    extra: Sequence[Measurement] = (),
) -> Run:
    """A run whose rows were really judged by `criteria`; `factors` scales the speed of a component."""
    rng = np.random.default_rng(1000 * number + seed)
    rows = []
    for at, (name, component, params, unit, better, middle) in enumerate(METRICS):
        speed = (factors or {}).get(component, 1.0)
        values = sample(rng, middle, 1 / speed if better == "lower" else speed)
        row = Measurement(
            suite="hardware",
            test=f"suites/hardware/bench_{component}.py::test_{name.split('/')[2]}",
            component=component,
            metric=name,
            params=params,
            unit=unit,
            better=better,
            values=values,
            rounds=40,
            seconds=2.0,
            noise=Noise(psi=0.01 * at, foreign=0.02, steal=0.0, throttled=None, clock_mhz=2400.0),
        )
        stored = criteria.get(row.id)
        if stored is None:
            rows.append(replace(row, status="new"))
            continue
        verdict = stored.criterion.judge(values)
        rows.append(
            replace(
                row,
                status=verdict.status,
                similarity=verdict.similarity,
                alpha=verdict.alpha,
                margin=verdict.margin,
                criterion=stored.hash,
            )
        )
    known = {
        "exit_code": 10 if any(row.status == "defect" for row in rows) else 0,
        "mode": "gate",
        "verdict": "defect" if any(row.status == "defect" for row in rows) else "pass",
        "provisional": False,
    }
    return Run(
        machine=machine(number),
        started=started,
        run_id=f"{number:02x}{seed:02x}" * 4,
        commit="abc",
        command="pytest suites --gate",
        facts={**known, **(facts or {})},
        rows=(*rows, *extra),
    )


def versus_rows() -> tuple[Measurement, ...]:
    """What a `versus` of two contenders leaves behind: a row for each and one for the ratio."""
    base = Measurement(
        suite="spider",
        test="suites/spider/bench_spider.py::test_matmul",
        component="model",
        metric="spider/spider/matmul/rate",
        unit="op/s",
        better="higher",
        values=(),
        seconds=3.0,
        params={"n": "512"},
    )
    return (
        replace(base, rival="ours", values=(9.0e9, 9.2e9, 9.1e9)),
        replace(base, rival="torch.sparse", values=(2.0e9, 2.1e9, 2.2e9)),
        replace(
            base,
            rival="ours",
            metric="spider/spider/matmul/ratio",
            unit="1",
            values=(4.33, 4.1, 4.6),
            params={"n": "512", "of": "ours", "over": "torch.sparse"},
        ),
    )


def claim_row(claim: str, values: tuple[float, ...], status: str, evidence: tuple[str, ...] = ()) -> Measurement:
    system, _, name = claim.partition("/")
    return Measurement(
        suite=system,
        test=f"suites/{system}/test_acceptance.py::test_{name}",
        component="claim",
        metric=f"{system}/claim/{name}",
        unit="x",
        better="target",
        values=values,
        status=status,
        claim=claim,
        evidence=evidence,
    )


SEED = """\
schema = 1
[paper]
system = "spider"
title = "A paper about sparsity"
arxiv = "2301.00001"
[[claim]]
id = "speed"
statement = "Faster than the peer."
metric = "speed-up"
value = 4.5
unit = "x"
better = "higher"
condition = "one A100"
status = "stated"
here = { op = ">=", value = 1.5, why = "A CPU has no tensor cores." }
[[claim]]
id = "memory"
statement = "Needs less memory."
value = { peak = 0.5, mean = 0.4 }
unit = "1"
status = "second-hand"
here = { op = "<=", value = 0.7 }
[[claim]]
id = "shown"
statement = "Only shown."
here = { op = "report" }
[[claim]]
id = "tested"
statement = "A test exists."
here = { op = ">", value = 0 }
[[claim]]
id = "untested"
statement = "No test exists."
"""


@pytest.fixture
def folders(tmp_path: Path, criteria: dict[str, StoredCriterion]) -> dict[str, Path]:
    """Empty `runs`, filled `criteria` and `seeds`, and the path of a report that is not there yet."""
    found = {name: tmp_path / name for name in ("runs", "criteria", "seeds", "report")}
    for name in ("runs", "seeds"):
        found[name].mkdir()
    (found["seeds"] / "spider.toml").write_text(SEED)
    save_criteria(found["criteria"], KIND, criteria)
    return found


def overview_of(folders: Mapping[str, Path]) -> Overview:
    return summarise(gather(folders["runs"], folders["criteria"], folders["seeds"]))


def built(folders: Mapping[str, Path]) -> Overview:
    return build(folders["runs"], folders["report"], criteria=folders["criteria"], seeds=folders["seeds"])


def report_json(folders: Mapping[str, Path]) -> dict[str, Any]:
    return json.loads((folders["report"] / "report.json").read_text())


class Page(HTMLParser):
    """The page as a browser without JavaScript sees it: tables as lists of cells, ids, links, open tags."""

    VOID = frozenset({"meta", "link", "input", "br", "wbr", "img", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.sources: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags[tag] += 1
        self.attributes |= set(given)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag == "a" and (given.get("href") or "").startswith("#"):
            self.targets.append(str(given["href"])[1:])
        for name in ("src", "href"):
            if given.get(name) and not str(given[name]).startswith("#"):
                self.sources.append(str(given[name]))
        if tag not in self.VOID:
            self.stack.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in {"td", "th"}:
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> closes nothing"
        assert self.stack[-1] == tag, f"</{tag}> closes <{self.stack[-1]}>"
        self.stack.pop()

    def handle_data(self, text: str) -> None:
        if self.stack and self.stack[-1] in {"script", "style"}:
            return
        self.text += text
        if {"td", "th"} & set(self.stack) and "svg" not in self.stack:
            self.tables[-1][-1][-1] += text

    def table(self, *headings: str) -> list[dict[str, str]]:
        """The rows of the table that has all `headings`, as heading -> text."""
        for rows in self.tables:
            head = [" ".join(cell.split()) for cell in rows[0]]
            if set(headings) <= set(head):
                return [dict(zip(head, (" ".join(cell.split()) for cell in row), strict=True)) for row in rows[1:]]
        raise AssertionError(f"no table with {headings}; there are {[rows[0] for rows in self.tables]}")


# --- what the page says --------------------------------------------------------------------------------------


def test_a_slow_disk_is_named_first_in_words(folders, criteria):
    write_run(judged_run(criteria, factors={"disk": 0.6}), folders["runs"])
    overview = built(folders)
    page = Page((folders["report"] / "index.html").read_text())
    assert overview.headline == "Not fit: disk is the first suspect"
    assert overview.headline in page.text
    assert "Take the machine out of service" in page.text
    assert [suspect.component for suspect in overview.nodes[0].suspects] == ["disk"]
    findings = {line.id for line in overview.nodes[0].suspects[0].findings}
    assert findings == {"hardware/disk/write/bandwidth{block=1MiB}", "hardware/disk/fsync/latency"}


def test_a_model_that_a_slow_part_explains_is_suspected_after_it(folders, criteria):
    write_run(judged_run(criteria, factors={"memory": 0.85, "model": 0.5}), folders["runs"])
    suspects = overview_of(folders).nodes[0].suspects
    assert [suspect.component for suspect in suspects] == ["memory", "model"]
    assert suspects[1].score > suspects[0].score


def test_the_runs_own_ranking_of_suspects_is_kept(folders, criteria):
    run = judged_run(criteria, factors={"disk": 0.6}, facts={"suspects": [["memory", 3.5], ["disk", 1.25]]})
    write_run(run, folders["runs"])
    found = overview_of(folders).nodes[0].suspects
    assert [(suspect.component, suspect.score) for suspect in found] == [("memory", 3.5), ("disk", 1.25)]


@pytest.mark.parametrize(
    ("facts", "headline"),
    [
        ({}, "Fit"),
        ({"provisional": True}, "Fit, by provisional criteria"),
        ({"verdict": "contended", "exit_code": 11}, "Not validated: the machine was busy"),
        ({"verdict": "flaky", "exit_code": 11}, "Not validated: results did not repeat"),
        ({"verdict": "failed", "exit_code": 1}, "Not validated: a test failed as code"),
        ({"verdict": "new", "exit_code": 12}, "Not judged: no criteria yet"),
        ({"verdict": "pass", "exit_code": 2}, "Not validated: the run was cut short"),
        ({"verdict": "", "exit_code": None, "recovered": True}, "Not validated: the run was cut short"),
    ],
)
def test_the_headline_follows_the_verdict(folders, criteria, facts, headline):
    write_run(judged_run(criteria, facts=facts), folders["runs"])
    overview = overview_of(folders)
    assert overview.headline == headline
    assert overview.headline in html(overview)


def test_a_run_that_only_recorded_is_never_called_fit(folders):
    write_run(judged_run({}, facts={"mode": "record", "verdict": "pass"}), folders["runs"])
    assert overview_of(folders).status == "new"
    rows = tuple(replace(row, status="recorded") for row in judged_run({}).rows)
    assert status_of(replace(judged_run({}, facts={"mode": "record", "verdict": "pass"}), rows=rows)) == (
        "recorded",
        False,
    )


def test_a_gate_whose_criteria_are_all_too_noisy_is_no_pass(folders, criteria):
    run = judged_run(criteria)
    rows = tuple(replace(row, status="recorded", alpha=0.05) for row in run.rows)
    write_run(replace(run, rows=rows), folders["runs"])
    overview = overview_of(folders)
    assert overview.headline == "Not judged: the criteria are too noisy"
    assert "hx" in {bucket(line.similarity, line.alpha, line.status) for line in overview.nodes[0].lines}


def test_a_recovered_run_with_a_defect_stays_a_defect(criteria):
    run = judged_run(criteria, factors={"disk": 0.5}, facts={"verdict": "", "exit_code": None, "recovered": True})
    assert status_of(run)[0] == "defect"


def test_every_status_has_a_tone_and_a_sign_of_its_own_kind():
    assert set(STATUSES) <= set(TONES) & set(SIGNS)
    for tone in set(TONES.values()):
        assert {SIGNS[s] for s in TONES if TONES[s] == tone}.isdisjoint(
            {SIGNS[s] for s in TONES if TONES[s] != tone}
        ) or tone == "warn"
    assert SIGNS["pass"] not in {sign for status, sign in SIGNS.items() if status != "pass"}


# --- every number equals the records -------------------------------------------------------------------------


def test_the_metrics_table_holds_the_numbers_of_the_run_file(folders, criteria):
    run = judged_run(criteria, factors={"disk": 0.7}, extra=versus_rows())
    write_run(run, folders["runs"])
    built(folders)
    page = Page((folders["report"] / "index.html").read_text())
    rows = {re.sub(r"\s.*", "", row["Metric"]): row for row in page.table("Metric", "Median", "Noise")}
    gated = [row for row in run.rows if row.rival is None]
    assert set(rows) == {row.id for row in gated}
    for row in gated:
        shown, stored = rows[row.id], criteria[row.id].criterion
        assert row.status in shown["Status"]
        assert shown["Component"] == row.component
        assert shown["Median"] == quantity(statistics.median(row.values), row.unit)
        assert shown["Criterion"] == quantity(float(np.median(stored.quantiles)), row.unit)
        assert float(shown["Similarity"]) == pytest.approx(
            one_sided(row.values, stored.quantiles, row.better), abs=1.1e-3
        )
        assert float(shown["Alpha"]) == pytest.approx(stored.alpha, abs=1.1e-3)
        assert float(shown["Margin"].replace("−", "-")) == pytest.approx(row.similarity - row.alpha, abs=6e-4)


def test_defects_stand_first_and_the_rest_by_margin(folders, criteria):
    write_run(judged_run(criteria, factors={"model": 0.7}), folders["runs"])
    lines = [metric.worst for metric in overview_of(folders).metrics]
    assert lines[0].status == "defect"
    assert lines[0].component == "model"
    margins = [line.margin for line in lines[1:]]
    assert margins == sorted(margins)


def test_the_json_holds_every_number_of_the_tables(folders, criteria):
    rows = (*versus_rows(), claim_row("spider/speed", (4.33, 4.1, 4.6), "pass"))
    write_run(judged_run(criteria, factors={"disk": 0.7}, extra=rows), folders["runs"])
    built(folders)
    content = report_json(folders)
    page = Page((folders["report"] / "index.html").read_text())
    by_id = {metric["worst"]["id"]: metric["worst"] for metric in content["metrics"]}
    for row in page.table("Metric", "Median", "Noise"):
        line = by_id[row["Metric"].split()[0]]
        assert row["Median"] == quantity(line["median"], line["unit"])
        assert row["Criterion"] == quantity(line["criterion_median"], line["unit"])
    (peer,) = content["peers"]
    assert f"{significant(peer['ratio'], 3)}×" in page.table("Contenders", "Ratio")[0]["Ratio"]
    in_force = {line["id"]: line for line in content["criteria"]["metrics"]}
    for row in page.table("Metric", "Repeatability"):
        line = in_force[row["Metric"]]
        assert row["Median"] == quantity(line["median"], line["unit"])
        assert float(row["Repeatability"]) == pytest.approx(line["repeatability"], abs=1.1e-3)
    assert content["nodes"][0]["seconds"] == 13.0  # five tests of 2 s and one of 3 s, whose three rows cost it once


def test_the_noise_table_is_the_median_and_maximum_over_the_tests(folders, criteria):
    run = judged_run(criteria)
    write_run(run, folders["runs"])
    built(folders)
    psi = [row.noise.psi for row in run.rows]
    assert report_json(folders)["nodes"][0]["noise"]["psi"] == [statistics.median(psi), max(psi)]
    (row,) = Page((folders["report"] / "index.html").read_text()).table("Run", "psi")
    assert row["psi"] == "2.0 % / 4.0 %"
    assert row["throttled"] == "–"


def test_the_criteria_section_says_where_criteria_come_from(folders, criteria):
    write_run(judged_run(criteria), folders["runs"])
    overview = overview_of(folders)
    (entry,) = overview.provenance
    assert (entry.metrics, entry.runs, entry.learned) == (5, 8, ("2026-02-27", "2026-02-27"))
    assert entry.words == "learned from 8 runs, not calibrated"
    assert {line.hash for line in overview.criteria} == {stored.hash for stored in criteria.values()}
    assert {line.use for line in overview.criteria} == {"in use"}


def test_a_criterion_that_changed_since_and_an_orphan_are_told(folders, criteria):
    run = judged_run(criteria)
    write_run(replace(run, rows=run.rows[1:]), folders["runs"])
    changed = dict(criteria)
    name = run.rows[1].id
    changed[name] = replace(criteria[name], learned_at="2026-03-02T06:00:00+00:00")
    save_criteria(folders["criteria"], KIND, changed)
    overview = overview_of(folders)
    assert {line.id: line.use for line in overview.criteria if line.use != "in use"} == {
        run.rows[0].id: "orphaned",
        name: "changed since",
    }
    assert overview.unmeasured == (run.rows[0].id,)
    assert "judged by an earlier criterion" in html(overview)


def test_retries_of_a_defect_are_evidence_and_not_metrics(folders, criteria):
    run = judged_run(criteria, factors={"disk": 0.6})
    again = [
        replace(row, attempt=n, similarity=0.5 + n / 100) for row in run.rows if row.status == "defect" for n in (1, 2)
    ]
    write_run(replace(run, rows=(*run.rows, *again)), folders["runs"])
    overview = overview_of(folders)
    assert len(overview.metrics) == len(overview.nodes[0].lines) == len(METRICS)
    assert overview.nodes[0].suspects[0].findings[0].retries == (0.51, 0.52)
    assert "tried again: 0.510, 0.520" in " ".join(Page(html(overview)).text.split())


def test_a_digest_is_shown_as_what_it_is(folders):
    row = Measurement(
        suite="s",
        test="t",
        component="model",
        metric="s/m/t/digest",
        unit="digest",
        better="target",
        values=(float(0xABCDEF012345 + 1),),
        status="pass",
        similarity=1.0,
        alpha=1.0,
        margin=0.0,
    )
    write_run(judged_run({}, extra=(row,)), folders["runs"])
    overview = overview_of(folders)
    assert "abcdef012345" in html(overview)
    assert not overview.distributions


# --- figures -------------------------------------------------------------------------------------------------


def test_a_band_ends_where_similarity_is_alpha(folders, criteria):
    write_run(judged_run(criteria), folders["runs"])
    for distribution in overview_of(folders).distributions:
        line = distribution.metric.worst
        low, high = band(distribution)
        edge = low if line.better == "higher" else high
        assert one_sided(edge, distribution.criterion, line.better) == pytest.approx(line.alpha, rel=1e-9)


def test_curves_are_the_samples_and_the_span_covers_the_other_runs(folders, criteria):
    runs = [judged_run(criteria, seed=day, started=START + timedelta(days=day)) for day in range(4)]
    for run in runs:
        write_run(run, folders["runs"])
    overview = overview_of(folders)
    assert len(overview.nodes) == 1
    for distribution in overview.distributions:
        (curve,) = distribution.curves
        assert curve.run.run_id == runs[-1].run_id
        name = distribution.metric.worst.id
        samples = [np.sort(row.values) for run in runs for row in run.rows if row.id == name]
        np.testing.assert_allclose(curve.quantiles, samples[-1], rtol=1e-5)  # 40 values in 40 quantiles: itself
        assert distribution.others == 3
        means = [values.mean() for values in samples[:-1]]
        assert np.mean(distribution.span[0]) <= min(means) * (1 + 1e-5)
        assert np.mean(distribution.span[1]) >= max(means) * (1 - 1e-5)


def test_a_sample_that_spans_decades_is_drawn_on_a_logarithmic_axis(folders, criteria):
    run = judged_run(criteria)
    slow = tuple(float(v) for v in np.geomspace(1e-5, 1e-2, 40))
    rows = tuple(replace(row, values=slow) if row.unit == "s" else row for row in run.rows)
    write_run(replace(run, rows=rows), folders["runs"])
    scales = {d.metric.worst.unit: axis_limits(d) for d in overview_of(folders).distributions}
    assert scales["s"][2]
    assert 0 < scales["s"][0] < 2e-5
    assert not scales["B/s"][2]


def test_every_figure_names_its_runs(folders, criteria):
    runs = [
        judged_run(criteria, number, factors={"disk": 0.6} if number == 2 else None, extra=versus_rows())
        for number in (1, 2, 3)
    ]
    for run in runs:
        write_run(run, folders["runs"])
    text = html(overview_of(folders))
    for figure in re.findall(r'<figure class="cdfbox".*?</figure>', text, flags=re.DOTALL):
        assert all(run.run_id[:8] in figure for run in runs)
    peers = re.search(r'<section id="peers".*?</section>', text, flags=re.DOTALL).group()
    assert runs[-1].run_id[:8] in peers
    heat = re.search(r'<table class="heat">.*?</table>', text, flags=re.DOTALL).group()
    assert all(run.run_id[:8] in heat for run in runs)


def test_plotly_accepts_every_interactive_figure(folders, criteria):
    for number in (1, 2):
        write_run(judged_run(criteria, number, extra=versus_rows()), folders["runs"])
    figures = interactive(overview_of(folders))
    assert len(figures) == len(METRICS) + 2
    for figure in figures.values():
        go.Figure(figure["data"], figure["layout"])  # raises on what Plotly does not know


def test_figures_stay_small_however_many_values_there_are(folders, criteria):
    run = judged_run(criteria)
    long = [replace(row, values=row.values * 50) for row in run.rows]
    write_run(replace(run, rows=tuple(long)), folders["runs"])
    overview = overview_of(folders)
    assert all(len(curve.quantiles) <= 64 for d in overview.distributions for curve in d.curves)
    assert len(html(overview)) < 150_000


@given(near=st.floats(0.01, 1), alpha=st.floats(0.05, 0.999))
def test_a_shade_is_on_the_bad_side_exactly_when_the_similarity_is_at_most_alpha(near, alpha):
    assert (bucket(near, alpha) in {"h0", "h1"}) == (headroom(near, alpha) <= 0) == (near <= alpha)


# --- fleets --------------------------------------------------------------------------------------------------


def test_a_fleet_has_a_verdict_per_node_from_its_latest_run(folders, criteria):
    write_run(judged_run(criteria, 1, factors={"disk": 0.5}, started=START), folders["runs"])
    write_run(judged_run(criteria, 1, seed=1, started=START + timedelta(days=1)), folders["runs"])
    write_run(judged_run(criteria, 2, factors={"memory": 0.7}), folders["runs"])
    write_run(judged_run(criteria, 3), folders["runs"])
    overview = built(folders)
    assert overview.headline == "2 of 3 nodes fit"
    assert {node.ref.host: node.verdict.status for node in overview.nodes} == {
        "node1": "pass",
        "node2": "defect",
        "node3": "pass",
    }
    assert "node2: not fit: memory is the first suspect" in overview.meaning
    rows = Page((folders["report"] / "index.html").read_text()).table("Node", "Lowest margin")
    assert rows[0]["Node"].split()[0] == "node2"


def test_the_heat_map_holds_the_similarity_of_every_node_and_metric(folders, criteria):
    runs = [judged_run(criteria, number, factors={"disk": 0.6} if number == 2 else None) for number in (1, 2, 3)]
    for run in runs:
        write_run(run, folders["runs"])
    built(folders)
    (heat,) = report_json(folders)["heat_maps"]
    expected = {(run.machine.node, row.id): row.similarity for run in runs for row in run.rows}
    found = {
        (node["node"], name): heat["similarity"][r][c]
        for r, node in enumerate(heat["nodes"])
        for c, name in enumerate(heat["metrics"])
    }
    assert found == expected
    cells = Page((folders["report"] / "index.html").read_text()).text
    assert cells.count("✕") >= 2


def test_a_hundred_nodes_are_a_picture_with_every_node_in_the_json(folders, criteria):
    for number in range(100):
        write_run(judged_run(criteria, number), folders["runs"])
    built(folders)
    text = (folders["report"] / "index.html").read_text()
    assert 'class="heat"' in text
    assert "The 60 worst of 100 nodes" in text
    assert len(report_json(folders)["heat_maps"][0]["nodes"]) == 100
    Page(text)


def test_kinds_of_hardware_are_never_mixed(folders, criteria):
    write_run(judged_run(criteria, 1), folders["runs"])
    other = judged_run({}, 2)
    write_run(replace(other, machine=machine(2, "aarch64-other-4c-8g-ssd-nogpu")), folders["runs"])
    overview = overview_of(folders)
    assert len(overview.metrics) == 2 * len(METRICS)
    assert {(entry.kind, entry.metrics) for entry in overview.provenance} == {
        (KIND, 5),
        ("aarch64-other-4c-8g-ssd-nogpu", 0),
    }
    assert all(metric.worst.criterion_median is None for metric in overview.metrics if metric.worst.kind != KIND)


# --- claims and peers ----------------------------------------------------------------------------------------


def test_claims_are_met_short_reported_not_measured_or_open(folders, criteria):
    rows = (
        claim_row("spider/speed", (2.0, 1.8, 2.2), "pass", ("two cores, no GPU",)),
        claim_row("spider/memory", (0.9,), "defect"),
        claim_row("spider/shown", (3.0,), "recorded"),
    )
    tests = {"spider/speed": "a.py", "spider/memory": "a.py", "spider/tested": "suites/spider/test_acceptance.py"}
    write_run(judged_run(criteria, extra=rows, facts={"claims_tested": tests}), folders["runs"])
    overview = built(folders)
    assert {result.claim.id: result.status for result in overview.claims} == {
        "speed": "met",
        "memory": "short",
        "shown": "reported",
        "tested": "not measured",
        "untested": "open",
    }
    assert overview.claim_counts == {"short": 1, "met": 1, "reported": 1, "not measured": 1, "open": 1}
    page = Page((folders["report"] / "index.html").read_text())
    shown = page.table("Claim", "Paper", "Measured here")
    assert "4.5×" in shown[0]["Paper"]
    assert "one A100" in shown[0]["Paper"]
    assert shown[0]["Measured here"].startswith("2× 1.800 … 2.200 two cores, no GPU run")
    assert shown[0]["Checked here"].startswith("≥ 1.5")
    assert "peak 0.5, mean 0.4" in shown[1]["Paper"]
    assert shown[4]["Measured here"] == "–"
    assert not {metric.worst.component for metric in overview.metrics} & {"claim"}


def test_a_papers_number_never_stands_in_the_measured_column(folders):
    overview = built(folders)
    assert all(result.measured is None for result in overview.claims)
    for row in Page((folders["report"] / "index.html").read_text()).table("Claim", "Measured here"):
        assert row["Measured here"] == "–"


def test_the_newest_measured_value_of_a_claim_counts(folders, criteria):
    for day, value in enumerate((1.0, 2.0)):
        write_run(
            judged_run(
                criteria,
                seed=day,
                started=START + timedelta(days=day),
                extra=(claim_row("spider/speed", (value,), "pass" if value > 1.5 else "defect"),),
            ),
            folders["runs"],
        )
    first = overview_of(folders).claims[0]
    assert (first.status, first.measured, first.run_id) == ("met", 2.0, judged_run(criteria, seed=1).run_id)


def test_a_bound_that_changed_since_is_told(folders, criteria):
    write_run(judged_run(criteria, extra=(claim_row("spider/speed", (1.2,), "pass"),)), folders["runs"])
    first = overview_of(folders).claims[0]
    assert first.status == "met"
    assert "misses" in first.note


@pytest.mark.parametrize(
    ("here", "value", "kept"),
    [
        ({"op": ">=", "value": 5}, 5, True),
        ({"op": "<=", "value": 5}, 5.1, False),
        ({"op": ">", "value": 5}, 5, False),
        ({"op": "<", "value": 5}, 4, True),
        ({"op": "==", "value": 0}, 0, True),
        ({"op": "in", "value": [1, 2]}, 2, True),
        ({"op": "in", "value": [1, 2]}, 2.1, False),
        ({"op": "report"}, 1, None),
        ({}, 1, None),
    ],
)
def test_bounds_of_every_form_are_read(here, value, kept):
    assert holds(value, here) is kept
    assert isinstance(bound(here), str)


def test_the_projects_own_seeds_are_read_whole(pytestconfig):
    papers, skipped = read_seeds(pytestconfig.rootpath / "seeds")
    assert not skipped
    assert len({(paper.system, claim.id) for paper in papers for claim in paper.claims}) == sum(
        len(paper.claims) for paper in papers
    )


def test_a_peer_ratio_stands_with_both_medians(folders, criteria):
    write_run(judged_run(criteria, extra=versus_rows()), folders["runs"])
    (peer,) = overview_of(folders).peers
    assert (peer.of, peer.over, peer.ratio, peer.low, peer.high) == ("ours", "torch.sparse", 4.33, 4.1, 4.6)
    assert (peer.of_median, peer.over_median, peer.unit) == (9.1e9, 2.1e9, "op/s")
    assert peer.metric == "spider/spider/matmul{n=512}"


# --- hostile and damaged input -------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{7*7}}</style>"


def test_text_from_files_never_becomes_markup(folders, criteria):
    bad = Measurement(
        suite=HOSTILE,
        test=HOSTILE,
        component=HOSTILE,
        metric=f"a/{HOSTILE}",
        unit=HOSTILE,
        better="higher",
        values=(1.0, 2.0),
        params={HOSTILE: HOSTILE},
        status="defect",
        similarity=0.5,
        alpha=0.9,
        margin=-0.4,
        criterion=HOSTILE,
        evidence=(HOSTILE,),
        error=HOSTILE,
    )
    ratio = replace(
        bad, metric=f"{HOSTILE}/ratio", params={"of": HOSTILE, "over": HOSTILE}, rival=HOSTILE, values=(2.0, 1.0, 3.0)
    )
    facts = {
        "suspects": [[HOSTILE, 1.0]],
        "mode": HOSTILE,
        "options": [HOSTILE],
        "claims_tested": {"spider/tested": HOSTILE},
    }
    for number in (1, 2):
        run = judged_run(
            criteria,
            number,
            extra=(bad, ratio, claim_row("spider/speed", (2.0,), "pass", (HOSTILE,))),
            facts={**facts, "verdict": HOSTILE if number == 2 else "defect"},
        )
        write_run(
            replace(
                run,
                commit=HOSTILE,
                command=HOSTILE,
                machine=Machine(
                    kind=KIND, node=f"{number}{HOSTILE}".replace("/", "-"), stack=HOSTILE, facts={"hostname": HOSTILE}
                ),
            ),
            folders["runs"],
        )
        (folders["seeds"] / "evil.toml").write_text(SEED.replace("A paper about sparsity", "<script>alert(2)</script>"))
        (folders["runs"] / "<img src=x onerror=alert(3)>.parquet").write_bytes(b"no")
        built(folders)
        text = (folders["report"] / "index.html").read_text()
        page = Page(text)
        assert page.tags["script"] == 1
        assert page.tags["style"] == 1
        assert page.tags["img"] == 0
        assert not {name for name in page.attributes if name.startswith("on")}
        assert HOSTILE in page.text
        assert "{{7*7}}" in page.text
        figures = (folders["report"] / "figures.js").read_text()
        data = json.loads(figures.removeprefix("window.maatFigures = ").rstrip(";\n"))
        assert "<script" not in json.dumps(data)


def test_host_names_in_the_picture_of_a_large_fleet_never_become_markup(folders, criteria):
    for number in range(20):
        run = judged_run(criteria, number)
        write_run(replace(run, machine=replace(run.machine, facts={"hostname": f"<b{number}>"})), folders["runs"])
    text = html(overview_of(folders))
    assert '<svg class="heat"' in text
    assert not [tag for tag in Page(text).tags if re.fullmatch(r"b\d+", tag)]
    assert "<b7>" in Page(text).text


def test_the_headline_of_a_fleet_names_the_worst_node_first(folders, criteria):
    for number, factor in enumerate((0.8, 0.5, 0.7, 1.0)):
        write_run(judged_run(criteria, number, factors={"disk": factor}), folders["runs"])
    overview = overview_of(folders)
    assert re.findall(r"node\d", overview.meaning) == ["node1", "node2", "node0"]
    assert overview.next_steps[0].startswith("node1, node2, node0: take the machine out of service")


def test_an_empty_folder_gives_a_page_that_says_so(folders):
    overview = built(folders)
    assert overview.headline == "No runs yet"
    text = (folders["report"] / "index.html").read_text()
    assert "make gate" in text
    assert len(Page(text).table("Claim", "Paper")) == 5
    assert ElementTree.parse(folders["report"] / "junit.xml").getroot().attrib["tests"] == "0"


def test_bad_run_files_are_listed_and_never_change_the_exit_status(folders, criteria, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = write_run(judged_run(criteria), folders["runs"])
    (folders["runs"] / "cut.parquet").write_bytes(whole.read_bytes()[:500])
    pq.write_table(pa.table({"a": [1]}), folders["runs"] / "foreign.parquet")
    newer = RUN_SCHEMA.with_metadata({"maat.schema": "999", "maat.runs": "[]"})
    pq.write_table(newer.empty_table(), folders["runs"] / "newer.parquet")
    (folders["criteria"] / KIND / "hardware.json").write_text("{")
    (folders["seeds"] / "bad.toml").write_text("[paper")
    status = main(
        [
            "build",
            str(folders["runs"]),
            "-o",
            str(folders["report"]),
            "--criteria",
            str(folders["criteria"]),
            "--seeds",
            str(folders["seeds"]),
        ]
    )
    assert status == 0
    listed = report_json(folders)["skipped"]
    told, text = capsys.readouterr().err, Page((folders["report"] / "index.html").read_text()).text
    for name in ("cut.parquet", "foreign.parquet", "newer.parquet", "hardware.json", "bad.toml"):
        assert any(name in f"{entry['path']} {entry['reason']}" for entry in listed)
        assert name in told
        assert name in text
    assert "999" in told
    assert (folders["runs"] / "cut.parquet").exists()


def test_values_that_json_cannot_hold_are_still_shown(folders):
    rows = tuple(replace(row, values=(float("nan"), float("inf")), status="invalid") for row in judged_run({}).rows)
    write_run(replace(judged_run({}, facts={"verdict": ""}), rows=rows), folders["runs"])
    overview = built(folders)
    assert overview.headline == "Not validated: a measurement was invalid"
    assert report_json(folders)["metrics"][0]["worst"]["median"] in {"nan", "inf"}


@settings(max_examples=25, deadline=None)
@given(
    text=st.text(min_size=1, max_size=30),
    values=st.lists(st.floats(width=64), max_size=5),
    status=st.sampled_from(STATUSES),
    near=st.none() | st.floats(0, 1),
    alpha=st.none() | st.floats(0, 1),
)
def test_any_row_that_a_run_file_can_hold_gives_a_whole_page(tmp_path_factory, text, values, status, near, alpha):
    row = Measurement(
        suite=text,
        test=text,
        component=text,
        metric=text,
        unit=text,
        better=text,
        values=tuple(values),
        params={text: text},
        status=status,
        similarity=near,
        alpha=alpha,
        evidence=(text,),
        error=text,
    )
    folder = tmp_path_factory.mktemp("runs")
    try:
        write_run(Run(machine=machine(1), started=START, run_id="ab" * 8, rows=(row,)), folder)
    except UnicodeEncodeError:  # a lone surrogate, which no file can hold
        return
    overview = summarise(gather(folder, folder / "none", folder / "none"))
    write_report(overview, folder / "report")
    Page((folder / "report" / "index.html").read_text())
    ElementTree.parse(folder / "report" / "junit.xml")


# --- the folder ----------------------------------------------------------------------------------------------


def test_the_page_is_readable_without_javascript_and_without_a_network(folders, criteria):
    write_run(judged_run(criteria, factors={"disk": 0.6}, extra=versus_rows()), folders["runs"])
    built(folders)
    page = Page((folders["report"] / "index.html").read_text())
    assert not page.stack
    pages = [page_of(paper.system) for paper in overview_of(folders).papers]
    assert sorted(path.name for path in folders["report"].iterdir()) == sorted([*FILES, *pages])
    assert all(source.startswith("data:") or source in (*FILES, *pages) for source in page.sources), page.sources
    assert set(page.targets) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags["svg"] >= len(METRICS)
    for headings in (
        ("Metric", "Median", "Alpha"),
        ("Contenders", "Ratio"),
        ("Run", "psi"),
        ("Metric", "Repeatability"),
        ("When (UTC)", "Verdict"),
        ("Claim", "Paper"),
    ):
        assert page.table(*headings)


def test_tables_have_headings_with_scope_and_figures_have_labels(folders, criteria):
    write_run(judged_run(criteria, extra=versus_rows()), folders["runs"])
    text = html(overview_of(folders))
    assert not re.findall(r"<th(?![^>]*scope=)(?:\s[^>]*)?>", text)
    for svg in re.findall(r"<svg[^>]*>", text):
        assert "aria-label" in svg or "aria-hidden" in svg


def test_the_same_runs_give_the_same_bytes_and_an_old_report_is_replaced(folders, criteria):
    write_run(judged_run(criteria), folders["runs"])
    built(folders)
    first = {name: (folders["report"] / name).read_bytes() for name in FILES}
    built(folders)
    assert {name: (folders["report"] / name).read_bytes() for name in FILES} == first
    write_run(judged_run(criteria, seed=1, started=START + timedelta(days=1), factors={"disk": 0.5}), folders["runs"])
    built(folders)
    assert "Not fit" in (folders["report"] / "index.html").read_text()
    assert [path.name for path in folders["report"].parent.iterdir() if path.name.startswith(".")] == []


def test_a_folder_that_is_not_a_report_is_left_alone(folders, criteria, capsys):
    write_run(judged_run(criteria), folders["runs"])
    folders["report"].mkdir()
    (folders["report"] / "thesis.tex").write_text("years of work")
    with pytest.raises(NotAReport, match=r"thesis\.tex"):
        built(folders)
    assert main(["build", str(folders["runs"]), "-o", str(folders["report"])]) == 2
    assert "another folder" in capsys.readouterr().err
    assert [path.name for path in folders["report"].iterdir()] == ["thesis.tex"]


def test_a_report_that_someone_put_a_file_into_is_left_alone(folders, criteria):
    write_run(judged_run(criteria), folders["runs"])
    built(folders)
    (folders["report"] / "notes.md").write_text("node 7 was repaired")
    with pytest.raises(NotAReport, match=r"notes\.md"):
        built(folders)
    assert (folders["report"] / "notes.md").exists()


def test_neither_the_runs_themselves_nor_a_file_is_overwritten(folders, criteria):
    path = write_run(judged_run(criteria), folders["runs"])
    with pytest.raises(NotAReport):
        write_report(overview_of(folders), folders["runs"])
    with pytest.raises(NotAReport, match="not a folder"):
        write_report(overview_of(folders), path)
    assert read_runs(folders["runs"]).runs


DRAWN = "data:image/svg+xml;base64," + base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg'/>").decode()


def test_each_system_has_a_page_with_its_claims_peers_and_figures_and_nothing_of_the_others(folders, criteria):
    """Every figure, value and ratio leads to its run; what is no image is left out; no script, no network."""
    run = judged_run(criteria, extra=versus_rows())
    drawn = [
        {"suite": "demo", "title": "curves <b>", "test": "suites/demo/test_x.py::test_y", "image": DRAWN},
        {"suite": "other", "title": "not here", "test": "t", "image": DRAWN},
        {"suite": "demo", "title": "a script", "test": "t", "image": "javascript:alert(1)"},
        {"suite": "demo", "title": "torn", "test": "t", "image": DRAWN + '" onerror="x'},
        "nonsense",
    ]
    write_run(replace(run, facts={**run.facts, "pictures": drawn}), folders["runs"])
    overview = built(folders)
    assert overview.papers
    index = (folders["report"] / "index.html").read_text()
    for paper in overview.papers:
        assert f'href="{page_of(paper.system)}"' in index
        text = (folders["report"] / page_of(paper.system)).read_text()
        page = Page(text)
        assert not page.stack
        assert "<script" not in text
        there = {path.name for path in folders["report"].iterdir()}
        assert all(s.startswith("data:") or s.partition("#")[0] in there for s in page.sources), page.sources
        own = [claim.id for claim in paper.claims]
        assert all(name in text.replace("<wbr>", "") for name in own)
    assert [picture.title for picture in overview.pictures] == ["curves <b>", "not here"]
    assert f'id="run-{run.run_id}"' in index


def test_the_page_of_a_system_shows_what_its_tests_have_drawn(folders, criteria):
    system = overview_of(folders).papers[0].system
    for day, title in enumerate(("old", "new")):
        run = judged_run(criteria, seed=day, started=START + timedelta(days=day))
        drawn = [{"suite": system, "title": "curves", "test": title, "image": DRAWN}]
        write_run(replace(run, facts={**run.facts, "pictures": drawn}), folders["runs"])
    built(folders)
    text = (folders["report"] / page_of(system)).read_text()
    assert text.count(DRAWN) == 1
    assert "new, run" in text
    assert f'href="index.html#run-{run.run_id}"' in text


def test_a_system_whose_name_fits_no_file_has_no_page():
    assert page_of("../evil") == ""
    assert page_of("ngra") == "system-ngra.html"


def test_an_empty_folder_is_taken(folders):
    folders["report"].mkdir()
    built(folders)
    assert (folders["report"] / "index.html").exists()


def test_an_error_while_writing_leaves_the_old_report_whole(folders, criteria, monkeypatch):
    write_run(judged_run(criteria), folders["runs"])
    built(folders)
    before = {name: (folders["report"] / name).read_bytes() for name in FILES}
    write_run(judged_run(criteria, seed=1, started=START + timedelta(days=1)), folders["runs"])

    def full(path: Path, data: bytes) -> None:
        if path.name == "report.json":
            raise OSError(28, "No space left on device")
        path.write_bytes(data)

    monkeypatch.setattr("reports.page.write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        built(folders)
    assert {name: (folders["report"] / name).read_bytes() for name in FILES} == before
    assert {path.name for path in folders["report"].parent.iterdir()} == {"runs", "criteria", "seeds", "report"}


def test_a_reader_never_sees_half_a_report(folders, criteria):
    """Readers look while the report is rebuilt again and again: all files are there, and of one build."""
    write_run(judged_run(criteria), folders["runs"])
    built(folders)
    reader = subprocess.Popen(
        [sys.executable, "-c", _READER, str(folders["report"])], stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "reading\n"
    for day in range(1, 6):
        write_run(judged_run(criteria, seed=day, started=START + timedelta(days=day)), folders["runs"])
        built(folders)
    (folders["report"].parent / "stop").touch()
    out, _ = reader.communicate(timeout=60)
    looks, bad = map(int, out.split())
    assert looks > 20
    assert bad == 0


# The folder is opened once and its files by that descriptor, so that all are of the folder that was there.
_READER = """
import json, os, sys, re
folder, looks, bad = sys.argv[1], 0, 0
print("reading", flush=True)
while not os.path.exists(os.path.join(os.path.dirname(folder), "stop")):
    looks += 1
    try:
        at = os.open(folder, os.O_RDONLY)
    except OSError:
        bad += 1
        continue
    try:
        def read(name):
            with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=at)) as file:
                return file.read()
        run = json.loads(read("report.json"))["nodes"][0]["ref"]["run_id"]
        bad += run not in read("index.html") or not read("index.html").rstrip().endswith("</html>")
    except FileNotFoundError:
        pass  # this folder was exchanged and removed between opening and reading: a reader opens it anew
    except ValueError:
        bad += 1
    finally:
        os.close(at)
print(looks, bad)
"""


def test_where_names_cannot_be_exchanged_the_old_report_moves_aside(folders, criteria, monkeypatch):
    write_run(judged_run(criteria), folders["runs"])
    built(folders)
    monkeypatch.setattr("reports.page._exchange", lambda a, b: False)
    write_run(judged_run(criteria, seed=1, started=START + timedelta(days=1), factors={"disk": 0.5}), folders["runs"])
    built(folders)
    assert "Not fit" in (folders["report"] / "index.html").read_text()
    assert {path.name for path in folders["report"].parent.iterdir()} == {"runs", "criteria", "seeds", "report"}


# --- JUnit ---------------------------------------------------------------------------------------------------


def test_junit_counts_agree_with_the_statuses(folders, criteria):
    for number, status in enumerate(STATUSES):
        run = judged_run(criteria, number)
        rows = (replace(run.rows[0], status=status, error="boom" if status == "error" else None), *run.rows[1:])
        write_run(replace(run, rows=rows, facts={}), folders["runs"])
    overview = built(folders)
    root = ElementTree.parse(folders["report"] / "junit.xml").getroot()
    counts = Counter(line.status for node in overview.nodes for line in node.lines)
    assert int(root.attrib["tests"]) == sum(counts.values()) == len(root.findall(".//testcase"))
    assert int(root.attrib["failures"]) == counts["defect"] == len(root.findall(".//failure")) == 1
    assert int(root.attrib["errors"]) == counts["error"] + counts["invalid"] == len(root.findall(".//error")) == 2
    assert int(root.attrib["skipped"]) == counts["contended"] == len(root.findall(".//skipped")) == 1
    for suite in root.findall("testsuite"):
        cases = suite.findall("testcase")
        assert int(suite.attrib["tests"]) == len(cases)
    properties = {p.attrib["name"]: p.attrib["value"] for p in root.find(".//testcase/properties")}
    assert set(properties) == {"verdict", "similarity", "alpha", "metric", "kind", "run_id"}


# --- the command line ----------------------------------------------------------------------------------------


def test_journals_of_a_crashed_run_become_run_files(folders, criteria, capsys):
    run = judged_run(criteria, facts={"exit_code": None, "verdict": ""})
    journal = Journal(replace(run, rows=()), folders["runs"])
    for row in run.rows:
        journal.append([row])
    assert main(["recover", str(folders["runs"])]) == 0
    assert "still writing" in capsys.readouterr().err  # this very process has it open
    journal.close()
    with journal.path.open("a") as file:
        file.write('{"rows": [{"suite": "cut of')
    (folders["runs"] / "noise.jsonl").write_text("not a journal")
    assert overview_of(folders).journals == (journal.path.name, "noise.jsonl")
    assert main(["recover", str(folders["runs"])]) == 0
    assert "noise.jsonl" in capsys.readouterr().err
    (found,) = read_runs(folders["runs"]).runs
    assert found.rows == run.rows
    overview = overview_of(folders)
    assert overview.headline == "Not validated: the run was cut short"
    assert overview.nodes[0].recovered


def test_compacting_keeps_every_number_of_the_report(folders, criteria, capsys):
    for day in range(3):
        write_run(judged_run(criteria, seed=day, started=START + timedelta(days=day)), folders["runs"])
    before = overview_of(folders)
    assert main(["compact", str(folders["runs"])]) == 0
    assert [path.name for path in folders["runs"].iterdir()] == [Path(capsys.readouterr().out.strip()).name]
    assert overview_of(folders) == before


def test_compacting_nothing_is_a_usage_error(folders, capsys):
    assert main(["compact", str(folders["runs"])]) == 2
    assert "no run files" in capsys.readouterr().err


def test_compare_shows_what_moved_and_only_that(folders, criteria, capsys):
    a = write_run(judged_run(criteria, 1), folders["runs"])
    b = write_run(
        judged_run(criteria, 1, factors={"disk": 0.7}, started=START + timedelta(days=1), seed=1), folders["runs"]
    )
    assert main(["compare", str(a), str(b)]) == 0
    out = capsys.readouterr().out
    assert "hardware/disk/write/bandwidth{block=1MiB}" in out
    assert "gemm" not in out
    assert out.count("worse") == 2
    assert "2 of 5 metrics moved" in out
    assert main(["compare", str(a), str(b), "--all"]) == 0
    assert "gemm" in capsys.readouterr().out


def test_compare_agrees_with_brute_force_over_the_distributions(criteria):
    a, b = judged_run(criteria, 1), judged_run(criteria, 1, seed=3, factors={"memory": 0.8})
    for move in compare(a, b).moves:
        s, c = (np.sort(next(row.values for row in run.rows if row.id == move.id)) for run in (a, b))
        assert move.similarity == pytest.approx(np.minimum(s, c).sum() / np.maximum(s, c).sum(), rel=1e-12)
        assert (move.before, move.after) == (pytest.approx(np.median(s)), pytest.approx(np.median(c)))


def test_compare_tells_what_cannot_be_compared(criteria):
    a = judged_run(criteria, 1)
    b = replace(
        a, run_id="ff" * 8, machine=machine(2, "another-kind"), rows=(replace(a.rows[0], unit="op/s"), *a.rows[2:])
    )
    comparison = compare(a, b)
    assert comparison.only_before == (a.rows[1].id,)
    assert "FLOP/s" in comparison.incomparable[0]
    text = table(comparison, a, b)
    assert "different hardware kinds" in text
    assert "0 of 3 metrics moved" in text


def test_a_run_in_a_compacted_file_is_named_by_its_id(folders, criteria, capsys):
    runs = [judged_run(criteria, seed=day, started=START + timedelta(days=day)) for day in range(2)]
    for run in runs:
        write_run(run, folders["runs"])
    main(["compact", str(folders["runs"])])
    path = capsys.readouterr().out.strip()
    assert main(["compare", path, path]) == 2
    assert runs[0].run_id in capsys.readouterr().err
    assert main(["compare", f"{path}@{runs[0].run_id[:6]}", f"{path}@{runs[1].run_id}"]) == 0
    assert "of 5 metrics moved" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "/nowhere/at/all", "-o", "/tmp/never"],
        ["compare", "/nowhere/a.parquet", "/nowhere/b.parquet"],
        ["recover", "/nowhere/at/all"],
        ["compact", "/nowhere/at/all"],
        ["import-superbench", "/nowhere/at/all.jsonl", "-o", "/tmp/never"],
    ],
)
def test_a_wrong_path_is_a_usage_error_that_says_what_to_give(arguments, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "/nowhere" in error
    assert "give" in error


@pytest.mark.parametrize("arguments", [[], ["build"], ["unknown"], ["compare", "a", "b", "--below", "7"]])
def test_malformed_arguments_exit_with_two(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_the_module_is_a_command_and_its_help_teaches(pytestconfig, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "reports", "--help"],
        cwd=pytestconfig.rootpath,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    for command in ("build", "compare", "recover", "compact", "import-superbench"):
        assert f"python -m reports {command}" in done.stdout
    assert "Exit status" in done.stdout


def test_exit_codes_are_all_explained():
    assert set(EXIT_CODES) == {0, 1, 2, 3, 4, 5, 10, 11, 12}


# --- SuperBench ----------------------------------------------------------------------------------------------


def test_the_shared_superbench_sample_is_imported_whole(data: Callable[[str], Path], tmp_path):
    source = data("anubis/superbench_results_sample.jsonl")
    imported = import_results(source, tmp_path, kind="azure-a100")
    lines = [json.loads(line) for line in source.read_text().splitlines()]
    assert not imported.unknown
    runs = read_runs(tmp_path).runs
    assert {run.machine.facts["hostname"] for run in runs} == {line["node"] for line in lines}
    for run in runs:
        line = next(line for line in lines if line["node"] == run.machine.facts["hostname"])
        keys = [key for key in line if key != "node" and "return_code" not in key]
        assert len(run.rows) == len(keys)
        by_key = {f"{row.metric.removeprefix('superbench/')}:{row.params['rank']}": row for row in run.rows}
        for key in keys:
            row = by_key[key]
            scale, unit, better = (1e-3, "s", "lower") if "time" in key else (1e9, "B/s", "higher")
            assert row.values[0] == pytest.approx(line[key] * scale)
            assert (row.unit, row.better, row.status) == (unit, better, "recorded")
    again = import_results(source, tmp_path, kind="azure-a100")
    assert again == imported
    assert len(list(tmp_path.glob("*.parquet"))) == len(lines)


def test_the_golden_means_all_have_a_unit(data: Callable[[str], Path]):
    names = json.loads(data("anubis/superbench_ndv4_a100_v0.4_golden.json").read_text())
    assert [name for name in names if rule_of(name) is None and not name.endswith("return_code")] == []


@pytest.mark.parametrize(
    ("name", "value", "expected", "unit"),
    [
        # NDv4 means of known size: an A100 does 280 TFLOP/s in fp16, 1.2 TB/s to its memory, 26 GB/s to the host
        ("gemm-flops/fp16_tc_flops", 280435.1, 2.804351e14, "FLOP/s"),
        ("mem-bw/d2d_bw", 1155.6, 1.1556e12, "B/s"),
        ("kernel-launch/event_time", 0.0057, 5.7e-6, "s"),
        ("gemm-flops/int4_tc_iops", 975854.5, 9.758545e14, "op/s"),
        ("disk-benchmark/nvme0n1_rand_read_read_lat_ns_95.0", 762206.9, 7.622069e-4, "s"),
        ("disk-benchmark/nvme0n1_rand_read_read_iops", 511860.2, 511860.2, "op/s"),
        ("nccl-bw/allreduce_1024_time", 34.8, 3.48e-5, "s"),
        ("ib-loopback/ib_write_8388608_ib0_bw", 23.2, 2.32e10, "B/s"),
        ("cpu-memory-bw-latency/mem_bandwidth_matrix_numa_0_1_bw", 61000, 6.1e10, "B/s"),
        ("cublaslt-gemm/fp16_0_4096_4096_4096_flops", 260.0, 2.6e14, "FLOP/s"),
        ("bert_models/pytorch-bert-large/steptime_train_float32", 307.9, 0.3079, "s"),
        ("resnet_models/pytorch-resnet50/throughput_train_float16", 760.3, 760.3, "sample/s"),
    ],
)
def test_units_follow_superbenchs_documentation(name, value, expected, unit):
    rule = rule_of(name)
    assert rule is not None
    assert (value * rule.scale, rule.unit) == (pytest.approx(expected), unit)


def test_an_unknown_metric_must_match_and_a_failed_benchmark_is_an_error(tmp_path):
    source = tmp_path / "results.jsonl"
    source.write_text(
        json.dumps(
            {
                "node": "n1",
                "mystery/oddity:0": 3.0,
                "mem-bw/return_code:1": 4,
                "mem-bw/h2d_bw:0": 0,
                "gpu/text": "x",
                "nccl-bw/a_0_0:1024_time": 3.0,
            }
        )
        + "\n"
        + json.dumps({"node": "n2", "mem-bw/h2d_bw:0": 26.0})
        + "\n"
    )
    imported = import_results(source, tmp_path / "runs")
    rows = {row.metric: row for row in imported.runs[0].rows}
    odd = rows["superbench/mystery/oddity"]
    assert (odd.unit, odd.better, odd.values) == ("1", "target", (3.0,))
    assert imported.unknown == ("mystery/oddity",)
    assert rows["superbench/mem-bw/return_code"].status == "error"
    assert rows["superbench/mem-bw/h2d_bw"].status == "invalid"
    (good,) = imported.runs[1].rows
    assert (good.values, good.unit, good.status) == ((2.6e10,), "B/s", "recorded")
    assert dict(imported.ignored) == {"gpu/text": "not a number: 'x'"}
    assert split_key("nccl-bw/a_0_0:1024_time") == ("nccl-bw/a_0_0:1024_time", None)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a/b:0": 1}', "\x00\xff"])
def test_what_is_not_superbenchs_is_refused_before_anything_is_written(tmp_path, text):
    source = tmp_path / "results.jsonl"
    source.write_bytes(text.encode("latin-1"))
    with pytest.raises(ImportFailed, match=re.escape(str(source))):
        import_results(source, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_imported_runs_can_be_learned_from_and_reported(data: Callable[[str], Path], folders):
    assert (
        main(["import-superbench", str(data("anubis/superbench_results_sample.jsonl")), "-o", str(folders["runs"])])
        == 0
    )
    overview = built(folders)
    assert overview.status == "recorded"
    assert len(overview.nodes) == 3
    samples = read_runs(folders["runs"]).samples()
    learned = learn([row.values for _, row in samples["superbench/mem-bw/h2d_bw{rank=0}"]], "higher")
    assert isinstance(learned.criterion, Criterion)


# --- numbers as people read them -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.234e10, "B/s", "12.34 GB/s"),
        (9.512e-4, "s", "951.2 µs"),
        (21000, "gas", "21,000 gas"),
        (12.5, "s", "12.50 s"),
        (0.9999999, "s", "1.000 s"),
        (999.99e6, "B/s", "1.000 GB/s"),
        (0, "B/s", "0 B/s"),
        (2e-13, "s", "0.2000 ps"),
        (None, "s", "–"),
        (0.5, "B", "0.5000 B"),
        (21.0e9, "B/s", "21 GB/s"),
        (12340.0, "token/s", "12,340 token/s"),
        (3.0, "1", "3"),
        (float("nan"), "s", "nan"),
        (1e18, "wei", "1.000e+18 wei"),
        (float(0xAB + 1), "digest", "0000000000ab"),
        (1500.0, "step/s", "1,500 step/s"),
    ],
)
def test_quantities_read_as_people_write_them(value, unit, text):
    assert quantity(value, unit) == text


PREFIXES = {"p": 1e-12, "n": 1e-9, "µ": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


@given(value=st.floats(1e-12, 1e15), unit=st.sampled_from(["s", "B/s", "FLOP/s", "op/s"]))
def test_a_quantity_reads_back_to_four_digits(value, unit):
    number, written = quantity(value, unit).split(" ")
    prefix = written.removesuffix(unit)
    back = float(number.replace(",", "")) * PREFIXES[prefix]
    assert back == pytest.approx(value, rel=5.1e-4)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (None, "–")],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text


def test_stated_values_keep_the_digits_of_the_paper():
    assert stated(22.61, "x") == "22.61×"
    assert stated([1, 2.5], "%") == "1, 2.5 %"
    assert stated({"a": 719.4, "b": 151.7}, "h") == "a 719.4, b 151.7 h"
    assert stated(None, "x") == "–"
    assert exact(421740000) == "421,740,000"
    assert exact(2024) == "2024"
