"""The registry: what is published stays and is whole, aliases move and go back, and kill -9 breaks nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_apps import registry as registering
from reference_apps.model_metadata import About, Data
from reference_apps.registry import METADATA, WEIGHTS, Registry, registry_root
from reference_apps.registry_aliases import HISTORY, Aliases, Move, gone_before
from stages.problems import StageError
from stages.spec import Model
from tests.conftest import PATIENCE_S, ROOT

DIGITS = About(model="digits")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """With the versions 1, 2 and 3 of digits, of which the champion is 1."""
    found = Registry(tmp_path / "registry")
    for number in range(3):
        found.publish(DIGITS, b"weights %d" % number)
    found.set_alias("digits", "champion", "1")
    return found


def told(call: Any, *args: Any) -> str:
    """What a call says that is refused, without the folder of the registry."""
    with pytest.raises(StageError) as caught:
        call(*args)
    return str(caught.value).partition("\n")[2].strip()


# ---- versions ----


def test_what_is_published_can_be_loaded_with_what_is_known_of_it(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    about = About(
        model="digits",
        architecture="DigitsNet",
        data=Data(name="digits", digest="ab", train_size=100, held_out_size=20),
        metrics={"accuracy": 0.97},
        service_time_factor=2.0,
        crash_share=0.25,
        note="a note",
    )
    published = registry.publish(about, b"some weights", "mine")
    loaded = registry.load("digits", "mine")
    assert loaded.weights.read_bytes() == b"some weights"
    assert loaded.metadata == published == registry.metadata("digits", "mine")
    assert About.model_validate(published.model_dump(include=set(About.model_fields))) == about
    assert (published.version, published.weights_bytes) == ("mine", 12)
    assert len(published.digest) == 64 and published.code_version and published.created_at.endswith("+00:00")
    facts = published.facts()
    assert (facts.service_time_factor, facts.crash_share, facts.accuracy) == (2.0, 0.25, 0.97)


def test_versions_are_numbered_and_listed_in_their_order(registry: Registry) -> None:
    registry.publish(DIGITS, b"x", "worse")
    registry.publish(DIGITS, b"x", "12")
    assert registry.publish(DIGITS, b"x").version == "13"
    assert registry.versions("digits") == ["1", "2", "3", "12", "13", "worse"]
    assert registry.versions("xor") == []
    assert registry.models() == ["digits"]


def test_a_version_never_changes(registry: Registry) -> None:
    assert told(registry.publish, DIGITS, b"other weights", "2") == (
        'version: must be new, got "2". A version never changes once it is published. '
        "Leave the version out for the next number, or give it another name."
    )
    assert registry.load("digits", "2").weights.read_bytes() == b"weights 1"


@pytest.mark.parametrize(
    "name", ["../2", "", ".hidden", "a/b", "champion", "challenger", "aliases.json", "x" * 65, "a\n"]
)
def test_a_name_that_could_be_taken_for_something_else_is_refused(registry: Registry, name: str) -> None:
    assert told(registry.publish, DIGITS, b"x", name).startswith("version: must be up to 64 letters, digits, dots")
    assert registry.versions("digits") == ["1", "2", "3"]


@pytest.mark.parametrize("name", ["../digits/1", "/etc/passwd", "4", "challenger", ".lock"])
def test_what_is_not_there_is_told_with_what_is(registry: Registry, name: str) -> None:
    assert told(registry.load, "digits", name).startswith(
        f'model.version: must be a version or an alias of one in the registry, got "{name}". There are no such weights.'
    )


def test_a_near_miss_gets_the_nearest_and_an_empty_registry_the_way_to_begin(registry: Registry) -> None:
    assert told(registry.resolve, "digits", "champoin").endswith("Did you mean 'champion'?")
    assert told(registry.resolve, "xor", "champion").endswith("Make some with `rung models train --variants`.")


@pytest.mark.parametrize("damage", ["weights", "weights are gone", "metadata", "metadata of another"])
def test_a_damaged_version_is_refused_in_words_and_found(registry: Registry, damage: str) -> None:
    folder = registry.root / "digits" / "2"
    weights, metadata = folder / WEIGHTS, folder / METADATA
    if damage == "weights":
        weights.chmod(0o644)
        weights.write_bytes(b"weights X")
        said = f"2/{WEIGHTS}: must have the digest "
    elif damage == "weights are gone":
        weights.unlink()
        said = f"2/{WEIGHTS}: must be readable, got No such file or directory. "
    else:
        text = "{" if damage == "metadata" else (registry.root / "digits" / "1" / METADATA).read_text()
        metadata.chmod(0o644)
        metadata.write_text(text)
        said = f"2/{METADATA}: must be "
    refusal = told(registry.load, "digits", "2")
    assert refusal.startswith(said)
    assert "is not served" in refusal and "rung models rollback" in refusal
    assert told(registry.set_alias, "digits", "champion", "2") == refusal
    assert registry.verify("digits") == {"1": "", "2": refusal, "3": "", "champion": ""}
    assert registry.resolve("digits", "champion") == "1"


def test_a_version_without_metadata_is_none_and_is_found(registry: Registry) -> None:
    (registry.root / "digits" / "2" / METADATA).unlink()
    assert registry.versions("digits") == ["1", "3"]
    assert "must be a version" in registry.verify("digits")["2"]


def test_many_who_publish_at_once_each_get_a_version_of_their_own(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    contents = [b"weights %d" % number for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        versions = [made.version for made in pool.map(lambda content: registry.publish(DIGITS, content), contents)]
    assert sorted(versions, key=int) == [str(number) for number in range(1, 13)]
    found = [registry.load("digits", version).weights.read_bytes() for version in versions]
    assert found == contents


def test_a_lock_that_somebody_keeps_is_told(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registering, "LOCK_TIMEOUT_S", 0.05)
    with registering.locked(registry.root / "digits" / ".lock", 0.0):
        assert told(registry.publish, DIGITS, b"x").startswith(".lock: must be free to be written to, got ")
    assert registry.publish(DIGITS, b"x").version == "4"


def test_what_a_crash_left_is_swept_by_the_next_who_publishes(registry: Registry) -> None:
    folder = registry.root / "digits"
    (folder / ".publishing-1234").mkdir()
    (folder / ".publishing-1234" / WEIGHTS).write_bytes(b"half")
    (folder / ".aliases.json.77.new").write_text("{")
    assert registry.versions("digits") == ["1", "2", "3"]
    registry.publish(DIGITS, b"x")
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [".lock"]


# ---- aliases ----


def test_an_alias_moves_and_goes_back_as_far_as_it_came(registry: Registry) -> None:
    assert registry.set_alias("digits", "champion", "2").before == "1"
    assert registry.set_alias("digits", "champion", "3").before == "2"
    assert registry.set_alias("digits", "champion", "3").before == "3"  # nothing changes, and nothing is to be undone
    first, second = registry.rollback("digits", "champion"), registry.rollback("digits", "champion")
    assert [(first.before, first.now), (second.before, second.now)] == [("3", "2"), ("2", "1")]
    assert told(registry.rollback, "digits", "champion") == (
        'alias: must have been another version before, got "champion", which is 1 as ever. There is nothing to go back '
        "to. Name a version with `rung models alias champion VERSION`."
    )
    assert registry.resolve("digits", "champion") == "1"
    assert "an alias that there is not" in told(registry.rollback, "digits", "challenger")
    registry.set_alias("digits", "champion", "3")
    assert registry.previous("digits", "champion") == "1"


def test_a_challenger_is_promoted_by_its_alias(registry: Registry) -> None:
    registry.set_alias("digits", "challenger", "3")
    assert registry.set_alias("digits", "champion", "challenger").now == "3"
    registry.set_alias("digits", "challenger", "2")
    assert registry.aliases("digits") == {"champion": "3", "challenger": "2"}


@pytest.mark.parametrize("alias", ["2", "Champion", "a b", "", "../x"])
def test_an_alias_is_a_word_and_no_version(registry: Registry, alias: str) -> None:
    assert told(registry.set_alias, "digits", alias, "1").startswith("alias: must be lower-case letters")


def test_a_rollback_to_a_damaged_version_is_refused(registry: Registry) -> None:
    registry.set_alias("digits", "champion", "2")
    weights = registry.root / "digits" / "1" / WEIGHTS
    weights.chmod(0o644)
    weights.write_bytes(b"damaged")
    assert told(registry.rollback, "digits", "champion").startswith(f"1/{WEIGHTS}: must have the digest ")
    assert registry.resolve("digits", "champion") == "2"


def test_a_file_of_aliases_that_says_nothing_is_told(registry: Registry) -> None:
    (registry.root / "digits" / "aliases.json").write_text("[]")
    assert told(registry.resolve, "digits", "champion").startswith("aliases.json: must say which version each alias is")


def test_a_line_that_was_cut_off_is_no_history(registry: Registry) -> None:
    history = registry.root / "digits" / HISTORY
    with history.open("a") as file:
        file.write('{"alias": "champion", "bef')
    registry.set_alias("digits", "champion", "3")
    assert [move.version for move in Aliases(history.parent).history()] == ["1", "3"]
    assert registry.rollback("digits", "champion").now == "1"


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["set", "rollback", "announced", "announced rollback"]), st.sampled_from("123")),
        max_size=25,
    )
)
def test_the_history_goes_back_as_a_stack_does_whatever_was_announced_in_between(steps: list[tuple[str, str]]) -> None:
    """Against a list that is pushed and popped; what was announced and never done leaves lines in the history alone."""
    moves: list[Move] = []
    stack: list[str] = []
    now: str | None = None

    def move(version: str, how: Any) -> None:
        moves.append(Move(alias="champion", before=now, version=version, how=how, at=""))

    for what, version in steps:
        if what.endswith("rollback"):
            if not stack:
                continue
            move(stack[-1], "rollback")
            if what == "rollback":
                now = stack.pop()
        elif version != now:
            move(version, "set")
            if what == "set":
                if now is not None:
                    stack.append(now)
                now = version
        assert gone_before(moves, now) == stack


# ---- kill -9 ----


def killed(case: str, folder: Path) -> list[dict[str, Any]]:
    """What was found after the case was killed at each of its steps; the last one was left alone."""
    command = [sys.executable, "-m", "tests.killed", case, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(found) > 4
    return found


def test_publishing_that_is_killed_anywhere_leaves_all_of_a_version_or_none(tmp_path: Path) -> None:
    found = killed("publish", tmp_path)
    for each in found:
        assert each["versions"] in (["1"], ["1", "2"])
        assert set(each["verify"].values()) == {""}
        assert each["champion"] == each["moved_from"] == each["back_to"] == "1"
        assert each["again"] == str(len(each["versions"]) + 1)
        assert each["left"] == [".lock"]
    assert found[0]["versions"] == ["1"] and found[-1]["versions"] == ["1", "2"]
    assert all(set(each.values()) <= {""} for each in killed("publish-first", tmp_path / "first"))


def test_an_alias_whose_move_is_killed_anywhere_is_what_it_was_or_what_it_will_be(tmp_path: Path) -> None:
    found = killed("alias", tmp_path)
    for each in found:
        assert (each["champion"], each["before"]) in (("1", None), ("2", "1"))
        assert each["moved_from"] == each["back_to"] == each["champion"]
        assert set(each["verify"].values()) == {""}
    assert (found[0]["champion"], found[-1]["champion"]) == ("1", "2")


def test_a_rollback_that_is_killed_anywhere_has_been_or_can_be_made_again(tmp_path: Path) -> None:
    found = killed("rollback", tmp_path)
    for each in found:
        assert (each["champion"], each["before"]) in (("2", "1"), ("1", None))
        assert each["moved_from"] == each["back_to"] == each["champion"]
    assert (found[0]["champion"], found[-1]["champion"]) == ("2", "1")


def test_a_file_that_is_replaced_or_grows_is_whole_wherever_it_is_killed(tmp_path: Path) -> None:
    found = killed("file", tmp_path)
    for each in found:
        assert each["text"] in ("old", "new")
        assert each["lines"] in (["first", "last"], ["first", "second", "last"])
    assert found[-1] == {"text": "new", "lines": ["first", "second", "last"]}


# ---- where it is ----


def test_the_stage_names_the_registry_or_else_the_environment_or_else_it_is_with_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNG_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("RUNG_REGISTRY", raising=False)
    assert registry_root() == tmp_path / "runs" / "registry"
    monkeypatch.setenv("RUNG_REGISTRY", str(tmp_path / "shared"))
    assert registry_root(Model(name="digits")) == tmp_path / "shared"
    assert registry_root(Model(name="digits", version="1", registry=str(tmp_path / "own"))) == tmp_path / "own"


def test_a_registry_that_cannot_be_read_is_told_in_words(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Registry, "load", forbidden)
    with pytest.raises(StageError, match=r"model\.registry: must be a folder of versions that can be read, got Perm"):
        registering.with_weights(Model(name="digits", version="1", registry=str(registry.root)))
