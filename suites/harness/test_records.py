"""Run files, journals and criteria files: what is written is what is read, and nothing bad is believed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from systems.anubis.criteria import CriteriaDamaged, StoredCriterion, load_criteria, save_criteria
from systems.anubis.machine import Machine, Noise
from systems.anubis.records import (
    RUN_SCHEMA,
    SCHEMA_VERSION,
    STATUSES,
    Journal,
    Measurement,
    NotARunFile,
    Run,
    SchemaTooNew,
    compact,
    metric_id,
    read_journal,
    read_run_file,
    read_runs,
    recover,
    write_run,
)
from systems.anubis.validator import learn

MACHINE = Machine(kind="x86_64-test-2c-8g-ssd-nogpu", node="0123456789abcdef", stack="python 3.11", facts={"cores": 2})

words = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)
positive = st.floats(min_value=1e-300, max_value=1e300, allow_nan=False)
maybe = st.none() | st.floats(0, 1)
measurements = st.builds(
    Measurement,
    suite=words,
    test=words,
    component=words,
    metric=words,
    unit=words,
    better=st.sampled_from(["higher", "lower"]),
    values=st.lists(positive, max_size=8).map(tuple),
    params=st.dictionaries(words, words, max_size=3),
    work=st.none() | positive,
    seconds=positive,
    rounds=st.integers(0, 2**31 - 1),
    warmup=st.integers(0, 100),
    attempt=st.integers(0, 9),
    status=st.sampled_from(STATUSES),
    similarity=maybe,
    alpha=maybe,
    margin=maybe,
    criterion=st.none() | words,
    rival=st.none() | words,
    claim=st.none() | words,
    noise=st.builds(
        Noise, psi=maybe, load=maybe, steal=maybe, foreign=maybe, throttled=maybe, clock_mhz=maybe, temp_c=maybe
    ),
    evidence=st.lists(words, max_size=3).map(tuple),
    error=st.none() | words,
)
moments = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


def row(metric="hardware/memory/triad/bandwidth", value=1.0, **changes):
    return replace(
        Measurement(
            suite="hardware",
            test="t",
            component="memory",
            metric=metric,
            unit="B/s",
            better="higher",
            values=(value, 2 * value),
        ),
        **changes,
    )


def run(*rows):
    return replace(Run.begin(MACHINE, commit="abc", command="pytest suites --record"), rows=rows)


@given(rows=st.lists(measurements, max_size=4), started=moments)
def test_a_run_file_round_trips_bit_for_bit(tmp_path_factory, rows, started):
    given_run = replace(run(*rows), started=started)
    path = write_run(given_run, tmp_path_factory.mktemp("runs"))
    assert read_run_file(path) == [given_run]


def test_the_file_name_says_when_where_and_which(tmp_path):
    one = replace(run(row()), started=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), run_id="feedbeefcafe0123")
    assert write_run(one, tmp_path).name == "20260102T030405Z-01234567-feedbeef.parquet"


def test_a_run_file_can_be_read_without_this_code(tmp_path):
    path = write_run(run(row()), tmp_path)
    table = pq.read_table(path)
    assert table.schema.names == RUN_SCHEMA.names
    header = json.loads(table.schema.metadata[b"maat.runs"])[0]
    assert json.loads(header["machine"])["facts"] == {"cores": 2}
    assert header["schema"] == SCHEMA_VERSION
    assert header["commit"] == "abc"


def test_metric_ids_do_not_depend_on_the_order_of_parameters():
    assert (
        metric_id("a/b", {"n": "2048", "device": "cpu"})
        == metric_id("a/b", {"device": "cpu", "n": "2048"})
        == "a/b{device=cpu,n=2048}"
    )
    assert metric_id("a/b", {}) == "a/b"


def test_a_bad_file_among_good_ones_is_skipped_with_its_reason_and_left_alone(tmp_path):
    good = run(row())
    path = write_run(good, tmp_path)
    (tmp_path / "truncated.parquet").write_bytes(path.read_bytes()[:-40])
    (tmp_path / "empty.parquet").write_bytes(b"")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "foreign.parquet")
    newer = pq.read_table(path)
    metadata = {**newer.schema.metadata, b"maat.schema": b"99"}
    pq.write_table(newer.replace_schema_metadata(metadata), tmp_path / "newer.parquet")
    (tmp_path / "copy.parquet").write_bytes(path.read_bytes())
    found = read_runs(tmp_path)
    assert found.runs == (good,)
    reasons = {p.name: reason for p, reason in found.skipped}
    assert set(reasons) == {"truncated.parquet", "empty.parquet", "foreign.parquet", "newer.parquet", path.name} or set(
        reasons
    ) == {"truncated.parquet", "empty.parquet", "foreign.parquet", "newer.parquet", "copy.parquet"}
    assert "version 99" in reasons["newer.parquet"]
    assert f"up to {SCHEMA_VERSION}" in reasons["newer.parquet"]
    assert "not a run file of Maat" in reasons["foreign.parquet"]
    assert len(list(tmp_path.iterdir())) == 6


def test_a_newer_and_a_foreign_file_are_refused_by_name(tmp_path):
    path = write_run(run(row()), tmp_path)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"maat.schema": b"2"}), path)
    with pytest.raises(SchemaTooNew, match=path.name):
        read_run_file(path)
    path.write_text("not parquet")
    with pytest.raises(NotARunFile, match=path.name):
        read_run_file(path)


def test_an_older_file_without_a_later_column_is_still_read(tmp_path):
    path = write_run(run(row()), tmp_path)
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["rival", "evidence"]), path)
    assert read_run_file(path)[0].rows[0].values == (1.0, 2.0)


def test_compaction_keeps_every_row_and_removes_only_what_it_merged(tmp_path):
    runs = [run(row(value=float(i))) for i in range(1, 6)]
    for one in runs:
        write_run(one, tmp_path)
    (tmp_path / "foreign.parquet").write_text("no")
    before = read_runs(tmp_path).runs
    path = compact(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "foreign.parquet"])
    assert read_runs(tmp_path).runs == before
    assert compact(tmp_path) == path
    (tmp_path / path.name).unlink()
    with pytest.raises(NotARunFile, match="no run files"):
        compact(tmp_path)


def test_a_journal_becomes_the_run_file_and_goes(tmp_path):
    journal = Journal(Run.begin(MACHINE), tmp_path)
    journal.append([row("a"), row("b")])
    journal.append([row("c")])
    path = journal.finish({"verdict": "pass"})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    found = read_run_file(path)[0]
    assert [r.metric for r in found.rows] == ["a", "b", "c"]
    assert found.facts["verdict"] == "pass"


def test_a_journal_cut_in_the_middle_of_a_line_loses_that_line_only(tmp_path):
    journal = Journal(Run.begin(MACHINE), tmp_path)
    journal.append([row("a")])
    journal.append([row("b")])
    journal.close()
    text = journal.path.read_bytes()
    journal.path.write_bytes(text[:-10])
    assert [r.metric for r in read_journal(journal.path).rows] == ["a"]
    recovered = read_run_file(recover(journal.path))[0]
    assert recovered.facts["recovered"] is True
    assert not journal.path.exists()
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(NotARunFile, match=r"empty\.jsonl"):
        read_journal(tmp_path / "empty.jsonl")


def test_rows_are_on_disk_when_append_returns_even_if_the_process_is_killed(tmp_path):
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})
from pathlib import Path
from suites.harness.test_records import Journal, Run, MACHINE, row
journal = Journal(Run.begin(MACHINE), Path({str(tmp_path)!r}))
for i in range(10**6):
    journal.append([row(f"m{{i}}")])
    print(i, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        told = [int(process.stdout.readline()) for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().split()]
    (journal,) = tmp_path.glob("*.jsonl")
    kept = [r.metric for r in read_journal(journal).rows]
    assert kept[: len(told)] == [f"m{i}" for i in told]


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    from systems.anubis import records

    path = tmp_path / "file"
    records.write_atomically(path, b"old")

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(records.os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        records.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# --- criteria ---


def stored(values=(1.0, 1.01, 0.99, 1.0), unit="B/s", **changes):
    return replace(
        StoredCriterion(
            criterion=learn(np.asarray(values), "higher").criterion,
            unit=unit,
            component="memory",
            runs=("a", "b"),
            stack="python 3.11",
            seconds=1.5,
            learned_at="2026-01-01T00:00:00+00:00",
        ),
        **changes,
    )


def test_criteria_round_trip_with_their_hashes(tmp_path):
    criteria = {
        "hardware/memory/triad/bandwidth": stored(),
        "hardware/disk/read/bandwidth{size=4k}": stored((5.0, 5, 5)),
        "spider/mm/time": stored((7.0, 7, 7)),
    }
    paths = save_criteria(tmp_path, "kind", criteria)
    assert [p.name for p in paths] == ["hardware.json", "spider.json"]
    found = load_criteria(tmp_path, "kind")
    assert {name: c.hash for name, c in found.items()} == {name: c.hash for name, c in criteria.items()}
    assert load_criteria(tmp_path, "another-kind") == {}
    before = [p.read_bytes() for p in paths]
    save_criteria(tmp_path, "kind", found)
    assert [p.read_bytes() for p in paths] == before


def test_digests_keep_every_digit(tmp_path):
    from systems.anubis.learning import DIGEST_ALPHA

    value = float(2**48 - 5)
    criterion = replace(learn(np.full(4, value), "target").criterion, alpha=DIGEST_ALPHA)
    save_criteria(tmp_path, "kind", {"hardware/a/digest": stored(unit="digest", criterion=criterion)})
    found = load_criteria(tmp_path, "kind")["hardware/a/digest"].criterion
    assert found.judge(value).status == "pass"
    assert found.judge(value + 1e6).status == "defect"


@pytest.mark.parametrize(
    ("find", "put"),
    [
        ('"alpha": 0.95', '"alpha": 0.50'),
        ('"better": "higher"', '"better": "lower"'),
        ('"unit": "B/s"', '"unit": "s"'),
        ('"nodes": 4', '"nodes": 400'),
        ('"hash": "', '"hash": "0'),
    ],
)
def test_a_criterion_changed_by_hand_is_refused_with_its_name(tmp_path, find, put):
    (path,) = save_criteria(tmp_path, "kind", {"hardware/memory/triad/bandwidth": stored()})
    text = path.read_text()
    assert find in text
    path.write_text(text.replace(find, put))
    with pytest.raises(CriteriaDamaged, match="hardware/memory/triad/bandwidth"):
        load_criteria(tmp_path, "kind")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"schema": 1}',
        '{"schema": 1, "kind": "kind", "metrics": 3}',
        '{"schema": 1, "kind": "other", "metrics": {}}',
        "\x00\xff",
    ],
)
def test_a_damaged_criteria_file_is_refused_with_the_remedy(tmp_path, content):
    folder = tmp_path / "kind"
    folder.mkdir()
    (folder / "hardware.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CriteriaDamaged, match=r"hardware\.json"):
        load_criteria(tmp_path, "kind")


def test_criteria_of_a_newer_schema_are_refused_by_version(tmp_path):
    (path,) = save_criteria(tmp_path, "kind", {"hardware/a/b": stored()})
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 7'))
    with pytest.raises(SchemaTooNew, match="version 7"):
        load_criteria(tmp_path, "kind")


def test_thousands_of_run_files_are_read_in_seconds_not_minutes(tmp_path):
    for i in range(200):
        write_run(run(*[row(f"m{k}", value=1.0 + i) for k in range(30)]), tmp_path)
    begun = time.process_time()
    found = read_runs(tmp_path)
    assert len(found.runs) == 200
    assert time.process_time() - begun < 60  # a guard against a quadratic reader, not a speed claim
    samples = found.samples()
    assert len(samples) == 30
    assert all(len(rows) == 200 for rows in samples.values())
