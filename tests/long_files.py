"""The test files that take longest, in the order in which `pytest -n` is to begin with them: longest first.

Whoever gets a file does all of it. A long one that is begun last is waited for by everybody else, and left to itself
pytest-xdist begins with those that have most tests, which are quick ones. Rough is good enough: `--durations=0` tells.
"""

from __future__ import annotations

LONGEST_FIRST = (
    "test_docker",
    "test_launchers",
    "test_calibrate",
    "test_up",
    "test_drill_report",
    "test_spike",
    "test_chaos",
    "test_load",
    "test_queued_docker",
    "test_drills",
    "test_night_measured",
    "test_split_docker",
    "test_theory",
    "test_worker",
    "test_compare",
    "test_jobs_cli",
    "test_jobs_api",
    "test_plan_cli",
    "test_compare_policies",
    "test_invariants",
    "test_rehearse",
    "test_cache",
    "test_watching",
    "test_versions",
    "test_broker_crashes",
    "test_gateway",
    "test_replica",
    "test_autoscaler",
    "test_cache_servers",
    "test_feedback_docker",
    "test_sweep",
    "test_fast",
    "test_cache_simulated",
    "test_twins",
    "test_edge",
    "test_tutorials",
    "test_ladder",
    "test_browser",
)
