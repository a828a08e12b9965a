"""Probes: what the hardware suite measures a machine's parts by, as plain functions that need no pytest.

Each module probes one part and says in its docstring what a figure counts: `compute` (arithmetic), `memory`
(bandwidth and latency), `disk`, `network`, `models` (end-to-end steps). Every probe can verify its own result
against an independent reference, since a part that is fast and wrong is the worst defect of all. Nothing is
imported here: a probe costs only its own libraries.
"""
