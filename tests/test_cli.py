"""The command line: every command explains itself, and every error that a user can mend is one line."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from service import cli
from service.commands.serve import shown
from service.errors import UnsupportedAudio
from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "client/README.md", "deploy/README.md")]
MODULES = {path.stem: path.read_text() for path in (ROOT / "service/commands").glob("[!_]*.py")}
PRESENT = sorted(name for name, text in MODULES.items() if re.search(r"^app = ", text, re.MULTILINE))


def leaves(command, name):
    """Every command that does something, with the words that call it."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for child, subcommand in command.commands.items():
        yield from leaves(subcommand, f"{name} {child}")


LEAVES = dict(leaf for name in PRESENT for leaf in leaves(cli.load(name), name))


def documented_commands():
    """Calls of `deltaspot` and `make` in the documents' shell blocks, and in backquotes."""
    for document in DOCUMENTS:
        text = document.read_text()
        blocks = "".join(re.findall(r"```(?:console|bash|sh)\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
        lines = [line.removeprefix("$ ").split("#")[0].split("|")[0] for line in blocks.splitlines()]
        for call in [*lines, *re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)]:
            if call.startswith(("deltaspot ", "make ")):
                yield pytest.param(call, id=f"{document.relative_to(ROOT)}: {call}")


def test_modules_and_table_agree():
    assert set(PRESENT) == set(cli.COMMANDS)


def test_groups_say_of_themselves_what_the_table_says_of_them():
    groups = {name: command.help for name in PRESENT if hasattr(command := cli.load(name), "commands")}
    assert groups == {name: cli.COMMANDS[name] for name in groups}
    assert {"bench", "evaluate", "model"} == set(groups)


def test_no_module_of_commands_is_forgotten():
    imported = re.findall(r"from service\.commands\.(\w+) import", "\n".join(MODULES.values()))
    assert set(MODULES) - set(PRESENT) <= set(imported)


@pytest.mark.parametrize("name", list(LEAVES))
def test_every_command_and_option_has_help(name):
    command = LEAVES[name]
    assert command.help
    assert "Raises:" not in command.help
    silent = [option.name for option in command.params if not getattr(option, "help", None)]
    assert not silent, f"deltaspot {name}: no help for {silent}"


def test_completion_is_installed_once_for_all():
    def options(command):
        return {option.name for option in command.params if "completion" in option.name}

    assert options(typer.main.get_command(cli.app)) == {"install_completion", "show_completion"}
    assert {name for name in PRESENT if options(cli.load(name))} == set()


def test_calls_in_help_can_be_typed():
    helps = {option.help for command in LEAVES.values() for option in command.params}
    calls = re.findall(r"`(\w+ [^`]*)`", " ".join(sorted(helps)))
    assert calls
    for call in calls:
        program, *words = shlex.split(call)
        assert program == "deltaspot", call
        check_command(words)


def settings_table():
    """The README's table of settings, as it must be."""
    yield "| variable | default | |"
    yield "|---|---|---|"
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, "") else f"`{shown(field.default)}`"
        yield f"| `DELTASPOT_{name.upper()}` | {default} | {field.description} |"


def test_readme_lists_every_setting():
    marked = re.search(r"<!-- settings -->\n(.*)<!-- end of settings -->", (ROOT / "README.md").read_text(), re.DOTALL)
    assert marked[1].strip() == "\n".join(settings_table())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("call", list(documented_commands()))
def test_documented_command_exists(call):
    program, *words = shlex.split(call)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words if "=" not in word} <= set(targets)
        return
    check_command(words)


@pytest.mark.parametrize(
    ("folder", "file", "clip", "models"),
    [
        ("running_speech", "a.wav", "", 5),
        ("noise", "running_speech.tar", "1", 5),
        ("noise", "running_speech.txt", "", 4),
    ],
)
def test_commands_that_make_weights_exist(tmp_path, folder, file, clip, models):
    """Without running speech, all but the background for enrolment; with CLIP, a tutor first."""
    (tmp_path / folder).mkdir()
    (tmp_path / folder / file).touch()
    arguments = ["make", "-n", "weights", f"DATA={tmp_path}", "RUN=run", "TEACHERS=a.safetensors b.safetensors"]
    arguments += ["STEPS=9", f"CLIP={clip}"]
    printed = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    calls = re.findall(r"bin/deltaspot (.*)", printed.replace("\\\n", " "))
    assert [call.split()[0] for call in calls] == ["train"] * (3 if clip else 2) + ["model"] * models + [
        "evaluate",
        "model",
    ]
    assert sum(call.startswith("model background") for call in calls) == models - 4
    assert sum("--tutor run/clip/clip.safetensors" in call for call in calls) == (2 if clip else 0)
    for call in calls:
        check_command(shlex.split(call))


def test_weights_that_go_on_are_for_the_words_that_are_asked_for(tmp_path):
    """So that `train` can refuse others."""
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "state.safetensors").touch()
    arguments = ["make", "-n", "weights", f"DATA={tmp_path}", f"RUN={tmp_path}", "STEPS=9", "KEYWORDS=marvin,sheila"]
    printed = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    dense, gated = re.findall(r"bin/deltaspot (train .*)", printed.replace("\\\n", " "))
    assert shlex.split(dense)[-3:] == ["--keywords", "marvin,sheila", "--resume"]
    assert "--steps" not in dense
    assert "--steps 9" in gated


def check_command(words):
    known = [name for name in LEAVES if words[: len(name.split())] == name.split()]
    assert known, f"no such command: {words}"
    options = {flag for option in LEAVES[known[0]].params for flag in [*option.opts, *option.secondary_opts]}
    used = {word.split("=")[0] for word in words if word.startswith("--")}
    assert used - {"--help"} <= options


def test_help_lists_commands_without_importing_them():
    code = "import sys; from service import cli; sys.argv = ['deltaspot', '--help']\n"
    code += "try: cli.main()\nexcept SystemExit: pass\n"
    code += "assert not [name for name in sys.modules if name.startswith('service.commands.')]"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in PRESENT)


def test_a_missing_extra_is_named():
    assert 'pip install -e ".[server]"' in str(cli.explain(ModuleNotFoundError("No numba", name="numba.core")))


def test_only_what_a_user_can_mend_becomes_a_line():
    assert cli.explain(UnsupportedAudio("7 Hz is too low")) == "7 Hz is too low"
    assert cli.explain(FileNotFoundError(2, "No such file", "a.wav")) == "[Errno 2] No such file: 'a.wav'"
    assert cli.explain(ZeroDivisionError()) is None
    assert cli.explain(ModuleNotFoundError("No module", name="service.oops")) is None


@pytest.mark.parametrize("error", [OSError("the disk is full"), UnsupportedAudio("7 Hz is too low")])
def test_an_error_is_one_line_and_status_2(error, monkeypatch, capsys):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr(typer.main, "get_command", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"deltaspot: {error}\n"
