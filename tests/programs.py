"""Programs that a test runs and Python does not bring."""

import os
import shutil

import pytest


def need(*programs):
    """Skip where a program is missing; in CI, whose set-up installs them all, that is a failure."""
    for program in programs:
        if shutil.which(program) is None:
            reason = f"needs {program}, a Debian package"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
