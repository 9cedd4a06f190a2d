"""What `view` says before it serves anything: no Dash, no folder, no such port."""

from __future__ import annotations

import socket
import subprocess
import sys
import types

import pytest

import qfl_interp as qfl
from qfl_interp.analyses.view import serve


def test_without_dash_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "dash" else object())
    with pytest.raises(qfl.QflError, match=r"needs Dash.*pip install 'qfl-interp\[view\]'"):
        qfl.view(tmp_path, block=False)


def test_a_place_is_a_folder_a_run_or_a_suite_file(tmp_path, tiny_run):
    assert serve._place(tmp_path) == (tmp_path, "")
    assert serve._place(tiny_run) == serve._place(tiny_run.path) == (tiny_run.path, ".")
    (tmp_path / "x.suite").write_text("{}")
    assert serve._place(tmp_path / "x.suite") == (tmp_path, "x.suite")
    with pytest.raises(qfl.QflError, match=r"none is no folder.*qfl view FOLDER"):
        serve._place(tmp_path / "none")
    with pytest.raises(qfl.QflError, match="qfl suite open"):
        serve._place(types.SimpleNamespace(path=tmp_path))
    with pytest.raises(ValueError, match="port must lie in"):
        qfl.view(tmp_path, port=70_000, block=False)


def test_a_port_that_is_listened_on_is_not_free():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not serve._is_free(taken.getsockname()[1])
    assert serve._is_free(0)


def test_no_other_machine_is_answered(tmp_path):
    pytest.importorskip("dash", reason="needs the extra `view`")
    found = qfl.view(tmp_path, port=0, open_browser=False, block=False)
    try:
        assert found._server.socket.getsockname()[0] == "127.0.0.1"
    finally:
        found.stop()


def test_help_loads_no_dash():
    code = (
        "import sys; sys.argv = ['qfl', '--help']\n"
        "from qfl_interp.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'dash', 'flask', 'torch', 'plotly'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert " view " in done.stdout
