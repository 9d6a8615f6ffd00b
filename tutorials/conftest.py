"""Has pytest run the blocks of the chapters: each is an item of its own, in the order of the page.

Blocks whose output depends on this machine carry the marker `tutorial_slow`, which `make test` leaves out.
"""

from __future__ import annotations

import pytest
from sybil import Sybil

from tutorials.making import chapter, running

SLOW_TIMEOUT_S = 600

pytest_collect_file = Sybil(
    parsers=[chapter.parser(running.evaluate)], patterns=["[0-9][0-9]_*.md"], teardown=running.end
).pytest()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the items that measure."""
    for item in items:
        block = getattr(getattr(item, "example", None), "parsed", None)
        if isinstance(block, chapter.Block) and block.options.measured:
            item.add_marker(pytest.mark.tutorial_slow)
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))
