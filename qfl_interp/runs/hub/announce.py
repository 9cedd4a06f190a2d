"""What a user reads before revisions are fetched, and the bar while they are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from qfl_interp.errors import QflError
from qfl_interp.plugins import warn
from qfl_interp.progress import progress_bar
from qfl_interp.runs.hub import client
from qfl_interp.runs.hub.revisions import Listing, Revision
from qfl_interp.runs.hub.sizes import download_size


def announce(listing: Listing, chosen: Sequence[Revision], tokens: int | None, *, progress: bool) -> None:
    """Say what a repository has, what of it is left out, and how much is to be fetched.

    Args:
        listing: What there is.
        chosen: What is taken of it.
        tokens: The tokens of a step, where they were read from the names.
        progress: Whether to say it; what is left out is said in any case.
    """
    if left_out := listing.left_out():
        warn(left_out)
    if not progress:
        return
    steps = list(listing.revisions)
    parts = [f"{listing.repo}: {len(chosen)} of {len(steps)} revisions, steps {steps[0]} to {steps[-1]}"]
    if not client.is_offline():
        size = download_size(listing.repo, chosen)
        parts.append(f"{in_bytes(size.n_bytes)} to fetch, {size.n_cached} revisions are in the cache")
        if size.unknown:
            parts.append(f"the size of {len(size.unknown)} is unknown ({', '.join(size.unknown[:5])})")
    if tokens is not None:
        parts.append(f"{tokens:,} tokens a step by their names")
    print("; ".join(parts), file=sys.stderr)


def in_bytes(count: int) -> str:
    """A number of bytes with three digits and its unit (of 1000)."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def fetch_all(fetch: Mapping[int, Callable[[], object]], *, progress: bool) -> None:
    """Call what fetches the checkpoint of each step; one that cannot be fetched is named, and the next one follows."""
    with progress_bar(enabled=progress) as bar:
        work = bar.add_task("fetching", total=len(fetch), detail="")
        for step, one in fetch.items():
            bar.update(work, detail=f"step {step}")
            try:
                one()
            except QflError as error:
                warn(str(error))
            bar.advance(work)
