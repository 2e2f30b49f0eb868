"""Files that are whole or not there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from models.aside import aside

if TYPE_CHECKING:
    from pathlib import Path


def test_takes_its_place_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old", encoding="utf-8")
    with aside(file) as partial:
        partial.write_text("new", encoding="utf-8")
        assert file.read_text(encoding="utf-8") == "old"
    assert file.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_what_failed_changes_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old", encoding="utf-8")

    def fail() -> None:
        with aside(file) as partial:
            partial.write_text("ne", encoding="utf-8")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert file.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [file]
