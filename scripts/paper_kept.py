"""What is kept of the runs at the paper's lengths: a folder of small tables a run, never weights."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd
from pages import DOCS

from qfl_interp.emergence.transition import Transition, find_transition
from qfl_interp.tables import column

FOLDER, CSV = DOCS / "paper_lengths", DOCS / "paper_lengths.csv"
# All that is kept has to stay below this many bytes.
MOST_BYTES: Final = 20 * 2**20
COLUMNS: Final = (
    "task", "length", "seed", "d_model", "n_layers", "batch_size", "lr", "budget_flops", "final_loss", "exact_match",
    "transition_start", "transition_end",
)  # fmt: skip
_ABOUT, _SEARCH = "run.json", "search"


class Kept:
    """The folder of kept tables; `folder/ITEM/` has `run.json` and Parquet tables by name."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    def has(self, item: str) -> bool:
        """Whether the item is finished; a run not probed or ablated yet is not, though its metrics are kept."""
        return (self.folder / item / _ABOUT).exists() and self.about(item).get("complete", True)

    def names(self) -> list[str]:
        """Items with tables."""
        return sorted(path.parent.name for path in self.folder.glob(f"*/{_ABOUT}"))

    def about(self, item: str) -> dict[str, Any]:
        """What an item was."""
        return json.loads((self.folder / item / _ABOUT).read_text())

    def table(self, item: str, name: str) -> pd.DataFrame | None:
        """A table of an item; None where it has none of the name."""
        path = self.folder / item / f"{name}.parquet"
        return pd.read_parquet(path) if path.exists() else None

    def search(self, item: str) -> pd.DataFrame | None:
        """The runs of a search."""
        return self.table(item, _SEARCH)

    def write(self, item: str, about: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> None:
        """Keep an item, all of it or nothing; one of the name that is there gives way."""
        made = self.folder / f".{item}"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        for name, table in tables.items():
            table.to_parquet(made / f"{name}.parquet", index=False, compression="zstd")
        (made / _ABOUT).write_text(json.dumps(dict(about), indent=1) + "\n")
        shutil.rmtree(self.folder / item, ignore_errors=True)
        made.rename(self.folder / item)

    def n_bytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def transition(self, item: str) -> Transition:
        """The transition of a run's validation loss over the answer alone, as `analyses` finds it."""
        metrics = self.table(item, "metrics")
        assert metrics is not None
        rows = metrics.dropna(subset=["val_loss_answer"])
        chance = self.about(item)["base_rate"]
        return find_transition(column(rows, "flops"), column(rows, "val_loss_answer"), chance_loss=chance)

    def rows(self) -> list[dict[str, Any]]:
        """One row a kept run: `COLUMNS`, and what else its `run.json` says; NaN where the loss has no transition."""
        found = []
        for item in self.names():
            about = self.about(item)
            if about["kind"] != "run":
                continue
            metrics = self.table(item, "metrics")
            assert metrics is not None
            last = metrics.dropna(subset=["val_loss_answer"]).iloc[-1]
            there = self.transition(item)
            scores = {"final_loss": float(last["val_loss_answer"]), "exact_match": float(last["val_exact_answer"])}
            ends = (there.start_flops, there.end_flops) if there.found else (math.nan, math.nan)
            scores |= {"transition_start": ends[0], "transition_end": ends[1], "reason": there.reason}
            scores |= {"complete_transition": there.found and there.complete}
            found.append(about | scores | {"item": item})
        return sorted(found, key=lambda row: (row["task"], row["length"], row["budget_flops"], row["seed"]))

    def csv(self) -> str:
        """The rows as docs/paper_lengths.csv has them."""
        table = pd.DataFrame(self.rows(), columns=list(COLUMNS))
        return table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
