"""Trainings at the size of the POLCA paper and at others: what is followed in them, and which small tables are kept.

A table is a file of docs/polca_paper/RUN/. What a run's own tables hold (directions, slopes at every point) stays
beside the run and may be deleted once the tables are kept.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from pages import DOCS
from polca_scores import CHANCE, SHUFFLES, captured_share, shuffled_within
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

import qfl_interp as qfl
from qfl_interp.analyses.lenses.polca.grouping import cluster_verdicts
from qfl_interp.analyses.lenses.polca.plan import Plan, Settings
from qfl_interp.analyses.lenses.polca.trajectories import Followed, coordinates_at, follow, gradients_at
from qfl_interp.files import write_atomic
from qfl_interp.polca.breakthroughs import plateau_after
from qfl_interp.polca.clustering import DROPPED, cluster_direction
from qfl_interp.polca.config import PolcaConfig
from qfl_interp.polca.naming import token_labels
from qfl_interp.polca.trajectories import POINTWISE, Trajectories, exact_loss, fisher, loss_change
from qfl_interp.tables import column

KEPT = DOCS / "polca_paper"
SCALES = ("raw", "unit")
# Of the thousands, hundreds, tens and ones: where a carry is not the digit itself, and there can be one.
PLACES = {1: "hundreds", 2: "tens"}
# Times at which slopes are kept, for the discriminants, and at which mean curves are.
_SLOPES, _MEANS = 8, 100
_DETAILS = ("means", "slopes", "moves")


@dataclasses.dataclass(frozen=True)
class Size:
    """One model and how it is trained and followed; the defaults are the paper's, or the study's where those cost days.

    Args:
        d_model: Width.
        lr: Peak learning rate.
        seeds: One training each.
        n_steps: Length of the training; the paper's figures end at 4,000 of 10,000.
        basis_every: A basis vector at each multiple.
        sparse_every: Likewise, for the orders that take second derivatives.
        every: Distance of the points of a trajectory.
        closely: Likewise, over the stretch.
        stretch: First and last step that are followed closely.
        short: How many steps of the stretch get the exact second order.
        n_examples: Problems that are followed.
        n_orders: Likewise, where orders are compared.
        n_hessian: Problems of the Hessian's sample.
        tol: Residual of an eigenvector.
        span: Steps over which a turn is measured (Eq. 9).
        tau: The paper's: where the exact loss is flat.
        batch_size, n_layers, n_heads, n_parameters: As named; the last is LCA's.
    """

    d_model: int
    lr: float
    seeds: tuple[int, ...]
    n_steps: int = 4_000
    basis_every: int = 200
    sparse_every: int = 800
    every: int = 20
    closely: int = 5
    stretch: tuple[int, int] = (1_000, 1_400)
    short: int = 100
    n_examples: int = 500
    n_orders: int = 200
    n_hessian: int = 300
    tol: float = 0.03
    span: int = 100
    tau: int = 1_000
    batch_size: int = 64
    n_layers: int = 3
    n_heads: int = 4
    n_parameters: int = 50

    def name(self, seed: int) -> str:
        """Of the run and of its kept tables."""
        return f"d{self.d_model}-seed{seed}"

    def distance(self, stretch: str) -> int:
        """Of the points of a trajectory."""
        return self.every if stretch == "all" else self.closely


SIZES = {
    "paper": Size(512, 1e-5, (0, 1)),
    "ladder": Size(256, 2e-5, (0, 1, 2), stretch=(900, 1_300)),
    "small": Size(
        64, 3e-4, (0,), n_steps=10_000, basis_every=500, sparse_every=2_000, every=50, stretch=(2_000, 2_400)
    ),
}


def train_config(size: Size, seed: int, save_every: int = 0) -> qfl.TrainConfig:
    """The paper's schedule: a linear warm-up over 100 steps, then constant.

    Weights are kept at the basis steps, with the optimiser's state to train on from; or at every `save_every`-th step
    without it, where the disk has room: no stage trains again then.
    """
    return qfl.TrainConfig(
        n_steps=size.n_steps, lr=size.lr, batch_size=size.batch_size, seed=seed, schedule="wsd", decay_fraction=0.0,
        warmup_fraction=min(100 / size.n_steps, 0.5), eval_fraction=0.02,
        save_every=save_every or size.basis_every, save_optimizer=not save_every,
    )  # fmt: skip


def trained(size: Size, seed: int, runs: Path, save_every: int = 0) -> qfl.Run:
    """The training, gone on with where it was stopped."""
    model = qfl.ModelConfig(d_model=size.d_model, n_layers=size.n_layers, n_heads=size.n_heads, style="gpt2")
    task = qfl.load_task("decimal_addition", 3)
    return qfl.train(task, model, train_config(size, seed, save_every), runs / size.name(seed), resume=True)


class Way(NamedTuple):
    """Something that is followed.

    Attributes:
        stretch: "all" of the training, or "closely" or "short": its stretch.
        basis: Name of the directions.
        config: Directions and accuracy.
        details: What to keep for the figure and the discriminants: "means" of the curves, "slopes", "moves".
        baselines: Cluster the exact loss, its change and the Fisher information as well.
    """

    stretch: str
    basis: str
    config: PolcaConfig
    details: tuple[str, ...] = ()
    baselines: bool = False

    @property
    def name(self) -> str:
        """Of its file, which other curves of it extend."""
        return f"{self.stretch}-{self.basis}-{self.config.accuracy}"


def ways(size: Size, stage: str) -> Iterator[Way]:
    """What a stage follows, by its name."""
    how: dict[str, Any] = {"n_examples": size.n_examples, "n_hessian": size.n_hessian, "tol": size.tol}
    dense: dict[str, Any] = how | {"basis_steps": _multiples(size, size.basis_every)}
    sparse: dict[str, Any] = how | {"basis_steps": _multiples(size, size.sparse_every), "n_examples": size.n_orders}
    n = size.n_steps // size.basis_every
    if stage == "follow":
        yield Way("all", "hessian", PolcaConfig(accuracy="first", **dense), details=_DETAILS, baselines=True)
        yield Way("all", "hessian", PolcaConfig(accuracy="trapezoid", **dense), details=("means",))
    elif stage == "path":
        yield Way("all", "hessian", PolcaConfig(accuracy="path", **dense))
    elif stage == "bases":
        bases: dict[str, dict[str, Any]] = {
            "random": {"n_directions": n}, "shuffled": {}, "trajectory": {"n_directions": n - 1},
            "parameters": {"n_directions": size.n_parameters},
        }  # fmt: skip
        for basis, more in bases.items():
            details = _DETAILS if basis in ("random", "shuffled") else ()
            for accuracy, kept in (("first", details), ("trapezoid", ())):
                yield Way("all", basis, PolcaConfig(basis=basis, accuracy=accuracy, **more, **dense), details=kept)
    elif stage == "orders":
        for accuracy in ("first", "trapezoid", "paper", "path"):
            yield Way("all", "sparse", PolcaConfig(accuracy=accuracy, **sparse))
    elif stage == "short":
        for accuracy in ("first", "trapezoid", "paper", "path", "second"):
            yield Way("short", "sparse", PolcaConfig(accuracy=accuracy, **sparse))
    elif stage == "closely":
        yield Way("closely", "hessian", PolcaConfig(accuracy="first", **dense), baselines=True)
        yield Way("closely", "hessian", PolcaConfig(accuracy="trapezoid", **dense))
    elif stage == "readings":
        for accuracy in ("first", "trapezoid"):
            prompt = PolcaConfig(accuracy=accuracy, hessian_prompt=True, **dense)
            yield Way("all", "hessian-prompt", prompt)
    else:
        raise ValueError(f"stage must be one of those that follow something, got {stage!r}.")


def plan_of(size: Size, way: Way, run: qfl.Run) -> Plan:
    """The plan of a way in a run that has every step it follows, saved or trained again."""
    every = size.distance(way.stretch)
    first, last = (0, size.n_steps) if way.stretch == "all" else size.stretch
    if way.stretch == "short":
        last = first + size.short
    steps = list(range(first, last + 1, every))
    # A turn must fit into what is followed.
    span = min(size.span, max(every, (last - first) // 4))
    return Plan.of(run, steps, config=way.config, settings=Settings(span=span, resamples=0))


def _multiples(size: Size, every: int) -> str:
    """The basis steps, as a configuration writes them."""
    return ",".join(str(step) for step in range(every, size.n_steps + 1, every))


def is_kept(way: Way, folder: Path) -> bool:
    """Whether all of a way's tables are kept."""
    return (folder / f"{way.name}.parquet").exists()


