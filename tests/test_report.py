"""A report says what was found, marks what must not be trusted, and needs nothing but itself."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from loadtests import report
from loadtests.report import Comparison, Row, Run
from loadtests.wording import METRICS, OF_A_BILL, OF_A_CACHE, listed, shown, shown_error, shown_spread
from stages.calibration import Calibration, GatewayCosts, HostCosts, ServiceTimes
from stages.records import Records
from stages.spec import load_stage
from tests.hand_made_runs import Batch, run, steady

CALIBRATION = Calibration(
    stage="micro-batched",
    machine="a test machine",
    device="emulated t4-resnet50-fp16-pytorch",
    model="digits 1",
    made_at="2026-11-20T12:00:00+00:00",
    command="rung calibrate micro-batched",
    low_load_rate_rps=40.0,
    service_times=(ServiceTimes(batch_size=4, quantiles_s=(0.011, 0.012, 0.015)),),
    host=HostCosts(send_quantiles_s=(0.001,), wake_s=0.000125),
)

UNCACHED = [metric for metric in METRICS if metric not in (*OF_A_CACHE, *OF_A_BILL)]


@pytest.fixture(autouse=True)
def drawn_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but rendered only by the test that looks at the files."""
    monkeypatch.setattr(report, "png", lambda figure: b"a picture")


def a_run(load: float, repeat: int, measured: Records, predicted: Records, void: str | None = None) -> Run:
    return Run(load, 100 * load, repeat, void, measured, predicted)


def some_runs() -> list[Run]:
    """Measured p50 of 32, 33 and 36 ms at load 0.5 against 35.5 predicted; the only run at 1.2 is void."""
    predicted = steady(0.0235)
    return [
        a_run(1.2, 0, steady(0.09, shed=10), steady(0.08, shed=20), "the generator lagged"),
        a_run(0.5, 0, steady(0.020), predicted),
        a_run(0.5, 1, steady(0.021), predicted),
        a_run(0.5, 2, steady(0.024), predicted),
        a_run(0.5, 3, steady(9.0), steady(9.0), "the host was busy"),
    ]


def a_comparison(runs: list[Run] | None = None, stage: str = "micro-batched", **changes: Any) -> Comparison:
    runs = some_runs() if runs is None else runs
    percentiles = {f"latency_s_p{p}": 0.03 for p in (50, 95, 99)}
    made = Comparison(
        stage=load_stage(stage),
        device_label="emulated t4-resnet50-fp16-pytorch",
        machine="a test machine",
        command="rung compare micro-batched --loads 0.5,1.2",
        capacity_rps=100.0,
        calibration=CALIBRATION,
        runs=runs,
        rows=report.rows(stage, runs, 0.1),
        curve=[
            {"load": load, "rate_rps": 100 * load, "throughput_rps": 100 * load, **percentiles} for load in (0.1, 1.0)
        ],
        caveats=[],
        made_at="2026-11-20T13:02:00+00:00",
        short=False,
    )
    return dataclasses.replace(made, **changes)


def row_of(rows: list[Row], load: float, metric: str) -> Row:
    (found,) = (row for row in rows if row.load == load and row.metric == metric)
    return found


def test_rows_are_medians_over_the_sound_repeats_with_their_spread() -> None:
    rows = report.rows("micro-batched", some_runs(), 0.1)
    assert [row.load for row in rows] == [0.5] * len(UNCACHED) + [1.2] * len(UNCACHED)
    p50 = row_of(rows, 0.5, "latency_s_p50")
    assert (p50.measured, p50.predicted) == pytest.approx((0.033, 0.0355))
    assert (p50.spread_low, p50.spread_high) == pytest.approx((0.032, 0.036))
    assert p50.error == pytest.approx(0.0355 / 0.033 - 1)
    assert (p50.stage, p50.rate_rps, p50.void) == ("micro-batched", 50.0, False)


def test_error_of_a_share_is_a_difference() -> None:
    runs = [a_run(0.5, 0, steady(0.02, shed=25), steady(0.03, shed=100))]  # 100 answers: 20 % and 50 %
    rows = report.rows("a-stage", runs, 0.1)
    assert row_of(rows, 0.5, "shed_share").error == pytest.approx(0.3)
    assert row_of(rows, 0.5, "utilisation").error == pytest.approx(0.05)  # 50 batches of 20 and 30 ms in 10 s
    assert row_of(rows, 0.5, "batch_size_mean").error == 0.0


def test_a_load_without_a_sound_run_shows_its_void_ones_marked() -> None:
    row = row_of(report.rows("a-stage", some_runs(), 0.1), 1.2, "latency_s_p50")
    assert row.void
    assert row.sign == "void"
    assert row.measured == pytest.approx(0.102)


