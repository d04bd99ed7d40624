"""docs/reliability.md names tests that are there."""

from __future__ import annotations

import re

from projects import REPOSITORY

_NAMED = re.compile(r'`(?:pytest )?(?:tests/)?(?P<file>test_\w+\.py)(?: -k (?P<words>"[^"]+"|\w+))?`')


def test_every_test_that_shows_a_fault_exists():
    page = (REPOSITORY / "docs/reliability.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "shown by" not in line]
    named = list(_NAMED.finditer(page))

    assert len(named) >= len(rows) - 1  # of all but one fault, which can't happen
    for match in named:
        names = re.findall(
            r"^def (test_\w+)\(", (REPOSITORY / "tests" / match["file"]).read_text(), re.MULTILINE
        )
        words = (match["words"] or "test").strip('"').split(" or ")
        assert [word for word in words if not any(word in name for name in names)] == [], match[0]
