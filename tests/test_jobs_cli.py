"""The verbs for jobs, and batches of them: what is done is not done again, whatever ended the run before."""

from __future__ import annotations

import gzip
import io
import json
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import orjson
import pytest

from reference_apps.asking import wait_until
from reference_apps.batch_jobs import CHUNK, BatchError, BatchRun, Summary
from reference_apps.job_items import ItemsError, item_of, items_of
from reference_apps.job_store import JobStore
from reference_apps.models import load_inputs
from reference_apps.up import list_up, queue_folder
from stages.spec import Stage
from tests.conftest import PATIENCE_S, ROOT, Rung, result
from tests.queued import INPUTS, POISON, Digits, put, queued, stored, working

pytestmark = pytest.mark.usefixtures("in_numpy")

MODEL: Any = load_inputs(queued().model)


def lines_of(inputs: np.ndarray, **more: Any) -> bytes:
    return b"".join(orjson.dumps({"input": x.tolist()} | more) + b"\n" for x in inputs)


def many(count: int) -> np.ndarray:
    """So many inputs, no two of them alike."""
    made: np.ndarray = np.zeros((count, 1, 8, 8), np.float32)
    made[:, 0, 0, 0] = np.arange(count) / count
    return made


def dark(x: np.ndarray) -> float:
    return round(float(x.sum()), 3)


def ran(store: JobStore, source: str, out: str | None = None, stall_timeout_s: float = PATIENCE_S) -> Summary:
    return BatchRun(store, MODEL, source, out or f"{source}.results.jsonl", 2, stall_timeout_s).run()


def several_arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, INPUTS[:1], INPUTS[1:2])
    return file.getvalue()


def read(path: Path | str) -> list[dict[str, Any]]:
    with fsspec.open(str(path), "rb") as file:
        return [json.loads(line) for line in file.read().splitlines()]


# ---- inputs out of files ----


def test_inputs_are_read_out_of_lines_and_arrays(tmp_path: Path) -> None:
    lines, packed, array = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz", tmp_path / "c.npy"
    lines.write_bytes(lines_of(INPUTS[:3]) + b"\n" + lines_of(INPUTS[3:4], id="the fourth"))
    packed.write_bytes(gzip.compress(lines_of(INPUTS[:4])))
    np.save(array, INPUTS[:4])
    for path in (lines, packed, array):
        items = list(items_of(str(path), MODEL))
        assert [item.number for item in items] == [0, 1, 2, 3]
        assert {item.wrong for item in items} == {""}
    assert [item.name for item in items_of(str(lines), MODEL)] == [None, None, None, "the fourth"]


def test_an_input_that_cannot_be_read_is_told_and_the_others_are_not_its_fault(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines_of(INPUTS[:1]) + b'{"input": [1]}\nno json\n' + lines_of(INPUTS[1:2]))
    items = list(items_of(str(file), MODEL))
    assert [bool(item.wrong) for item in items] == [False, True, True, False]
    assert "must have the shape 1x8x8" in items[1].wrong


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"1,2", "must end with .jsonl"),
        ("a.npy", b"no array", "must be an array as numpy.save writes it"),
        ("a.npy", several_arrays(), "must be an array as numpy.save writes it"),
        ("a.npy", several_arrays()[:100], "must be an array as numpy.save writes it"),
        ("a.jsonl.gz", gzip.compress(lines_of(INPUTS[:4]))[:-20], "must be readable, got EOFError"),
        ("a.jsonl.gz", gzip.compress(b"")[:10] + b"\xff" * 20, "must be readable, got error: Error -3"),
        ("missing.jsonl", None, "must be readable"),
    ],
    ids=["ending", "no array", "several arrays", "cut off zip", "cut off gzip", "damaged gzip", "missing"],
)
def test_a_file_of_another_kind_is_told(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ItemsError, match=said):
        list(items_of(str(tmp_path / name), MODEL))


def test_a_protocol_that_nobody_knows_is_told(tmp_path: Path) -> None:
    said = "nosuch://a.* must be a path, or begin with a protocol that fsspec knows"
    with pytest.raises(ItemsError, match=said):
        list(items_of("nosuch://a.jsonl", MODEL))
    with pytest.raises(ItemsError, match=said):
        item_of("nosuch://a.npy", MODEL)
    with stored(queued(), tmp_path) as store, pytest.raises(ItemsError, match=said):
        ran(store, str(tmp_path / "items.npy"), "nosuch://a.results.jsonl")