def run_way(size: Size, way: Way, run: qfl.Run, folder: Path) -> None:
    """Follow and keep, unless it was."""
    if is_kept(way, folder):
        return
    plan = plan_of(size, way, run)
    followed = follow(plan)
    tokens = labelled(plan, followed)
    _keep(folder, f"tokens-{len(tokens)}", tokens)
    for suffix, trajectory, curves in _curves(plan, followed, way):
        rows = _direction_rows(size, plan, followed, curves, tokens)
        about = {
            "d_model": size.d_model, "lr": size.lr, "seed": run.config.train.seed, "stretch": way.stretch,
            "trajectory": trajectory, "basis": way.basis,
        }  # fmt: skip
        if curves.kind not in ("exact_loss", *POINTWISE):
            about["captured"] = captured_share(followed.intervals)
        if suffix:
            _keep(folder, f"{way.name}{suffix}", rows.assign(**about))
            continue
        if "means" in way.details:
            _keep(folder, f"means-{way.name}", mean_rows(curves, followed.losses.double().numpy(), tokens))
        if "slopes" in way.details:
            _keep(folder, f"slopes-{way.name}", _slopes(plan, followed, tokens))
        if "moves" in way.details:
            _keep(folder, f"moves-{way.name}", _moves(plan))
        # Last: it says that all is kept.
        _keep(folder, way.name, rows.assign(**about))


