"""Draw the figures of docs/figures/ that are made of tables kept under docs/ anew, without any run.

    python scripts/redraw.py

After a change of how figures look. The others need the runs that their pages' commands train. Needs `pip install
kaleido` and a Chromium.
"""

from __future__ import annotations

import argparse
import json

import pandas as pd
import paper_lengths
import study_edge
import zoo
from figures.forks import forks_figure
from figures.overview import leads_figure
from figures.reliability import reliability
from pages import DOCS, save
from paper_kept import Kept
from paper_queue import Queue
from study_forks import CURVES


def main() -> None:
    """Draw them."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    study_edge.draw(pd.read_csv(study_edge.ROWS))
    zoo.draw(zoo.entries())
    kept = Kept()
    paper_lengths.draw(Queue(kept), kept)
    save(forks_figure(pd.read_csv(CURVES)), "forks", width=760)
    save(reliability(pd.read_csv(DOCS / "reliability.csv")), "reliability")
    verdicts = pd.DataFrame(json.loads((DOCS / "tasks.json").read_text())["verdicts"])
    save(leads_figure(pd.DataFrame(verdicts[verdicts["third"] == "all"])), "leads", width=760)


if __name__ == "__main__":
    main()
