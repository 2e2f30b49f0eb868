"""Options that several commands have."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from client.keywords import write_keyword
from service.commands.demo import SAMPLE
from service.commands.detect import app as detect
from service.commands.enroll import app as enroll
from service.protocol import BadMessage, Enrolled

NOBODY = "127.0.0.1:9"
RECORDING = str(SAMPLE / "commands.flac")


def trouble(app, *arguments, **environment) -> BaseException:
    """What a command fails with."""
    done = CliRunner().invoke(app, list(map(str, arguments)), env=environment, standalone_mode=False)
    assert done.exception is not None, done.output
    return done.exception


def test_what_works_here_only_does_so_whatever_server_the_environment_names(tmp_path):
    own = tmp_path / "tx.json"
    write_keyword(Enrolled(name="tx", fingerprint="another's", recordings=1, prototype=(), contrast=()), own)
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
