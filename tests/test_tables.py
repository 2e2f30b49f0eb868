"""Tables are whole where they are piped: nobody's window has the width that rich takes for one there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.table import Table

from service.commands.tables import console, show

COMMANDS = sorted((Path(__file__).parent.parent / "service" / "commands").glob("*.py"))


def test_a_piped_table_is_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    cells = [f"a heading of {number} words" for number in range(10, 16)]
    show(Table(*cells, box=None), "and a note")
    first, note = capsys.readouterr().out.splitlines()
    assert all(cell in first for cell in cells)
    assert note == "and a note"


def test_names_with_brackets_are_told_whole(capsys: pytest.CaptureFixture[str]) -> None:
    console.print("a [take two].wav: [/b]")
    assert capsys.readouterr().err == "a [take two].wav: [/b]\n"


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_commands_print_tables_whole(path: Path) -> None:
    assert not re.search(r"Console\(\)\.print\(", path.read_text()), "tables are for `show`"
