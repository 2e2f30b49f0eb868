"""Options that several commands have."""

from __future__ import annotations

import json
import re

import pytest
import typer
from typer.testing import CliRunner

from client.errors import SettingError
from client.keywords import write_keyword
from service.cli import COMMANDS, load
from service.commands.demo import SAMPLE
from service.commands.detect import app as detect
from service.commands.enroll import app as enroll
from service.commands.listen import app as listen
from service.commands.options import read_keywords
from service.protocol import BadMessage, Enrolled, KeywordSettings

NOBODY = "127.0.0.1:9"
RECORDING = str(SAMPLE / "commands.flac")


def trouble(app, *arguments, **environment) -> BaseException:
    """What a command fails with."""
    done = CliRunner().invoke(app, list(map(str, arguments)), env=environment, standalone_mode=False)
    assert done.exception is not None, done.output
    return done.exception


def test_what_works_here_only_does_so_whatever_server_the_environment_names(tmp_path):
    own = tmp_path / "tx.json"
    write_keyword(Enrolled(name="tx", fingerprint="another's", recordings=1, prototype=(), weights=()), own)
    error = trouble(detect, RECORDING, "--enrolled", own, DELTASPOT_URL=NOBODY)
    assert isinstance(error, BadMessage)
    assert "enrol it again" in str(error)
    error = trouble(enroll, "tx", RECORDING, "--model", tmp_path / "none", DELTASPOT_URL=NOBODY)
    assert "no checkpoint at" in str(error)


def test_what_works_here_only_is_not_asked_of_a_server_that_was_named(tmp_path):
    for app, *arguments in (
        (detect, RECORDING, "--enrolled", tmp_path / "tx.json"),
        (enroll, "tx", RECORDING, "--model", tmp_path / "none"),
    ):
        error = trouble(app, *arguments, "--url", NOBODY)
        assert isinstance(error, typer.BadParameter)
        assert f"{arguments[-2]} works here: leave out --url" in str(error)


def commands(command):
    """A command and all below it."""
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from commands(below)


def test_recordings_may_be_named_by_the_environment_wherever_there_are_any():
    found = [
        (one.name, option.envvar)
        for name in COMMANDS
        for one in commands(load(name))
        for option in one.params
        if option.name == "data"
    ]
    assert {"train", "clips", "methods", "engine", "calibrate"} <= {name for name, _ in found}
    assert {variable for _, variable in found} == {"DELTASPOT_DATA"}


def test_words_may_have_thresholds():
    assert read_keywords(None) is None
    assert read_keywords("yes = 0.3, no,a word=1") == {
        "yes": KeywordSettings(threshold=0.3),
        "no": KeywordSettings(),
        "a word": KeywordSettings(threshold=1.0),
    }


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("yes=2", "a number from 0 to 1, not '2'"),
        ("yes=-0.1", "a number from 0 to 1, not '-0.1'"),
        ("yes=nan", "a number from 0 to 1, not 'nan'"),
        ("yes=high", "a number from 0 to 1, not 'high'"),
        ("yes=", "a number from 0 to 1, not ''"),
        ("yes,,no", "such as yes=0.3,no; not 'yes,,no'"),
        ("=0.3", "such as yes=0.3,no; not '=0.3'"),
        ("", "such as yes=0.3,no; not ''"),
        (",".join(map(str, range(65))), "there may be 64 keywords, these are 65"),
    ],
)
@pytest.mark.parametrize("app", [detect, listen])
def test_words_that_are_none_are_refused(app, text, reason):
    error = trouble(app, RECORDING, "--keywords", text)
    assert isinstance(error, typer.BadParameter)
    assert reason in str(error)


def test_words_and_thresholds_are_those_that_files_are_judged_by():
    def heard(words: str) -> list[str]:
        done = CliRunner().invoke(detect, [RECORDING, "--json", "--keywords", words], env={})
        assert done.exit_code == 0, done.output
        return [found["keyword"] for found in json.loads(done.stdout)["detections"]]

    assert heard("yes,no=0.3") == ["yes", "no"]
    assert heard("yes=0.99,no") == ["no"]
    assert "this model does not know 'foo', it knows yes, no" in str(trouble(detect, RECORDING, "--keywords", "foo"))


def test_point_that_can_be_none_is_named():
    error = trouble(detect, RECORDING, "--point", "x" * 40)
    assert isinstance(error, SettingError)
    assert str(error).startswith("point: ")


def test_words_and_thresholds_are_those_that_a_server_judges_files_by(running):
    def asked(words: str):
        return CliRunner().invoke(detect, [RECORDING, "--json", "--keywords", words, "--url", running.http])

    (told,) = re.findall("^{.*}$", asked("yes=0.99,no").stdout, re.MULTILINE)  # beside the server's log
    assert [found["keyword"] for found in json.loads(told)["detections"]] == ["no"]
    strange = asked("foo")
    assert strange.exit_code == 2
    assert "this model does not know 'foo', it knows yes, no" in strange.stderr


def test_words_and_thresholds_are_those_that_streams_are_judged_by(running):
    def heard(words: str) -> list[str]:
        done = CliRunner().invoke(listen, [RECORDING, "--speed", "0", "--url", running.http, "--keywords", words])
        assert done.exit_code == 0, done.output
        return re.findall(r" s  (\w+)", done.stdout)

    assert heard("yes,no=0.3") == ["yes", "no"]
    assert heard("yes=0.99,no") == ["no"]
    error = trouble(listen, RECORDING, "--url", running.http, "--keywords", "foo")
    assert "this model does not know 'foo', it knows yes, no" in str(error)
