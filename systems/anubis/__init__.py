"""Anubis, the judge: learned acceptance criteria for machines (arXiv 2402.06194).

from systems.anubis import learn, read_runs
learned = learn(bandwidths, better="higher")      # one sample per node, no labels, no thresholds
learned.criterion.judge(one_more).status          # "pass" or "defect"
"""

from systems.anubis.calibration import FleetCriteria, learn_fleet
from systems.anubis.criteria import StoredCriterion, load_criteria, save_criteria
from systems.anubis.machine import Machine, Noise, fingerprint
from systems.anubis.records import Measurement, Run, Runs, compact, read_runs, recover, write_run
from systems.anubis.selector import History, Plan, decide, plan
from systems.anubis.simulator import Scenario, simulate
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
from systems.anubis.window import Window, window

__all__ = [
    "Criterion",
    "FleetCriteria",
    "History",
    "Learned",
    "Machine",
    "Measurement",
    "NoMajority",
    "Noise",
    "NotEnoughNodes",
    "Plan",
    "Run",
    "Runs",
    "Scenario",
    "StoredCriterion",
    "Verdict",
    "Window",
    "compact",
    "decide",
    "fingerprint",
    "learn",
    "learn_fleet",
    "load_criteria",
    "one_sided",
    "plan",
    "quantiles",
    "read_runs",
    "recover",
    "repeatability",
    "save_criteria",
    "similarity",
    "simulate",
    "window",
    "write_run",
]