def test_an_array_of_another_shape_is_told(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", INPUTS[0][0])
    with pytest.raises(ItemsError, match=r"must be an array \(n, 1x8x8\), got \(8, 8\)"):
        list(items_of(str(tmp_path / "a.npy"), MODEL))


def test_one_input_is_read_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(orjson.dumps({"input": INPUTS[0].tolist()}))
    np.save(tmp_path / "a.npy", INPUTS[0])
    MODEL.example_images(1, seed=1)[0].save(tmp_path / "a.png")
    assert {item_of(str(tmp_path / f"a.{kind}"), MODEL).wrong for kind in ("json", "npy", "png")} == {""}
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ItemsError, match=r"must end with \.json, \.png or \.npy"):
        item_of(str(tmp_path / "a.txt"), MODEL)


# ---- runs over a file ----


def test_a_run_answers_every_input_in_its_order(tmp_path: Path) -> None:
    source = tmp_path / "items.npy"
    inputs = many(2 * CHUNK + 17)
    np.save(source, inputs)
    with stored(queued(), tmp_path) as store, working(queued(), store, model=Digits()):
        summary = ran(store, str(source))
    rows = read(f"{source}.results.jsonl")
    assert (summary.items, summary.ok, summary.failed, summary.before) == (len(inputs), len(inputs), 0, 0)
    assert [row["item"] for row in rows] == list(range(len(inputs)))
    assert [row["answer"]["dark"] for row in rows] == [dark(x) for x in inputs]
    assert {row["outcome"] for row in rows} == {"ok"}
    assert len({row["job"] for row in rows}) == len(inputs)
    left = [f"items.npy{ending}" for ending in ("", ".results.jsonl", ".results.jsonl.source.json")]
    assert sorted(path.name for path in tmp_path.glob("items*")) == left


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    """The first run is stopped in the middle, the second goes on, the third has nothing to do."""
    source, model = tmp_path / "items.npy", Digits()
    inputs = many(3 * CHUNK)
    np.save(source, inputs)
    stage = queued()

    class StoppedError(Exception):
        pass

    with stored(stage, tmp_path) as store:

        def stop(summary: Summary) -> None:
            if summary.ok > CHUNK + 50:
                raise StoppedError

        with working(stage, store, model=model):
            run = BatchRun(store, MODEL, str(source), f"{source}.results.jsonl", 2, PATIENCE_S, stop)
            with pytest.raises(StoppedError):
                run.run()
            second = ran(store, str(source))
        assert second.before == CHUNK  # the part that was written
        assert (second.ok, second.failed) == (2 * CHUNK, 0)
        assert sum(model.batches) == len(inputs)  # those that were put before are known by their keys
        third = ran(store, str(source))
        assert (third.before, third.ok) == (len(inputs), 0)
    assert [row["answer"]["dark"] for row in read(f"{source}.results.jsonl")] == [dark(x) for x in inputs]


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path: Path, verb: Rung) -> None:
    source, model = tmp_path / "items.npy", Digits()
    np.save(source, many(4 * CHUNK))
    stage = queued()
    words = ("jobs", "run", "queued", str(source))
    command = [sys.executable, "-m", "rung", *words]
    with stored(stage, queue_folder("queued")) as store, working(stage, store, model=model):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        part = Path(f"{source}.results.jsonl.parts/000000.jsonl")
        assert wait_until(part.exists, PATIENCE_S)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
        told = result(verb(*words, "--json"))
    assert told["items"] == 4 * CHUNK
    assert told["before"] >= CHUNK
    assert told["failed"] == 0
    assert sum(model.batches) == 4 * CHUNK
    assert [row["item"] for row in read(told["results"])] == list(range(4 * CHUNK))


def test_bad_items_are_told_in_their_place(tmp_path: Path) -> None:
    source = tmp_path / "items.jsonl"
    source.write_bytes(
        lines_of(INPUTS[:2], id="x") + b"no json\n" + lines_of(POISON[np.newaxis]) + lines_of(INPUTS[2:9])
    )
    with stored(queued(), tmp_path) as store, working(queued(), store, model=Digits()):
        summary = ran(store, str(source))
    rows = read(f"{source}.results.jsonl")
    assert (summary.ok, summary.failed) == (9, 2)
    assert [row["outcome"] for row in rows] == ["ok", "ok", "failed", "failed", *["ok"] * 7]
    assert (rows[2]["error"]["title"], rows[2]["job"]) == ("bad_input", None)
    assert rows[3]["error"] == {"title": "model_error", "detail": "ValueError: a picture that cannot be"}
    assert [row.get("id") for row in rows[:3]] == ["x", "x", None]


def test_a_queue_smaller_than_the_file_is_filled_as_it_empties(tmp_path: Path) -> None:
    source = tmp_path / "items.npy"
    np.save(source, many(CHUNK))
    stage = queued(queue__max_depth=37)
    with stored(stage, tmp_path) as store, working(stage, store, model=Digits()):
        assert ran(store, str(source)).ok == CHUNK


