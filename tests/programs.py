"""What a test needs and Python does not bring: programs, recordings, a browser."""

import os
import shutil

import pytest


def lacking(reason):
    """Skip a test for what is not there; with `DELTASPOT_REQUIRE_SHARED=1`, as in `.ci/run`, let it fail."""
    if os.environ.get("DELTASPOT_REQUIRE_SHARED") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def need(*programs):
    """Skip, or fail, where a program is missing."""
    for program in programs:
        if shutil.which(program) is None:
            lacking(f"needs {program}, a Debian package")