def test_what_could_not_be_measured_is_nan_and_reads_as_a_dash() -> None:
    nothing = run([], shed=3)
    half = report.rows("a-stage", [a_run(0.5, 0, nothing, nothing), a_run(0.5, 1, steady(0.02), nothing)], 0.1)
    p50 = row_of(half, 0.5, "latency_s_p50")
    assert p50.measured == pytest.approx(0.032), "the repeat that has a figure gives it"
    assert math.isnan(p50.predicted) and math.isnan(p50.error)
    assert p50.sign == "?"
    assert shown("latency_s_p50", math.nan) == shown_error("latency_s_p50", math.nan) == "–"
    none = report.rows("a-stage", [a_run(0.5, 0, nothing, nothing)], 0.1)
    assert math.isnan(row_of(none, 0.5, "latency_s_p99").measured)
    assert row_of(none, 0.5, "throughput_rps").error == 0.0, "nothing predicted and nothing measured agree"


@pytest.mark.parametrize(
    ("predicted", "spread", "sign"),
    [(1.02, (1, 1), "="), (1.08, (0.9, 1.1), "="), (1.08, (0.9, 1.05), "~"), (0.91, (1, 1), "~"), (1.2, (1, 1), "!")],
)
def test_signs_say_how_far_off(predicted: float, spread: tuple[float, float], sign: str) -> None:
    row = Row("s", 0.5, 50.0, "latency_s_p50", 1.0, predicted, predicted - 1.0, *spread, False)
    assert row.sign == sign


def of_two(batches: list[Batch]) -> Records:
    """Two replicas, which take batches in turn."""
    return run(batches, replicas=2, devices=("quick", "slow"), through_gateway=True)


def test_shares_say_who_served_what_as_medians_over_the_repeats() -> None:
    batches = [(float(n), n + 0.5, 3 if n % 2 == 0 else 1) for n in range(8)]
    even = [(float(n), n + 0.5, 2) for n in range(8)]
    runs = [a_run(0.5, n, of_two(each), of_two(even)) for n, each in enumerate((batches, batches, even))]
    found = a_comparison(runs, stage="load-balanced").shares
    assert [(share.replica, share.device) for share in found] == [(0, "quick"), (1, "slow")]
    assert [(share.measured, share.predicted) for share in found] == [(0.75, 0.5), (0.25, 0.5)]
    text = printed(a_comparison(runs, stage="load-balanced"))
    assert "1, slow" in text
    assert "+25.0 pt" in text


def test_a_replica_that_served_nobody_has_a_share_of_nothing() -> None:
    idle = dataclasses.replace(of_two([]), requests=run([(1.0, 2.0, 4)]).requests, batches=run([(1.0, 2.0, 4)]).batches)
    found = a_comparison([a_run(0.5, 0, idle, of_two([(1.0, 2.0, 1), (1.0, 2.0, 1)]))]).shares
    assert [(share.measured, share.predicted) for share in found] == [(1.0, 0.5), (0.0, 0.5)]


def test_one_replica_has_no_shares(tmp_path: Path) -> None:
    assert a_comparison().shares == []
    assert "Who served what" not in page_of(a_comparison(), tmp_path).text


def test_page_of_a_fleet_says_who_served_what_and_what_the_gateway_cost(tmp_path: Path) -> None:
    batches = [(float(n), n + 0.5, 2) for n in range(8)]
    calibration = CALIBRATION.model_copy(
        update={"gateway": GatewayCosts(busy_s=0.00075), "other_devices": {"slow": CALIBRATION.service_times}}
    )
    comparison = a_comparison(
        [a_run(0.5, 0, of_two(batches), of_two(batches))], stage="load-balanced", calibration=calibration
    )
    page = page_of(comparison, tmp_path)
    for words in (
        "Who served what",
        "0, quick 50.0 % 50.0 %",
        "the gateway's processor time for a request 0.750 ms",
        "device time of a batch of 4, slow",
        "takes 0.75 ms a request",
    ):
        assert words in page.text
    assert "no proxy" not in page.text