def test_results_go_to_any_file_system(tmp_path: Path) -> None:
    folder = f"memory://{uuid.uuid4().hex}"
    with fsspec.open(f"{folder}/items.jsonl", "wb") as file:
        file.write(lines_of(INPUTS[:5]))
    with stored(queued(), tmp_path) as store, working(queued(), store, model=Digits()):
        assert ran(store, f"{folder}/items.jsonl").ok == 5
        assert ran(store, f"{folder}/items.jsonl").before == 5
    rows = read(f"{folder}/items.jsonl.results.jsonl")
    assert [row["answer"]["dark"] for row in rows] == [dark(x) for x in INPUTS[:5]]


def test_a_file_that_has_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "items.npy"
    np.save(source, many(3))
    with stored(queued(), tmp_path) as store:
        with pytest.raises(BatchError, match=r"nothing has gone on for 0\.3 s"):
            ran(store, str(source), stall_timeout_s=0.3)
        np.save(source, many(4))
        with pytest.raises(BatchError, match="has changed since"):
            ran(store, str(source), stall_timeout_s=0.3)


def test_results_of_a_file_that_has_changed_since_are_not_taken_for_its_own(tmp_path: Path) -> None:
    source = tmp_path / "items.npy"
    np.save(source, many(3))
    with stored(queued(), tmp_path) as store, working(queued(), store, model=Digits()):
        assert ran(store, str(source)).ok == 3
        np.save(source, many(4))
        with pytest.raises(BatchError, match="the file has changed since"):
            ran(store, str(source))
        Path(f"{source}.results.jsonl").unlink()
        assert ran(store, str(source)).items == 4


def test_a_file_that_was_there_before_is_not_taken_for_results(tmp_path: Path) -> None:
    source, other = tmp_path / "items.npy", tmp_path / "notes.txt"
    np.save(source, many(3))
    other.write_text("one\ntwo\n")
    with stored(queued(), tmp_path) as store, pytest.raises(BatchError, match=r"notes\.txt: must be results of"):
        ran(store, str(source), str(other))


def test_results_that_are_gone_are_computed_again(tmp_path: Path) -> None:
    source, model, stage = tmp_path / "items.npy", Digits(), queued()
    np.save(source, many(20))
    with stored(stage, tmp_path) as store, working(stage, store, model=model):
        assert ran(store, str(source)).ok == 20
        Path(f"{source}.results.jsonl").unlink()
        while store.results.forget_expired(1e12):
            pass
        assert ran(store, str(source)).ok == 20
    assert sum(model.batches) == 40


# ---- the verbs ----


@pytest.fixture
def stage() -> Stage:
    return queued()


def test_a_job_is_put_shown_and_waited_for(verb: Rung, runs: Path, tmp_path: Path, stage: Stage) -> None:
    file = tmp_path / "a.npy"
    np.save(file, INPUTS[0])
    put_ = result(verb("jobs", "put", "queued", str(file), "--key", "mine", "--json"))
    assert result(verb("jobs", "put", "queued", str(file), "--key", "mine", "--json")) == put_ | {"duplicate": True}
    job = put_["job"]
    assert result(verb("jobs", "status", "queued", job, "--json"))["status"] == "waiting"
    status = result(verb("jobs", "status", "queued", "--json"))
    assert (status["queue"]["waiting"], status["results"]) == (1, {})
    assert verb("jobs", "status", "queued").stdout.startswith("1 waiting, 0 leased, 0 delayed, 0 dead\n")
    over = verb("jobs", "wait", "queued", job, "--timeout", "0.1")
    assert (over.returncode, over.stderr) == (1, f"{job}: is waiting still after 0.1 s. It goes on: ask again.\n")
    with stored(stage, queue_folder("queued")) as store, working(stage, store, model=Digits()):
        done = result(verb("jobs", "wait", "queued", job, "--json"))
        assert (done["outcome"], done["answer"]) == ("ok", {"dark": dark(INPUTS[0])})
    assert json.loads(verb("jobs", "wait", "queued", job).stdout) == {"dark": dark(INPUTS[0])}