def _curves(plan: Plan, followed: Followed, way: Way) -> Iterator[tuple[str, str, Trajectories]]:
    """What is clustered: the suffix of its file, its name, the curves; the way's own last."""
    losses, steps = followed.losses.double().numpy(), plan.steps
    if way.baselines:
        yield "-exact", "exact loss", exact_loss(losses, steps)
        yield "-change", "change in exact loss", loss_change(losses, steps)
        yield "-fisher", "Fisher information", fisher(gradients_at(plan).numpy(), steps)
    names = {
        "first": "first order", "trapezoid": "path integral, trapezoid", "paper": "the paper's second order",
        "path": "path integral", "second": "exact second order",
    }  # fmt: skip
    name = names[way.config.accuracy]
    yield "", f"LCA, {name}" if way.basis == "parameters" else name, followed.trajectories


def labelled(plan: Plan, followed: Followed) -> pd.DataFrame:
    """What is known of each token: `example`, `place` (0: thousands), `target`, carries into and out of its place."""
    found = token_labels(plan.run.task, followed.examples, followed.scored)
    carry = found["carry"].fillna(False).to_numpy(dtype=bool).reshape(len(followed.examples), -1)
    out = np.zeros_like(carry)
    # What a place carries is what its neighbour on the left receives.
    out[:, 1:] = carry[:, :-1]
    return found[["example", "place", "target"]].assign(carry_in=carry.ravel(), carry_out=out.ravel())


def _direction_rows(
    size: Size, plan: Plan, followed: Followed, curves: Trajectories, tokens: pd.DataFrame
) -> pd.DataFrame:
    """One row a scale and direction: the cluster of each token, and when each cluster breaks."""
    losses = followed.losses.double().numpy()[-len(curves.steps) :]
    tau = plateau_after(losses.mean(axis=1), curves.steps)
    carry, place = tokens["carry_in"].to_numpy(dtype=bool), column(tokens, "place")
    final = np.stack([curves.of(direction)[:, -1] for direction in curves.directions], axis=1)
    telling = {}
    for at, name in PLACES.items():
        here = place == at
        target = pd.factorize(tokens["target"][here])[0]
        telling[name] = best_auc_by_chance(final[here], carry[here], target)
    rows = []
    for scale in SCALES:
        for direction in curves.directions:
            own = curves.of(direction).astype(np.float64)
            shown = own if scale == "raw" else unit_length(own)
            found = cluster_direction(shown, only_falling=curves.kind not in POINTWISE)
            verdicts = list(cluster_verdicts(shown, found.labels, losses, curves.steps, plan.settings).values())
            breaks = [verdict["break_step"] for verdict in verdicts]
            rows.append({
                "scale": scale, "direction": direction, "tau": tau, "kept": found.kept,
                "dropped": float(np.mean(found.labels == DROPPED)), "labels": found.labels.astype(np.int16),
                "break_steps": np.array(breaks, dtype=np.float64),
                "hidden_paper": np.array([step > size.tau for step in breaks], dtype=bool),
                "hidden_tau": np.array([verdict["hidden"] for verdict in verdicts], dtype=bool),
                "hidden_flat": np.array(
                    [verdict["in_flat"] and verdict["learned_share"] <= 0.5 for verdict in verdicts], dtype=bool
                ),
                **{f"auc_{name}": auc(own[place == at, -1], carry[place == at]) for at, name in PLACES.items()},
                **{f"auc_chance_{name}": chance for name, chance in telling.items()},
            })  # fmt: skip
    known = followed.directions.set_index("direction")[["step", "eigenvalue", "residual", "converged"]]
    frame = pd.DataFrame(rows)
    return frame.join(known.rename(columns={"step": "basis_step"}), on="direction")


