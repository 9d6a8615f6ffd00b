"""What a person opens, in a real browser: the report of a comparison and the pages of the API, without a network."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from loadtests import report
from tests.conftest import serving
from tests.test_report import a_comparison

CHROMIUM = shutil.which("chromium")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--virtual-time-budget=10000"),
]
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


def browse(url: str, folder: Path, *what: str) -> str:
    """Opens a page in a fresh profile, and gives what the browser prints."""
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", *what, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.usefixtures("in_numpy")
def test_the_apis_pages_are_drawn_without_a_network(tmp_path: Path) -> None:
    with serving("micro-batched", tmp_path / "stack") as served:
        page = browse(f"{served.url}/docs", tmp_path, "--dump-dom")
    for drawn_by_script in ("One input, one answer", "Prometheus metrics", "/batches"):
        assert drawn_by_script in page


def test_the_report_is_drawn_with_its_pictures(tmp_path: Path) -> None:
    page = report.write_report(a_comparison(), tmp_path / "report")
    picture = tmp_path / "page.png"
    browse(page.as_uri(), tmp_path, f"--screenshot={picture}", "--window-size=1200,2400")
    with Image.open(picture) as drawn:
        colours = drawn.convert("RGB").getcolors(maxcolors=1 << 24)
    assert colours is not None
    assert len(colours) > 100  # text alone is drawn in few, the plots in many
