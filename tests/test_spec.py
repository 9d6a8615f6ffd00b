"""The stage: every mistake in words, defaults, names and paths, and the way from a stage to TOML and back.

Each tests/invalid_stages/<case>.toml is a stage with a mistake, and <case>.txt what the user is told. After a change
of wording, write the texts anew and read them as the user would:

    REWRITE_GOLDEN=1 python -m pytest tests/test_spec.py
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from pydantic import BaseModel

from stages import (
    advice,
    alert_rules,
    cache_rules,
    cost_rules,
    feedback_rules,
    fleet_rules,
    machine_rules,
    model_rules,
    queue_rules,
    rules,
    scaling_rules,
    sharing_rules,
    spec,
    split_rules,
)
from stages.demand import TraceRate
from stages.problems import StageError, tables_in

INVALID = Path(__file__).resolve().parent / "invalid_stages"
CASES = sorted(path.stem for path in INVALID.glob("*.toml"))


def _told(file: Path) -> str:
    with pytest.raises(StageError) as caught:
        spec.load_stage(file)
    return str(caught.value).replace(str(file.parent), "<folder>") + "\n"


def _table(**changes: Any) -> dict[str, Any]:
    """A sound stage as tables, with dotted keys (dots written as __) changed."""
    table: dict[str, Any] = {
        "name": "sound",
        "title": "Sound",
        "question": "Does it load?",
        "model": {"name": "digits"},
        "device": {"kind": "cpu"},
        "traffic": {"rate": {"shape": "constant", "rate_rps": 20.0}},
        "slo": {"latency_s": 0.1},
    }
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        owner = table
        for parent in parents:
            owner = owner.setdefault(parent, {})
        owner[last] = value
    return table


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_told_in_words(case: str) -> None:
    told, golden = _told(INVALID / f"{case}.toml"), INVALID / f"{case}.txt"
    if os.environ.get("REWRITE_GOLDEN"):
        golden.write_text(told, encoding="utf-8")
    assert told == golden.read_text(encoding="utf-8")


def test_every_golden_text_has_its_stage() -> None:
    assert sorted(path.stem for path in INVALID.glob("*.txt")) == CASES


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_every_rule_has_a_stage_that_breaks_it(rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    named = [case for case in CASES if case.split("-")[0] == rule.__name__]
    assert named
    monkeypatch.setattr(rules, "RULES", (rule,))
    for case in named:
        table = tomllib.loads((INVALID / f"{case}.toml").read_text(encoding="utf-8"))
        spec._anchor_paths(table, INVALID)
        assert list(rules.broken(table)), f"{case} does not break the rule that it is named after"


def test_every_rule_function_is_asked() -> None:
    defined = {
        name
        for module in (
            *(rules, alert_rules, cache_rules, cost_rules, feedback_rules, fleet_rules),
            *(machine_rules, model_rules, queue_rules, scaling_rules, sharing_rules, split_rules),
        )
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
    }
    assert defined - {"broken"} == {rule.__name__ for rule in rules.RULES}


def test_every_key_has_its_advice() -> None:
    keys: set[str] = set()

    def collect(table: type[BaseModel], prefix: str) -> None:
        for name, field in table.model_fields.items():
            keys.add(prefix + name)
            for inner in tables_in(field.annotation):
                collect(inner, f"{prefix}{name}.")

    collect(spec.Stage, "")
    assert keys == set(advice.ADVICE)
    assert set(advice.TOO_HIGH) <= keys


def test_an_advice_is_sentences() -> None:
    for sentences in (*advice.ADVICE.values(), *advice.TOO_HIGH.values()):
        for sentence in sentences:
            assert sentence[0].isupper() or sentence[0] in "`r"
            assert sentence.endswith(".")


@pytest.mark.parametrize("name", spec.stage_files())
def test_the_stages_of_the_ladder_load_by_name(name: str) -> None:
    assert spec.load_stage(name).name == name


@pytest.mark.parametrize("name", spec.stage_files())
def test_a_stage_goes_to_toml_and_back(name: str, tmp_path: Path) -> None:
    stage = spec.load_stage(name)
    (tmp_path / "stage.toml").write_text(spec.stage_toml(stage), encoding="utf-8")
    assert spec.load_stage(tmp_path) == stage


@pytest.mark.parametrize(
    "changes",
    [
        {"traffic": {"loop": "closed", "users": 3, "think_time_s": 0.5}},
        {"traffic__arrivals": "gamma", "traffic__coefficient_of_variation": 3.0},
        {"traffic__items__popularity": "zipf", "traffic__items__exponent": 1.2},
        {"traffic__rate": {"shape": "diurnal", "rate_rps": 20.0}},
        {"traffic": {"duration_s": 5.0, "rate": {"shape": "trace", "path": str(INVALID / "traces/times.csv")}}},
        {"device": {"kind": "emulated", "profile": "a100-resnet50-fp16-tensorflow", "slowdown": 8.0}},
        {"model": {"name": "resnet50", "image_size_px": 64}},
        {"admission__deadline_s": 0.5},
        {"fleet__replicas": 3, "gateway": {}},
        {"gateway": {}, "cache": {"policy": "s3-fifo", "ttl_s": 30.0, "single_flight": False}},
        {"gateway": {}, "cache": {"store": "redis", "url_env": "MY_URL", "timeout_s": 0.1}},
        {"traffic__items": {"popularity": "zipf", "drift_interval_s": 5.0, "drift_share": 0.1}},
        {"fleet__replicas": 2, "gateway": {"policy": "sticky", "sticky_load_bound": 2.0, "retries_max": 0}},
        {"fleet__replicas": 2, "gateway": {"engine": "nginx", "edge": {"host": "::1", "port": 8000}}},
        {
            "device": {"kind": "emulated", "profile": "t4-resnet50-fp16-pytorch"},
            "fleet": {"replicas": 2, "profiles": ["t4-resnet50-fp16-pytorch", "a100-resnet50-fp16-tensorflow"]},
            "gateway": {"edge": {"host": "0.0.0.0", "api_keys_env": "RUNG_API_KEYS"}},
        },
    ],
    ids=lambda changes: "-".join(changes),
)
def test_toml_has_every_key_that_counts_and_none_that_does_not(changes: dict[str, Any], tmp_path: Path) -> None:
    stage = spec.parse_stage(_table(**changes))
    text = spec.stage_toml(stage)
    (tmp_path / "stage.toml").write_text(text, encoding="utf-8")
    again = spec.load_stage(tmp_path)
    assert again == stage
    assert spec.stage_toml(again) == text
    assert tomllib.loads(text)["lifecycle"] == {"ready_timeout_s": 60.0, "drain_timeout_s": 30.0}


def test_an_override_sets_makes_and_removes_keys() -> None:
    given = {"slo.latency_s": 0.2, "traffic.items.count": 5, "device.kind": "cpu", "device.profile": None}
    stage = spec.load_stage("single-vm", given)
    assert (stage.slo.latency_s, stage.traffic.items.count, stage.device.profile) == (0.2, 5, None)


def test_an_override_into_a_value_is_refused() -> None:
    with pytest.raises(StageError, match=r"name\.first: is no key, because name is no table"):
        spec.load_stage("single-vm", {"name.first": 1})


def test_paths_are_seen_from_the_file_and_overrides_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = (INVALID / "traces/times.csv").read_bytes()
    (tmp_path / "here").mkdir()
    (tmp_path / "near.csv").write_bytes(trace)
    (tmp_path / "here/far.csv").write_bytes(trace)
    file = tmp_path / "stage.toml"
    table = _table(traffic={"duration_s": 5.0, "rate": {"shape": "trace", "path": "near.csv"}})
    file.write_text(tomli_w.dumps(table), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    near = spec.load_stage(file).traffic.rate
    far = spec.load_stage(file, {"traffic.rate.path": "far.csv"}).traffic.rate
    assert isinstance(near, TraceRate) and near.path == str(tmp_path / "near.csv")
    assert isinstance(far, TraceRate) and far.path == str(tmp_path / "here/far.csv")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "file: must describe a stage, got an empty file. Nothing could be read."),
        (b"# nothing but words\n", "file: must describe a stage, got an empty file. Nothing could be read."),
        (b"\x7fELF\x02\x01\xff\xfe", "file: must be a text in UTF-8, got other bytes. Nothing could be read."),
        (
            b'name = "x"\nslo latency_s = 3\n',
            "line 2, column 5: is no TOML: expected '=' after a key in a key/value pair. Nothing could be read.",
        ),
        (b"name = [", "end of document: is no TOML: invalid value. Nothing could be read."),
    ],
)
def test_a_file_that_holds_no_stage(content: bytes, told: str, tmp_path: Path) -> None:
    file = tmp_path / "stage.toml"
    file.write_bytes(content)
    text = _told(file)
    assert text.startswith(f"<folder>/stage.toml: 1 problem\n  {told}")
    assert text.count("\n") == 2


def test_a_folder_without_a_stage(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        spec.load_stage(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: 1 problem\n  stage.toml: must be in the folder. There is no stage to read. "
        f"Name one that has it, or a stage: {', '.join(spec.stage_files())}."
    )


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(StageError, match="Did you mean 'micro-batched'"):
        spec.load_stage("micro-batch")
    with pytest.raises(StageError, match="The stages are single-vm, micro-batched"):
        spec.load_stage("zzz")


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(StageError) as caught:
        spec.load_stage(INVALID / "many_at_once.toml")
    assert len(caught.value.problems) == 8


def test_a_problem_in_one_table_hides_no_rule_of_another() -> None:
    with pytest.raises(StageError) as caught:
        spec.parse_stage(_table(slo__latency_s=-1.0, traffic__users=3, model__image_size_px=64))
    assert {problem.key for problem in caught.value.problems} == {
        "slo.latency_s",
        "traffic.users",
        "model.image_size_px",
    }


def test_overload_is_let_through_when_it_is_meant() -> None:
    device = {"kind": "emulated", "profile": "t4-resnet50-fp16-pytorch"}
    assert spec.parse_stage(_table(device=device, traffic__rate__rate_rps=500.0, overload=True)).overload
    with pytest.raises(StageError, match=r"capacity of 79\.0 requests per second"):
        spec.parse_stage(_table(device=device, traffic__rate__rate_rps=500.0))


@pytest.mark.parametrize(
    ("rate", "mean_rps"),
    [
        ({"shape": "constant", "rate_rps": 20.0}, 20.0),
        ({"shape": "ramp", "rate_rps_start": 10.0, "rate_rps_end": 40.0}, 25.0),
        ({"shape": "step", "rate_rps": 10.0, "rate_rps_after": 40.0, "step_at_s": 45.0}, 17.5),
        (
            {
                "shape": "spike",
                "rate_rps": 10.0,
                "spike_factor": 4.0,
                "spike_start_s": 50.0,
                "spike_duration_s": 30.0,
            },
            15.0,
        ),
        ({"shape": "diurnal", "rate_rps": 10.0, "amplitude": 0.5, "period_s": 60.0}, 10.0),
        ({"shape": "diurnal", "rate_rps": 10.0, "amplitude": 1.0, "period_s": 240.0}, 10.0 - 20.0 / 3.14159265),
    ],
)
def test_the_mean_rate_of_each_shape_over_a_minute(rate: dict[str, Any], mean_rps: float) -> None:
    assert spec.mean_rate_rps(spec.parse_stage(_table(traffic__rate=rate)).traffic) == pytest.approx(mean_rps)


def test_capacity_is_the_best_of_all_batch_sizes() -> None:
    times_s = {1: 0.010, 2: 0.012, 3: 0.030}
    assert spec.capacity_rps(times_s.__getitem__, 3) == pytest.approx(2 / 0.012)
