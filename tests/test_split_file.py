"""The control file of a split: what was accepted is there, whoever is killed when, and no change undoes another."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from reference_apps import split_file
from reference_apps.split_file import SPLIT_FILE, SplitError, Told
from stages.policies.splitting import Wanted
from stages.split import Ramp, Split


def begun(folder: Path, ramp: bool = False, challenger: str = "digits/2@feed") -> Path:
    split = Split(challenger_share=0.1, ramp=Ramp(step_duration_s=1.0) if ramp else None)
    split_file.begin(folder, split_file.first(split, 5.0, challenger))
    return folder


def test_a_stage_begins_with_its_own_share_or_ramp(tmp_path: Path) -> None:
    assert split_file.read(begun(tmp_path)) == Told(0, 0, 0.1, challenger="digits/2@feed")
    (tmp_path / "other").mkdir()
    told = split_file.read(begun(tmp_path / "other", ramp=True))
    assert told is not None
    assert told.wanted == Wanted(0.1, 5.0)
    split_file.set_share(tmp_path, 0.4)
    begun(tmp_path)
    told = split_file.read(tmp_path)
    assert told is not None and (told.generation, told.share, told.stopped) == (2, 0.1, ""), "as it was written"


def test_a_stop_outlives_the_stage_that_is_started_again(tmp_path: Path) -> None:
    begun(tmp_path, ramp=True)
    stopped = split_file.stop(tmp_path, 0, "errors", "2 % of its requests had no answer")
    assert stopped.stopped_at is not None
    told = split_file.read(begun(tmp_path, ramp=True))
    assert told is not None
    assert (told.stopped, told.why, told.stopped_at, told.trial) == ("errors", stopped.why, stopped.stopped_at, 0)
    assert told.generation == stopped.generation + 1
    with pytest.raises(SplitError, match="Use --again"):
        split_file.begin_ramp(tmp_path, 9.0)
    split = Split(ramp=Ramp(step_duration_s=1.0))
    text = split_file.in_words(told, "ab-test", split)
    assert "The challenger digits/2 is out: the guardrail errors stopped it on " in text
    assert "because 2 % of its requests had no answer" in text and "`rung ab share ab-test ramp --again`" in text
    assert "ab-test 0.05 --again" in split_file.in_words(told, "ab-test", Split())
    again = split_file.begin_ramp(tmp_path, 9.0, again=True)
    assert (again.stopped, again.why, again.stopped_at, again.trial) == ("", "", None, 1)
    assert split_file.in_words(again, "ab-test", split) == "" == split_file.in_words(None, "ab-test", split)


def test_another_version_begins_anew_and_the_same_one_does_not(tmp_path: Path) -> None:
    begun(tmp_path)
    split_file.stop(tmp_path, 0, "errors", "it failed")
    other = split_file.first(Split(challenger_share=0.3), 0.0, "digits/3@beef")
    same = split_file.first(Split(challenger_share=0.3), 0.0, "digits/2@feed")
    before = split_file.read(tmp_path)
    assert split_file.renew(tmp_path, same) == before, "a rolling restart alone changes nothing"
    renewed = split_file.renew(tmp_path, other)
    assert (renewed.stopped, renewed.share, renewed.trial, renewed.generation) == ("", 0.3, 1, 2)
    assert split_file.stop(tmp_path, 0, "errors", "late news of the version before") == renewed
    split_file.stop(tmp_path, 1, "latency", "it is slow")
    begun(tmp_path, challenger="digits/2@another")
    told = split_file.read(tmp_path)
    assert told is not None and told.stopped == "", "a version of that name with other weights is another one"


def test_what_was_answered_before_a_trial_began_is_none_of_it(tmp_path: Path) -> None:
    def started(challenger: str, began_at: float) -> float:
        return split_file.begin(tmp_path, split_file.first(Split(), 0.0, challenger, began_at)).began_at

    assert started("digits/2@feed", 5.0) == 5.0
    assert started("digits/2@feed", 6.0) == 6.0, "a stage that starts counts from nothing"
    split_file.stop(tmp_path, 1, "errors", "it failed")
    assert started("digits/2@feed", 7.0) == 6.0, "it is still stopped"
    assert split_file.set_share(tmp_path, 0.3, again=True).began_at > 7.0
    assert started("digits/3@beef", 8.0) == 8.0
    old = json.loads((tmp_path / SPLIT_FILE).read_text())
    del old["began_at"]
    (tmp_path / SPLIT_FILE).write_text(json.dumps(old))
    told = split_file.read(tmp_path)
    assert told is not None and told.began_at == 0.0, "a file of an earlier release"


def test_a_stage_does_not_start_where_nobody_can_say_whether_its_challenger_is_out(tmp_path: Path) -> None:
    (tmp_path / SPLIT_FILE).write_text("{")
    with pytest.raises(SplitError, match="Nobody knows whether it is out"):
        begun(tmp_path)
    assert split_file.seen(tmp_path) is None


def test_a_share_ends_the_ramp_and_a_ramp_begins_anew(tmp_path: Path) -> None:
    begun(tmp_path, ramp=True)
    assert split_file.set_share(tmp_path, 0.2) == Told(1, 0, 0.2, challenger="digits/2@feed")
    assert split_file.begin_ramp(tmp_path, 77.0).wanted == Wanted(0.2, 77.0)
    assert split_file.set_share(tmp_path, 0.2).generation == 3
    assert split_file.set_share(tmp_path, 0.2).generation == 3, "nothing has changed"


def test_who_was_stopped_stays_out_until_it_is_tried_again(tmp_path: Path) -> None:
    begun(tmp_path)
    told = split_file.stop(tmp_path, 0, "errors", "2 % of its requests had no answer")
    assert (told.stopped, told.wanted.stopped) == ("errors", "errors")
    assert split_file.stop(tmp_path, 0, "latency", "another") == told, "the first guardrail is the one that is told"
    for change in (lambda: split_file.set_share(tmp_path, 0.3), lambda: split_file.begin_ramp(tmp_path, 1.0)):
        with pytest.raises(SplitError, match=r"stopped by the guardrail errors: 2 % .* Use --again"):
            change()
    again = split_file.set_share(tmp_path, 0.3, again=True)
    assert (again.trial, again.stopped, again.why, again.share) == (1, "", "", 0.3)
    assert split_file.stop(tmp_path, 0, "errors", "late news of the trial before").stopped == ""


def test_no_split_and_nonsense_are_told_in_words(tmp_path: Path) -> None:
    assert split_file.read(tmp_path) is None
    with pytest.raises(SplitError, match=r"has no split\.json"):
        split_file.set_share(tmp_path, 0.3)
    for text in ("{", '{"generation": 1}', '{"generation": 0, "trial": 0, "share": 2.0}', "[1]", '{"a": 1}'):
        (tmp_path / SPLIT_FILE).write_text(text)
        with pytest.raises(ValueError):
            split_file.read(tmp_path)
        with pytest.raises(SplitError, match="could not be changed"):
            split_file.set_share(tmp_path, 0.3)


def test_changes_at_once_are_made_one_after_the_other(tmp_path: Path) -> None:
    begun(tmp_path)

    def change(number: int) -> None:
        split_file.set_share(tmp_path, number / 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(1, 41)))
    told = split_file.read(tmp_path)
    assert told is not None
    assert told.generation == 40


WRITER = """
import sys
from pathlib import Path
from reference_apps import split_file
for number in range(1, 100_000):
    told = split_file.set_share(Path(sys.argv[1]), number / 100_000)
    print(told.generation, flush=True)
"""


def test_what_was_accepted_outlives_kill_9_in_the_middle_of_a_change(tmp_path: Path) -> None:
    begun(tmp_path)
    dice, before = random.Random(5), 0
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        accepted = [int(writer.stdout.readline()) for _ in range(3)]
        time.sleep(dice.random() * 0.02)
        writer.send_signal(signal.SIGKILL)
        accepted += [int(line) for line in writer.stdout.read().splitlines() if line]
        writer.wait(30)
        writer.stdout.close()
        told = split_file.read(tmp_path)
        assert told is not None
        assert before < accepted[-1] <= told.generation <= accepted[-1] + 1, "one more may have been under way"
        before = told.generation
    assert split_file.set_share(tmp_path, 1.0).generation == before + 1, "its lock went with it"
    assert json.loads((tmp_path / SPLIT_FILE).read_text())["share"] == 1.0
