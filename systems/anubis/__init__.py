"""Anubis, the judge: learned acceptance criteria for machines (arXiv 2402.06194).

from systems.anubis import learn, read_runs
learned = learn(bandwidths, better="higher")      # one sample per node, no labels, no thresholds
learned.criterion.judge(one_more).status          # "pass" or "defect"
"""

from systems.anubis.criteria import StoredCriterion, load_criteria, save_criteria
from systems.anubis.machine import Machine, Noise, fingerprint
from systems.anubis.records import Measurement, Run, Runs, compact, read_runs, recover, write_run
from systems.anubis.validator import (
    Criterion,
    Learned,
    NoMajority,
    NotEnoughNodes,
    Verdict,
    learn,
    one_sided,
    quantiles,
    repeatability,
    similarity,
)

__all__ = [
    "Criterion",
    "Learned",
    "Machine",
    "Measurement",
    "NoMajority",
    "Noise",
    "NotEnoughNodes",
    "Run",
    "Runs",
    "StoredCriterion",
    "Verdict",
    "compact",
    "fingerprint",
    "learn",
    "load_criteria",
    "one_sided",
    "quantiles",
    "read_runs",
    "recover",
    "repeatability",
    "save_criteria",
    "similarity",
    "write_run",
]
