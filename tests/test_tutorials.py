"""The tutorials cannot go stale: blocks are read and compared, numbers of the prose are bound, pages are generated.

The blocks themselves are items of pytest's own, by tutorials/conftest.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sybil import Document

from loadtests import accuracy
from tutorials.making import figures, reference, refresh, running
from tutorials.making.alike import last_place, same_form, same_numbers, value_of
from tutorials.making.bound import BoundError, bound_numbers, number_in
from tutorials.making.chapter import TUTORIALS, Block, ChapterError, blocks, blocks_of, chapters, kept, parser, rendered

CHAPTERS = chapters()
PAGES = [*sorted(TUTORIALS.glob("*.md")), TUTORIALS.parent / "README.md"]
BY_NAME = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)

PAGE = """\
# A page

<!-- block: base keep="latency|util" -->
```console
$ rung simulate single-vm \\
    --rate 60
latency_s_p99  0.1034
$ rung down
```

It took 103<!-- =1000 * base[latency_s_p99] --> ms.

```python
print(6 * 7)
```

```text
42
```

<!-- block: measured exit=0,3 -->
```console
$ rung load single-vm
```
"""


def read(text: str) -> list[Block]:
    return list(blocks(Document(text, "page.md")))


def test_a_page_is_read_as_its_blocks() -> None:
    first, code, last = read(PAGE)
    assert (first.language, first.line, first.options.name, first.options.keep) == (
        "console",
        4,
        "base",
        "latency|util",
    )
    assert [(step.source, step.output) for step in first.steps] == [
        ("rung simulate single-vm \\\n    --rate 60", "latency_s_p99  0.1034\n"),
        ("rung down", ""),
    ]
    assert (code.language, code.steps[0].source, code.output) == ("python", "print(6 * 7)\n", "42\n")
    assert (last.options.measured, last.options.statuses, last.options.name) == (True, (0, 3), "")


def test_a_page_is_rendered_as_it_was_read() -> None:
    for block in read(PAGE):
        assert rendered(block, [step.output for step in block.steps]) == PAGE[block.start : block.end]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<!-- block: base slowly=1 -->\n```console\n$ ls\n```\n", "slowly=1 says nothing about a block"),
        ("<!-- block: exit=yes -->\n```console\n$ ls\n```\n", "exit=yes says nothing"),
        ("```console\nls\n```\n", "begins with \\$ and a command, got ls"),
        ("<!-- block: a -->\n```console\n$ ls\n```\n" * 2, "a block is named a already"),
    ],
)
def test_a_page_that_says_nothing_sound_is_refused(text: str, why: str) -> None:
    with pytest.raises(ChapterError, match=why):
        read(text)


def test_lines_are_left_out_and_it_shows() -> None:
    assert kept("\n a\nb  \nc\nb\n", "b") == "b\nb\n…\n"
    assert kept("a\n\nb\n\n", None) == "a\n\nb\n"


def test_numbers_may_differ_by_one_in_their_last_decimal() -> None:
    assert same_numbers("p95  0.1034 s, 1,234", "p95 0.1035 s, 1,234") is None
    assert same_numbers("0.1034", "0.1036") is not None
    assert same_numbers("1,234", "1,235") is not None
    assert same_numbers("p95 1", "p99 1") is not None
    assert same_numbers("one\ntwo", "one") is not None
    assert (
        same_numbers("12,345 simulated requests per second (0.5 s).", "9 simulated requests per second (1.25 s).")
        is None
    )


def test_a_form_is_the_same_when_every_label_was_printed() -> None:
    shown = "  load 0.5, 40/s\n  latency p95   30.1 ms  +1.2 %  =\n…\nReport: runs/20260101-000000-x/report.html"
    printed = "load 0.5, 41/s\n latency p95  99 ms -0.1 % ~\nvoid: load 3\nReport: runs/20271212-235959-x/report.html"
    assert same_form(shown, printed) is None
    assert "latency p95" in str(same_form(shown, printed.replace("p95", "p96")))
    sound = printed.replace("void: load 3\n", "")
    assert same_form(shown, sound) is None
    assert "Below capacity" in str(same_form(f"{shown}\nBelow capacity 1 %", sound))
    assert same_form(f"{shown}\nBelow capacity 1 %", printed) is None, "a void run comes to something else"


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("latency_s_p99", 0.1034),
        ("load 0.95; latency p99; 2", 71.0),
        ("1", 1200.0),
        ("latency p99; 1", 5.0),
        ("", 1200),
    ],
)
def test_words_point_at_a_number(words: str, value: float) -> None:
    output = (
        "1,200 runs\nlatency_s_p99  0.1034\nload 0.5\nlatency p99 5 ms 6 ms\nload 0.95\nlatency p99 70 ms 71 ms -1e-3"
    )
    assert number_in(output, words) == value


@pytest.mark.parametrize("words", ["p42", "load 0.95; load 0.5", "latency p99; 99"])
def test_words_that_point_at_nothing_are_refused(words: str) -> None:
    with pytest.raises(BoundError):
        number_in("load 0.5\nlatency p99 5\nload 0.95\nlatency p99 7", words)


@given(st.floats(-1e6, 1e6), st.integers(0, 4))
def test_a_renewed_number_holds_and_its_neighbours_do_not(value: float, decimals: int) -> None:
    text = f"it is {0.0:.{decimals}f}<!-- =base[x] --> s"
    (stale,) = bound_numbers(text, {"base": f"x {value!r}" if "e" not in repr(value) else "x 0"})
    (fresh,) = bound_numbers(f"{stale.renewed}<!-- =base[x] -->", {"base": f"x {stale.value!r}"})
    assert fresh.holds
    step = last_place(fresh.text)
    for other in (value_of(fresh.text) + 2 * step, value_of(fresh.text) - 2 * step):
        (wrong,) = bound_numbers(f"{other:.{decimals}f}<!-- =base[x] -->", {"base": f"x {stale.value!r}"})
        assert not wrong.holds


def test_a_number_may_be_bound_more_loosely() -> None:
    text = "about 100<!-- =base[x] ±5% -->, and 100<!-- =base[x] -->"
    assert [number.holds for number in bound_numbers(text, {"base": "x 104.4"})] == [True, False]


@pytest.mark.parametrize("expression", ["nobody[x]", "base[y]", "1 +", "os.getcwd()", "base[x] / 0"])
def test_a_number_that_is_bound_to_nothing_is_refused(expression: str) -> None:
    with pytest.raises(BoundError, match="line 1"):
        list(bound_numbers(f"1<!-- ={expression} -->", {"base": "x 1"}))


def test_a_page_is_written_anew_in_place(tmp_path: Path) -> None:
    page = tmp_path / "00_page.md"
    page.write_text(
        '<!-- block: base keep="requests in" -->\n```console\n$ rung simulate single-vm --duration 1\nold\n```\n\n'
        "There were 1<!-- =base[1] --> of them.\n\n```python\nprint(6 * 7)\n```\n"
    )
    text = refresh.with_numbers(page, refresh.renewed(page, measured=False))
    (shown,) = re.findall(r"^(\d+) requests in 1 s", text, flags=re.MULTILINE)
    assert f"There were {shown}<!--" in text
    assert text.endswith("```python\nprint(6 * 7)\n```\n\n```text\n42\n```\n")
    page.write_text(text)
    assert refresh.with_numbers(page, refresh.renewed(page, measured=False)) == text


def test_what_a_chapter_brought_up_ends_where_a_block_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, ended = tmp_path / "00_page.md", list[object]()
    page.write_text("```python\n1 / 0\n```\n")
    monkeypatch.setattr(running, "end", ended.append)
    with pytest.raises(ChapterError):
        refresh.renewed(page, measured=False)
    assert len(ended) == 1


def test_void_figures_do_not_take_the_place_of_others(tmp_path: Path) -> None:
    page = tmp_path / "00_page.md"
    block = "<!-- block: measured exit=0,3 -->\n```console\n$ echo 7 a second; {}\n{}```\n"
    page.write_text(block.format("echo This run is void.; exit 3", "5 a second\n"))
    assert "\n5 a second\n" in refresh.renewed(page, measured=True)
    page.write_text(block.format("exit 3", "5 a second\n"))
    assert "\n7 a second\n" in refresh.renewed(page, measured=True)
    assert "\n5 a second\n" in refresh.renewed(page, measured=False)


def test_a_block_that_no_longer_prints_what_the_page_shows_fails(tmp_path: Path) -> None:
    page = tmp_path / "00_page.md"
    page.write_text("```python\nprint(6 * 7)\n```\n\n```text\n43\n```\n\n```python\n1 / 0\n```\n")
    stale, broken = Document.parse(str(page), parser(running.evaluate)).examples()
    with pytest.raises(AssertionError, match="make tutorials"):
        stale.evaluate()
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        broken.evaluate()


def test_a_prediction_runs_in_this_process_and_the_rest_in_a_shell() -> None:
    ran = running.in_process(["simulate", "single-vm", "--set", "traffic.rate.rate_rps=80"])
    assert ran.status == 2
    assert "must on average be below the capacity" in ran.output
    told = running.in_shell("echo $RUNG_RUNS; echo $COLUMNS >&2; exit 3")
    assert told.status == 3
    assert str(running.WIDTH) in told.output


@pytest.mark.parametrize(
    ("command", "where"),
    [
        ("rung simulate single-vm", "here"),
        ("rung ab plan \\\n    --rate 1", "here"),
        ("rung ab simulate", "here"),
        ("rung ab rehearse ab-test", "in a shell"),
        ("rung ab", "in a shell"),
        ("rung", "in a shell"),
        ("rung ab plan | head -n 1", "in a shell"),
        ("echo rung ab plan", "in a shell"),
    ],
)
def test_only_what_starts_nothing_runs_in_this_process(
    command: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "in_process", lambda _: running.Ran(0, "here"))
    monkeypatch.setattr(running, "in_shell", lambda _: running.Ran(0, "in a shell"))
    (block,) = read(f"```console\n$ {command}\n```\n")
    assert [ran.output for ran in running.run(block, {})] == [where]


def test_a_shell_has_no_registry_but_that_of_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNG_REGISTRY", "/of/the/reader")
    assert running.in_shell("echo [$RUNG_REGISTRY]").output == "[]\n"


@BY_NAME
def test_every_number_of_the_prose_is_what_its_block_printed(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = list(bound_numbers(text, {block.options.name: block.output for block in blocks_of(path)}))
    assert len(found) >= 10, "a chapter quotes what it ran"
    wrong = [f"line {each.line}: {each.text} should be {each.renewed}" for each in found if not each.holds]
    assert not wrong, "\n".join(wrong)


@BY_NAME
def test_a_number_that_parts_from_its_block_is_seen(path: Path) -> None:
    outputs = {block.options.name: block.output for block in blocks_of(path)}
    text = path.read_text(encoding="utf-8")
    number = next(each for each in bound_numbers(text, outputs) if "[" in each.expression)
    other = f"{value_of(number.text) + 2 * number.tolerance + last_place(number.text):.6f}"
    spoilt = text[: number.start] + other + text[number.end :]
    assert sum(not each.holds for each in bound_numbers(spoilt, outputs)) == 1


@BY_NAME
def test_every_chapter_has_its_parts(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    heads = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    for part in (
        "Predict it on paper",
        "Run it",
        "The arithmetic",
        "What the model leaves out",
        "What goes wrong",
        "Exercises",
    ):
        assert part in heads
    assert any(head.startswith("What surprises") for head in heads)
    assert any(head.startswith("The next knob") for head in heads)
    assert "<details><summary>Answers</summary>" in text
    assert any(block.options.measured for block in blocks_of(path)), "a chapter runs the real thing"


@BY_NAME
def test_every_block_shows_what_it_prints(path: Path) -> None:
    for block in blocks_of(path):
        assert block.output or block.language == "python", f"line {block.line}: run `make tutorials`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            linked = (page.parent / name) if name else page
            assert linked.exists(), target
            if anchor and linked.suffix == ".md":
                heads = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads]


def test_every_figure_is_shown_and_every_shown_figure_is_drawn() -> None:
    shown = {name for path in CHAPTERS for name in re.findall(r"\(figures/(\w+)\.svg\)", path.read_text("utf-8"))}
    # The ladder takes minutes to climb: `rung ladder` drew it.
    assert shown | {"ladder"} == {*figures.DRAWN, "ladder"} == {path.stem for path in figures.FIGURES.glob("*.svg")}


@pytest.mark.parametrize("name", figures.DRAWN)
def test_a_figure_is_drawn_as_it_lies_there(name: str) -> None:
    kept_one = (figures.FIGURES / f"{name}.svg").read_text(encoding="utf-8")
    assert figures.alike(kept_one, figures.svg(figures.DRAWN[name]()))


def test_drawings_are_told_apart() -> None:
    one = '<path id="m0123456789" d="M 1 2.5 L 3 4"/>'
    assert figures.alike(one, one.replace("2.5", "2.6").replace("m0123456789", "mabcdef0123"))
    assert not figures.alike(one, one.replace("2.5", "9.5"))
    assert not figures.alike(one, one.replace("L", "C"))


def test_the_generated_pages_are_as_they_would_be_written_now() -> None:
    assert (TUTORIALS / "accuracy.md").read_text(encoding="utf-8") == accuracy.page()
    assert reference.COMMANDS.read_text(encoding="utf-8") == reference.reference()


def test_the_reference_has_every_verb() -> None:
    text = reference.COMMANDS.read_text(encoding="utf-8")
    for verb in ("simulate", "compare", "spike", "drill", "jobs run", "ab plan", "export prometheus"):
        assert f"`rung {verb}`" in text