def unit_length(curves: Float[np.ndarray, "token time"]) -> Float[np.ndarray, "token time"]:
    """Each curve divided by its length; one of zeros stays."""
    length = np.linalg.norm(curves, axis=1, keepdims=True)
    return np.divide(curves, length, out=np.zeros_like(curves), where=length > 0)


def auc(scores: Float[np.ndarray, " token"], carry: np.ndarray) -> float:
    """The area under the curve of telling a carry, NaN where all or none have one."""
    return float(roc_auc_score(carry, scores)) if 0 < carry.sum() < len(carry) else float("nan")


def away(area: Any) -> Any:
    """An area under a curve whichever of the two has the higher scores: at least 0.5."""
    return 0.5 + np.abs(area - 0.5)


def best_auc_by_chance(
    scores: Float[np.ndarray, "token direction"], carry: np.ndarray, among: np.ndarray, shuffles: int = SHUFFLES
) -> float:
    """What 95 % of shuffled carries stay below as the best area of all directions, whichever way round.

    Carries are shuffled among the tokens of one number of `among`: what that says of the carry remains.
    """
    n, having = len(carry), int(carry.sum())
    if not 0 < having < n:
        return float("nan")
    ranks, found = rankdata(scores, axis=0), []
    for mixed in shuffled_within(carry, among, shuffles):
        areas = (ranks[mixed].sum(axis=0) - having * (having + 1) / 2) / (having * (n - having))
        found.append(away(areas).max())
    return float(np.quantile(found, CHANCE))


def mean_rows(curves: Trajectories, losses: Float[np.ndarray, "time token"], tokens: pd.DataFrame) -> pd.DataFrame:
    """Mean and quartiles of tokens with and without a carry, by direction, step and place; of their exact loss too."""
    times = thinned(len(curves.steps), _MEANS)
    place, carry = column(tokens, "place"), tokens["carry_in"].to_numpy(dtype=bool)
    parts = []
    for at, name in PLACES.items():
        for having in (False, True):
            members = (place == at) & (carry == having)
            if not members.any():
                continue
            exact = _quartiles(losses[times][:, members].T, "exact_")
            for direction in curves.directions:
                own = _quartiles(curves.of(direction)[members][:, times], "")
                steps = np.array(curves.steps, dtype=np.int32)[times]
                what = {"direction": np.int16(direction), "place": name, "carry": having, "step": steps}
                parts.append(pd.DataFrame(what | own | exact))
    return pd.concat(parts, ignore_index=True)


def _quartiles(values: Float[np.ndarray, "token time"], prefix: str) -> dict[str, Float[np.ndarray, " time"]]:
    low, high = np.quantile(values, [0.25, 0.75], axis=0)
    named = {"mean": values.mean(axis=0), "q25": low, "q75": high}
    return {prefix + name: one.astype(np.float32) for name, one in named.items()}


