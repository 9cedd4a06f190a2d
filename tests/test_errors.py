"""What no error and no record may show."""

from __future__ import annotations

import pickle

import pytest

from qfl_interp.errors import QflError, StorageError, redact, redact_command


@pytest.mark.parametrize("kind", [QflError, StorageError])
def test_errors_show_no_login(kind):
    error = kind("s3://user:pass@bucket/x cannot be read; nor 'ftp://me@there'")
    assert str(error) == "s3://***@bucket/x cannot be read; nor 'ftp://***@there'"
    assert "pass" not in str(pickle.loads(pickle.dumps(error)))


def test_a_login_is_left_out_of_a_url_that_a_path_has_folded():
    assert redact("got 'https:/user:pass@h/x'") == "got 'https:/***@h/x'"


@pytest.mark.parametrize("text", ["a@b.c", "s3://bucket/a@b", "https://host:80/path", "no URL"])
def test_what_is_no_login_stays(text):
    assert redact(text) == text


def test_commands_show_no_secret():
    words = ["qfl", "sweep", "--token", "abc", "--api-key=def", "--wandb-password", "x y", "--tokens", "500", "-k", "1"]
    words += ["s3://u:p@b/c"]
    assert redact_command(words) == [
        "qfl", "sweep", "--token", "***", "--api-key=***", "--wandb-password", "***", "--tokens", "500", "-k", "1",
        "s3://***@b/c",
    ]  # fmt: skip
