"""docs/howto/own_loop.md runs as it stands: its loop records a whole run that a lens reads."""

from __future__ import annotations

import page_code

import qfl_interp as qfl


def test_the_block_records_a_run(tmp_path, monkeypatch):
    page = (page_code.DOCS / "howto" / "own_loop.md").read_text()
    monkeypatch.chdir(tmp_path)
    (printed,) = page_code.run(page, "own_loop.md")
    run = qfl.Run.open("runs/own")
    assert run.finished
    assert run.verify()
    losses = run.metrics["val_loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0]
    assert "Probes of addition4-" in printed