def test_figures_read_as_people_write_them() -> None:
    assert [shown("latency_s_p50", x) for x in (0.0000456, 0.00831, 0.0123, 0.1043, 2.0)] == [
        "0.05 ms",
        "8.31 ms",
        "12.3 ms",
        "104 ms",
        "2000 ms",
    ]
    assert shown("shed_share", 0.123) == "12.3 %"
    assert shown_error("latency_s_p50", -0.0123) == "-1.2 %"
    assert shown_error("shed_share", 0.004) == "+0.4 pt"
    assert shown_error("latency_s_p50", -0.0001) == "0.0 %"
    assert shown_spread("latency_s_p50", 0.0118, 0.0129) == "11.8 to 12.9 ms"
    assert shown_spread("latency_s_p50", 0.01180, 0.01181) == "11.8 ms"
    assert [listed(parts) for parts in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_result_in_words_gives_the_worst_errors_of_sound_runs_below_capacity() -> None:
    runs = [*some_runs(), a_run(0.8, 0, steady(0.020), steady(0.0231))]
    runs.append(a_run(1.1, 0, steady(0.09, shed=10), steady(0.09, shed=10)))
    words = report.result_in_words(a_comparison(runs))
    assert "4 sound runs, loads 0.5 to 0.8" in words
    assert "+9.7 % for latency p50 (load 0.8)" in words  # 32 ms measured, 35.1 predicted
    assert "At 1.1 times capacity: 0.0 % for throughput, 0.0 pt for shed share and 0.0 % for latency p99." in words
    assert "1.2" not in words, "a void load says nothing"
    inside = report.result_in_words(a_comparison(some_runs()))
    assert "+7.6 % for latency p50 (load 0.5, inside the spread of the repeats)" in inside


def test_result_in_words_says_when_there_is_none() -> None:
    assert "No run below capacity is sound" in report.result_in_words(a_comparison(some_runs()[:1]))
    assert "short run" in report.result_in_words(a_comparison(short=True))


TABLE = """\
Micro-batched on emulated t4-resnet50-fp16-pytorch, short run

 metric               measured  predicted    error        measured spread
 ─────────────────────────────────────────────────────────────────────────
 load 0.5, 50.0/s
   throughput           10.0/s     10.0/s    0.0 %  =              10.0/s
   goodput              10.0/s     10.0/s    0.0 %  =              10.0/s
   shed share           0.00 %     0.00 %   0.0 pt  =              0.00 %
   latency p50         33.0 ms    35.5 ms   +7.6 %  =     32.0 to 36.0 ms
   latency p90         33.0 ms    35.5 ms   +7.6 %  =     32.0 to 36.0 ms
   latency p95         33.0 ms    35.5 ms   +7.6 %  =     32.0 to 36.0 ms
   latency p99         33.0 ms    35.5 ms   +7.6 %  =     32.0 to 36.0 ms
   mean batch size        2.00       2.00    0.0 %  =                2.00
   device throughput    95.2/s     85.1/s  -10.6 %  =       83.3 to 100/s
   utilisation          10.5 %     11.8 %  +1.3 pt  =      10.0 to 12.0 %
   mean queue wait     10.0 ms    10.0 ms    0.0 %  =             10.0 ms
   queue wait p95      10.0 ms    10.0 ms    0.0 %  =             10.0 ms

 load 1.2, 120/s
   throughput           10.0/s     10.0/s    0.0 %  void           10.0/s
"""


def printed(comparison: Comparison) -> str:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    report.print_table(comparison, console)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def test_table_reads_so() -> None:
    text = printed(a_comparison(short=True, caveats=["beyond the sweep"]))
    assert text.startswith(TABLE)
    assert "void: load 0.5, repeat 4: the host was busy" in text
    assert "void: load 1.2, repeat 1: the generator lagged" in text
    assert "caveat: beyond the sweep" in text
    assert max(map(len, text.splitlines())) <= 80


def test_table_of_sound_runs_has_no_word_of_void() -> None:
    assert "void" not in printed(a_comparison(some_runs()[1:4]))


class Page(HTMLParser):
    """Collects what a browser would fetch or run, the tags left open, and the text."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def page_of(comparison: Comparison, folder: Path) -> Page:
    return Page(report.write_report(comparison, folder).read_text(encoding="utf-8"))


def test_page_needs_no_other_file_and_runs_no_script(tmp_path: Path) -> None:
    path = report.write_report(a_comparison(), tmp_path / "new")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [], "every tag is closed"
    assert len(page.fetched) == 4
    assert all(source.startswith("data:image/png;base64,") for source in page.fetched)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "@import" not in text and "url(" not in text


def test_page_says_what_was_asked_and_found_and_left_out(tmp_path: Path) -> None:
    comparison = a_comparison(caveats=["Batches of 3 were not in the sweep."])
    page = page_of(comparison, tmp_path)
    for words in (
        comparison.stage.question,
        report.result_in_words(comparison),
        "Batches of 3 were not in the sweep.",
        comparison.command,
        "a test machine",
        "2026-11-20 13:02:00 UTC",
        "device time of a batch of 4 median 12.0 ms (11.0 to 15.0)",
        "0.125 ms",
        "What the model leaves out",
        "seed 1",
    ):
        assert words in page.text
    assert page.text.index("Latency counts from") < page.text.index("Errors at a glance"), "the hockey stick is first"


def test_page_says_emulated_in_its_header_and_under_every_picture(tmp_path: Path) -> None:
    page = page_of(a_comparison(device_label="t4-resnet50-fp16-pytorch"), tmp_path)
    header = page.text.partition("Below capacity")[0]
    assert "emulated t4-resnet50-fp16-pytorch" in header
    assert page.text.count("no such device was in the machine") == page.tags.count("figcaption") == 4


def test_page_of_a_timed_device_never_says_emulated(tmp_path: Path) -> None:
    stage = load_stage("single-vm")
    timed = stage.model_copy(update={"device": stage.device.model_copy(update={"kind": "cpu", "profile": None})})
    comparison = a_comparison(
        stage="single-vm", device_label="cpu", calibration=CALIBRATION.model_copy(update={"device": "cpu"})
    )
    page = page_of(dataclasses.replace(comparison, stage=timed), tmp_path)
    assert "emulated" not in page.text


@pytest.mark.parametrize("short", [True, False])
def test_page_says_when_the_run_was_short(tmp_path: Path, short: bool) -> None:
    assert ("short" in page_of(a_comparison(short=short), tmp_path).text.lower()) is short


def test_page_lists_void_runs_and_why(tmp_path: Path) -> None:
    page = page_of(a_comparison(), tmp_path / "void")
    assert "2 of 5 runs void" in page.text
    assert "Load 0.5, repeat 4: the host was busy" in page.text
    assert "Load 1.2: 120/s (void)" in page.text
    assert "Void runs" not in page_of(a_comparison(some_runs()[1:4]), tmp_path / "sound").text


def test_every_error_stands_with_its_sign(tmp_path: Path) -> None:
    comparison = a_comparison()
    text = report.write_report(comparison, tmp_path).read_text(encoding="utf-8")
    marks = text.count('<span class="sign ')
    assert marks == len(comparison.rows) + len(report.AT_A_GLANCE) * len(comparison.loads)
    for row in comparison.rows:
        assert f'<span class="sign {report.SIGNS[row.sign]}">{row.sign}</span>' in text


def test_page_takes_names_as_text(tmp_path: Path) -> None:
    page = page_of(a_comparison(machine="<script>alert(1)</script>"), tmp_path)
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text


def test_batch_sizes_are_left_out_where_every_batch_is_one(tmp_path: Path) -> None:
    page = page_of(a_comparison(stage="single-vm"), tmp_path)
    assert len(page.fetched) == 3
    assert not (tmp_path / "batch_sizes.png").exists()


def test_timelines_beside_the_page_are_named(tmp_path: Path) -> None:
    assert "timeline" not in page_of(a_comparison(), tmp_path).text
    (tmp_path / "timeline.json").write_text("{}")
    assert "timeline.json" in page_of(a_comparison(), tmp_path).text


def test_report_json_has_the_rows_and_where_the_page_is(tmp_path: Path) -> None:
    nothing = run([], shed=3)
    comparison = a_comparison([*some_runs(), a_run(0.9, 0, nothing, nothing)])
    path = report.write_report(comparison, tmp_path)
    document = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert document["report"] == str(path)
    assert len(document["rows"]) == 3 * len(UNCACHED)
    keys = ["stage", "load", "rate_rps", "metric", "measured", "predicted", "error"]
    keys += ["spread_low", "spread_high", "void"]
    assert all(list(row) == keys for row in document["rows"])
    unknown = [row for row in document["rows"] if row["load"] == 0.9 and row["metric"] == "latency_s_p99"]
    assert unknown[0]["measured"] is None
    assert {name: document[name] for name in ("stage", "emulated", "short", "machine", "capacity_rps")} == {
        "stage": "micro-batched",
        "emulated": True,
        "short": False,
        "machine": "a test machine",
        "capacity_rps": 100.0,
    }
    assert document["void_runs"][0] == {"load": 1.2, "repeat": 0, "why": "the generator lagged"}


def test_pictures_lie_beside_the_page_and_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    page = page_of(a_comparison(), tmp_path)
    pictures = {path.stem: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert sorted(pictures) == ["batch_sizes", "device_utilisation", "latency_against_load", "latency_distributions"]
    inside = {base64.b64decode(source.partition(",")[2]) for source in page.fetched}
    assert inside == set(pictures.values())
    assert all(data.startswith(b"\x89PNG") for data in inside)


def test_a_comparison_of_nothing_still_gives_a_page(tmp_path: Path) -> None:
    page = page_of(a_comparison([], curve=[]), tmp_path)
    assert "No run below capacity is sound" in page.text


def test_frames_for_the_plots_hold_every_row() -> None:
    figure = report._figures(a_comparison())["latency_against_load"]
    points = {str(line.get_label()): line for line in figure.axes[0].lines}
    assert np.asarray(points["measured p50"].get_xydata()) == pytest.approx(np.array([[50.0, 33.0]]))
    assert np.asarray(points["void p50"].get_xydata()) == pytest.approx(np.array([[120.0, 102.0]]))