def test_dead_letters_are_listed_and_tried_again(verb: Rung, runs: Path, stage: Stage) -> None:
    assert verb("jobs", "dead", "queued").stdout == "No dead letters.\n"
    model = Digits()
    with stored(stage, queue_folder("queued")) as store:
        jobs = put(store, INPUTS[0], POISON, POISON)
        with working(stage, store, model=model):
            assert wait_until(lambda: store.broker.depth().dead == 2, PATIENCE_S)
        listed = result(verb("jobs", "dead", "queued", "--json"))
        assert (listed["dead"], {row["job"] for row in listed["jobs"]}) == (2, set(jobs[1:]))
        assert {row["error"] for row in listed["jobs"]} == {"ValueError: a picture that cannot be"}
        assert "a picture that cannot be" in " ".join(verb("jobs", "dead", "queued").stdout.split())
        neither = verb("jobs", "retry", "queued")
        assert (neither.returncode, "needs either ids" in neither.stderr) == (2, True)
        assert result(verb("jobs", "retry", "queued", jobs[1], "--json")) == {"retried": 1}
        assert verb("jobs", "retry", "queued", jobs[1]).returncode == 1  # it is none any more
        assert result(verb("jobs", "retry", "queued", "--all", "--json")) == {"retried": 1}
        model.predict = lambda inputs: [{"mended": True} for _ in inputs]  # type: ignore[method-assign]
        with working(stage, store, 1, model):
            for job in jobs[1:]:
                assert result(verb("jobs", "wait", "queued", job, "--json"))["answer"] == {"mended": True}


def test_dead_letters_are_thrown_away(verb: Rung, runs: Path, stage: Stage) -> None:
    with stored(stage, queue_folder("queued")) as store:
        jobs = put(store, *INPUTS[:3])
        for job in store.broker.claim(3, 60.0):
            store.broker.dead_letter(job, "It broke.")
        assert "rung jobs forget queued" in " ".join(verb("jobs", "dead", "queued").stdout.split())
        neither = verb("jobs", "forget", "queued")
        assert (neither.returncode, "forget: needs either ids" in neither.stderr) == (2, True)
        assert result(verb("jobs", "forget", "queued", jobs[0], "--json")) == {"forgotten": 1}
        again = verb("jobs", "forget", "queued", jobs[0])
        assert (again.returncode, again.stderr) == (1, "1 of the jobs are no dead letters.\n")
        assert verb("jobs", "forget", "queued", "--all").stdout == "2 thrown away.\n"
        assert store.broker.depth().dead == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("put", "single-vm", "a.npy"), "single-vm: has no [queue]"),
        (("put", "queued", "missing.npy"), "missing.npy: must be readable"),
        (("put", "queued", "{file}", "--priority", "7"), "--priority: must be 0 to 2 (queue.priorities), got 7"),
        (("status", "queued", "no-such-job"), "job: must be an id of 26 characters"),
        (("status", "queued", "0" * 26), "is no job"),
        (("run", "queued", "{file}.csv"), "must "),
    ],
)
def test_what_cannot_be_done_is_told_in_words(
    verb: Rung, runs: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "a.npy"
    np.save(file, INPUTS[0])
    done = verb("jobs", *(word.format(file=file) for word in words))
    assert done.returncode in (1, 2)
    assert said in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(180)
def test_a_queued_stage_comes_up_from_nobody_and_goes_back(rung: Rung, verb: Rung, runs: Path, tmp_path: Path) -> None:
    """Workers come with the backlog of a file of jobs, and go after it; what is stored outlives `rung down`."""
    quick = [
        "device.slowdown=4.0",
        "scaling.interval_s=0.25",
        "scaling.scrape_interval_s=0.25",
        "scaling.window_s=0.25",
        "scaling.polling_interval_s=0.25",
        "scaling.cooldown_s=1.0",
        "scaling.target=20.0",
        "scaling.max_replicas=2",
        "scaling.down.stabilisation_window_s=0.5",
        "scaling.down.period_s=0.25",
        "scaling.cold_start.machine_s=0.5",
        "scaling.cold_start.image_s=0.0",
        "scaling.cold_start.model_s=0.0",
    ]
    words = [word for setting in quick for word in ("--set", setting)]
    up = result(rung("up", "queued", *words, "--json"))
    assert up["gateway"]["name"] == "jobs"

    def workers() -> list[str]:
        (found,) = list_up()
        return [each["name"] for each in found.replicas]

    assert wait_until(lambda: workers() == [], 2 * PATIENCE_S)
    np.save(tmp_path / "items.npy", many(600))
    seen: set[int] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            seen.add(len(workers()))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        told = result(verb("jobs", "run", "queued", str(tmp_path / "items.npy"), "--json"))
    finally:
        over.set()
        watching.join(PATIENCE_S)
    assert (told["ok"], told["failed"]) == (600, 0)
    assert max(seen) == 2
    assert wait_until(lambda: workers() == [], 2 * PATIENCE_S)
    assert "worker" not in verb("status").stdout
    assert rung("down").returncode == 0
    assert result(verb("jobs", "status", "queued", "--json"))["results"] == {"ok": 600}
