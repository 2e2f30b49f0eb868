"""Files that are whole or not there."""

from __future__ import annotations

import resource
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


def test_two_write_the_same_file_and_neither_spoils_it(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with aside(file) as one, one.open("w", encoding="utf-8") as slow:
        slow.write("sl")
        with aside(file) as other:
            other.write_text("fast", encoding="utf-8")
        assert file.read_text(encoding="utf-8") == "fast"
        slow.write("ow")
    assert file.read_text(encoding="utf-8") == "slow"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_finds_no_room_leaves_the_old_one(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old", encoding="utf-8")
    least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2, most))
    try:
        with pytest.raises(OSError, match="too large"), aside(file) as partial:
            partial.write_text("new", encoding="utf-8")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
    assert file.read_text(encoding="utf-8") == "old"
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