def thinned(n: int, most: int) -> np.ndarray:
    """At most about so many indices of `n`, evenly, the last one among them."""
    return np.arange(n - 1, -1, -max(1, -(-n // most)))[::-1]


def _moves(plan: Plan) -> pd.DataFrame:
    """Where the parameters are along each direction, one column each, one row a step."""
    found = coordinates_at(plan).numpy().astype(np.float32)
    return pd.DataFrame(found, columns=[str(i) for i in range(found.shape[1])]).assign(step=plan.steps)


def _slopes(plan: Plan, followed: Followed, tokens: pd.DataFrame) -> pd.DataFrame:
    """Slopes and exact losses at a few times: columns `DIRECTION:STEP` and `loss:STEP` beside what `tokens` has.

    A row a token of the places that discriminants are fitted on. The sign of a direction carries no meaning: each
    points to where the parameters end up.
    """
    times = thinned(len(plan.steps), _SLOPES)
    coordinates = coordinates_at(plan).numpy()
    sign = np.where(coordinates[-1] < coordinates[0], -1.0, 1.0)
    kept = np.flatnonzero(tokens["place"].isin(PLACES))
    slopes = gradients_at(plan).numpy()[:, kept] * sign
    values: dict[str, np.ndarray] = {}
    for time in times:
        step = plan.steps[time]
        values |= {f"{i}:{step}": slopes[time, :, i].astype(np.float32) for i in range(len(sign))}
        values[f"loss:{step}"] = followed.losses[time].numpy()[kept].astype(np.float32)
    return pd.concat([tokens.iloc[kept].reset_index(drop=True), pd.DataFrame(values)], axis=1)


def compare_orders(size: Size, stage: str, run: qfl.Run, folder: Path) -> None:
    """Keep how far the orders that a stage followed agree with each other (Table 12), unless it was."""
    own = {way.config.accuracy: way for way in ways(size, stage)}
    pairs = list(itertools.combinations(own, 2))
    stretch = next(iter(own.values())).stretch
    path = folder / f"orders-{stretch}.parquet"
    if path.exists() and len(pd.read_parquet(path)[["one", "other"]].drop_duplicates()) == len(pairs):
        return
    found = {order: follow(plan_of(size, way, run), progress=False) for order, way in own.items()}
    parts = []
    for one, other in pairs:
        rows = agreement(found[one].trajectories.values, found[other].trajectories.values)
        captured = {
            "captured_one": captured_share(found[one].intervals),
            "captured_other": captured_share(found[other].intervals),
        }
        parts.append(rows.assign(stretch=stretch, one=one, other=other, **captured))
    about = {"d_model": size.d_model, "lr": size.lr, "seed": run.config.train.seed}
    _keep(folder, f"orders-{stretch}", pd.concat(parts, ignore_index=True).assign(**about))


def orders_of(folder: Path) -> pd.DataFrame:
    """How far orders agree in a training; empty where none were compared."""
    parts = [pd.read_parquet(path) for path in sorted(folder.glob("orders-*.parquet"))]
    return pd.concat(parts) if parts else pd.DataFrame()


def agreement(
    one: Float[np.ndarray, "direction token time"], other: Float[np.ndarray, "direction token time"]
) -> pd.DataFrame:
    """Cosine and L2 distance of two orders' curves, one row a direction: means over the tokens (Table 12), medians.

    A token whose curve is all zeros in either has no cosine; `n_zero` counts them.
    """
    one, other = one.astype(np.float64), other.astype(np.float64)
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(other, axis=-1)
    inner = np.sum(one * other, axis=-1)
    cosine = np.divide(inner, lengths, out=np.full_like(inner, np.nan), where=lengths > 0)
    distance = np.linalg.norm(one - other, axis=-1)
    return pd.DataFrame({
        "direction": np.arange(len(one)), "cosine": _mean(cosine), "cosine_median": _mean(cosine, np.median),
        "l2": distance.mean(axis=1), "l2_median": np.median(distance, axis=1), "n_zero": np.sum(lengths == 0, axis=1),
    })  # fmt: skip


def _mean(values: np.ndarray, of: Callable[..., Any] = np.mean) -> list[float]:
    """Of each row's numbers; NaN where it has none."""
    kept = (row[np.isfinite(row)] for row in values)
    return [float(of(row)) if len(row) else float("nan") for row in kept]


def _keep(folder: Path, name: str, frame: pd.DataFrame) -> None:
    """A table as a file, whole or not at all."""
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    write_atomic(folder / f"{name}.parquet", buffer.getvalue())


def kept_folder(size: Size, run: qfl.Run, kept: Path) -> Path:
    """Where the tables of a training are kept, with its settings and the SHA-256 of its last weights.

    Raises:
        SystemExit: Those there are of other settings, or of a training that ended with other weights.
    """
    folder = kept / size.name(run.config.train.seed)
    folder.mkdir(parents=True, exist_ok=True)
    weights = run.weights(size.n_steps)
    assert weights is not None, "a run that was trained to its end has its last weights"
    known = {"settings.json": json.dumps(dataclasses.asdict(size), indent=1), "weights.txt": weights}
    for name, value in known.items():
        path = folder / name
        if path.exists() and path.read_text() != value:
            raise SystemExit(
                f"{folder} must hold tables of one training, got another {name.split('.')[0]} there. Move it away, or "
                "take its own; a training repeats itself on one kind of machine and thread count."
            )
        write_atomic(path, value.encode())
    return folder


def folders(kept: Path) -> Sequence[Path]:
    """Those that hold tables."""
    return sorted({path.parent for path in kept.glob("*/tokens-*.parquet")})


def tokens_of(folder: Path, n: int) -> pd.DataFrame:
    """What is known of the tokens where so many were followed."""
    return pd.read_parquet(folder / f"tokens-{n}.parquet")


def tables(folder: Path) -> Iterable[tuple[str, pd.DataFrame]]:
    """The tables of clusters of a training, by name."""
    for path in sorted(folder.glob("*.parquet")):
        if path.stem.split("-")[0] in ("all", "closely", "short"):
            yield path.stem, pd.read_parquet(path)
