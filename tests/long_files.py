"""The test files that take longest, in the order in which `pytest -n` is to begin with them: longest first.

Whoever gets a file does all of it. A long one that is begun last is waited for by everybody else, and left to itself
pytest-xdist begins with those that have most tests, which are quick ones. Rough is good enough: `--durations=0` tells.
"""

from __future__ import annotations

LONGEST_FIRST = (
    "test_up",
    "test_docker",
    "test_launchers",
    "test_spike",
    "test_load",
    "test_drill_report",
    "test_compare",
    "test_calibrate",
    "test_worker",
    "test_drills",
    "test_jobs_cli",
    "test_chaos",
    "test_invariants",
    "test_split_docker",
    "test_queued_docker",
    "test_theory",
    "test_compare_policies",
    "test_night_measured",
    "test_rehearse",
    "test_plan_cli",
    "test_cache_simulated",
    "test_cache",
    "test_ladder",
    "test_watching",
    "test_simulator",
    "test_versions",
    "test_fast",
    "test_tutorials",
    "test_autoscaler",
    "test_feedback_docker",
    "test_replica",
    "test_time_plots",
    "test_broker_crashes",
    "test_edge",
)
