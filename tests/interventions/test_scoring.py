"""Planes as interventions, what ablations leave of the answers, heads and neurons one at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qfl_interp.config import ModelConfig
from qfl_interp.data.task import NO_POSITION, Batch
from qfl_interp.errors import QflError
from qfl_interp.interventions import streams
from qfl_interp.interventions.controls import moves_made, plane_controls, plane_means
from qfl_interp.interventions.planes import Planes, plane_ablation, pooled_planes, probe_planes
from qfl_interp.interventions.replace import zero
from qfl_interp.interventions.scoring import score_ablation, score_interventions, score_units, shared_prefix
from qfl_interp.models.build import build_hooked
from qfl_interp.models.generate import generate_greedy
from qfl_interp.models.hooks import Intervention, Site, interventions_on, read_activations
from qfl_interp.models.metrics import evaluate

D_MODEL, N_LAYERS, N_CTX, EQUALS = 48, 3, 11, 4
N_EXAMPLES = 20


@pytest.fixture(scope="module")
def model():
    """Two tokens: what is scored is one logit difference."""
    return build_hooked(ModelConfig(d_model=D_MODEL, n_layers=N_LAYERS), d_vocab=2, n_ctx=N_CTX, seed=4)


@pytest.fixture(scope="module")
def batch(model):
    """Prompts that the model itself has continued, so that every answer is right."""
    prompts = torch.randint(0, 2, (N_EXAMPLES, EQUALS + 1), generator=torch.Generator().manual_seed(0))
    tokens = generate_greedy(model, prompts, n_new=N_CTX - EQUALS - 1)
    return Batch(tokens, (torch.arange(N_CTX) >= EQUALS).repeat(N_EXAMPLES, 1))


def cached(model, tokens):
    """[layer, example, pos, d_model]"""
    _, cache = model.run_with_cache(tokens)
    return torch.stack([cache["resid_post", layer] for layer in range(N_LAYERS)]).detach()


# Planes


def draw_planes(layers, positions, k=1, seed=0):
    rng = np.random.default_rng(seed)
    shape = (len(layers), k, D_MODEL)
    return Planes(
        torch.from_numpy(rng.standard_normal(shape)).float(),
        torch.from_numpy(rng.standard_normal(shape[:2])).float(),
        np.array(layers),
        torch.as_tensor(positions)[..., None],
        torch.ones(shape[:2], dtype=torch.bool),
    )


def test_one_intervention_a_layer_with_its_labels_only(model, batch):
    """Afterwards every label's activation lies on its own plane, at its own layer and position."""
    positions = torch.tensor([[5, 6, 7, 8], [6, 5, NO_POSITION, 7], [4, 8, 9, 5]])
    planes = draw_planes([2, 0, 2, 1], positions)
    changes = plane_ablation(planes)(slice(1, 3))
    assert [c.site for c in changes] == [Site(0), Site(1), Site(2)]
    tokens = batch.tokens[1:3]
    with interventions_on(model, changes):
        after = read_activations(model, tokens, [Site(layer) for layer in range(N_LAYERS)])
    for label, layer in enumerate(planes.layers):
        for example, place in enumerate(positions[1:3, label].tolist()):
            if place == NO_POSITION:
                continue
            x = after[Site(int(layer))][example, place]
            distance = x @ planes.directions[label, 0] + planes.offsets[label, 0]
            assert abs(distance) < 1e-4, (label, example)
    # Nothing else of the first changed layer moved.
    before = read_activations(model, tokens, [Site(0)])[Site(0)]
    changed = (after[Site(0)] != before).any(dim=2)
    assert changed.nonzero().tolist() == [[0, 5], [1, 8]]


def test_labels_at_one_place_and_outputs_without_a_probe(model, batch):
    """Two labels read at one position are projected out jointly; rows that do not count are left alone."""
    positions = torch.tensor([[5, 6, 5], [7, 4, 7], [4, 8, 4]])
    drawn = draw_planes([1, 1, 1], positions, k=3)
    kept = torch.tensor([[True, True, False], [False, False, True], [False, True, True]])
    planes = drawn._replace(kept=kept, directions=drawn.directions * kept[..., None], offsets=drawn.offsets * kept)
    changes = plane_ablation(planes)(slice(0, 3))
    assert [c.site for c in changes] == [Site(1)] * 2, "four directions at one place, one at the other"
    before = read_activations(model, batch.tokens[:3], [Site(1)])[Site(1)]
    with interventions_on(model, changes):
        after = read_activations(model, batch.tokens[:3], [Site(1)])[Site(1)]
    for example in range(3):
        for label, place in enumerate(positions[example].tolist()):
            x = after[example, place]
            distance = planes.directions[label] @ x + planes.offsets[label]
            assert distance[kept[label]].abs().max() < 1e-4
        joint = torch.cat([planes.directions[label][kept[label]] for label in (0, 2)])
        change = (after - before)[example, positions[example, 0]]
        coefficients = torch.linalg.lstsq(joint.mT, change[:, None]).solution
        torch.testing.assert_close(joint.mT @ coefficients, change[:, None], rtol=1e-4, atol=1e-4)


def test_labels_of_one_layer_may_have_different_numbers_of_directions(model, batch):
    positions = torch.tensor([[4, 6, 8]])
    drawn = draw_planes([2, 2, 2], positions.expand(2, -1), k=3)
    kept = torch.tensor([[True, False, False], [True, True, True], [False, False, True]])
    planes = drawn._replace(kept=kept)
    with interventions_on(model, plane_ablation(planes)(slice(0, 2))):
        after = read_activations(model, batch.tokens[:2], [Site(2)])[Site(2)]
    before = read_activations(model, batch.tokens[:2], [Site(2)])[Site(2)]
    for label, place in enumerate(positions[0].tolist()):
        x = after[:, place]
        distance = (x @ planes.directions[label].mT + planes.offsets[label]).abs()
        assert distance[:, kept[label]].max() < 1e-4
        if not kept[label].all():
            assert distance[:, ~kept[label]].min() > 1e-3, "a direction that does not count is left alone"
        rank = torch.linalg.matrix_rank((after - before)[:, place], rtol=1e-4)
        assert int(rank) <= int(kept[label].sum())


def drawn_probes(n_labels, k=1, seed=3):
    """Weights, intercepts and fitted outputs of every block."""
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.standard_normal((N_LAYERS, n_labels, k, D_MODEL))).float()
    intercept = torch.from_numpy(rng.standard_normal((N_LAYERS, n_labels, k))).float()
    return weight, intercept, torch.ones(N_LAYERS, n_labels, k, dtype=torch.bool)


def project(x, w, b):
    """Onto `w . x + b = 0`, by hand."""
    return x - ((x @ w + b) / (w @ w))[..., None] * w


def test_top_layers_each_with_its_own_probe_against_plain_hooks(model, batch):
    """Label 0 at blocks 2 and 0, label 1 at blocks 1 and 2; one output of label 1 has no probe at block 2."""
    weight, intercept, fitted = drawn_probes(2)
    fitted[2, 1] = False
    layers, positions = np.array([[2, 0], [1, 2]]), np.tile([5, 7], (4, 1))
    positions[3, 0] = NO_POSITION
    positions.flags.writeable = False  # as tasks may hand them out
    planes = probe_planes(weight, intercept, fitted, layers=layers, positions=positions)
    assert planes.layers.tolist() == [2, 0, 1, 2]
    with interventions_on(model, plane_ablation(planes)(slice(0, 4))):
        found = model(batch.tokens[:4])

    def hook(layer, labels):
        def change(x, hook):
            for label in labels:
                for example in range(4):
                    place = positions[example, label]
                    if place != NO_POSITION:
                        w, b = weight[layer, label, 0], intercept[layer, label, 0]
                        x[example, place] = project(x[example, place], w, b)
            return x

        return f"blocks.{layer}.hook_resid_post", change

    want = model.run_with_hooks(batch.tokens[:4], fwd_hooks=[hook(0, [0]), hook(1, [1]), hook(2, [0])])
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    one_layer = probe_planes(weight, intercept, fitted, layers=layers[:, :1], positions=positions)
    with interventions_on(model, plane_ablation(one_layer)(slice(0, 4))):
        assert not torch.allclose(model(batch.tokens[:4]), want, atol=1e-3)


def test_pooled_planes_act_from_the_first_label_to_the_last(model, batch):
    weight, intercept, fitted = drawn_probes(1)
    positions = torch.tensor([[6, 3], [5, 5], [NO_POSITION, 8], [NO_POSITION, NO_POSITION]])
    planes = pooled_planes(weight[:, 0], intercept[:, 0], fitted[:, 0], layers=np.array([1]), positions=positions)
    assert planes.positions[:, 0].tolist() == [[3, 4, 5, 6], [5, -1, -1, -1], [8, -1, -1, -1], [-1] * 4]
    before = read_activations(model, batch.tokens[:4], [Site(1)])[Site(1)]
    with interventions_on(model, plane_ablation(planes)(slice(0, 4))):
        after = read_activations(model, batch.tokens[:4], [Site(1)])[Site(1)]
    want = before.clone()
    for example, tokens in enumerate(([3, 4, 5, 6], [5], [8], [])):
        want[example, tokens] = project(before[example, tokens], weight[1, 0, 0], intercept[1, 0, 0])
    torch.testing.assert_close(after, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.5, 1.0])
def test_strength_of_planes(model, batch, epsilon):
    planes = draw_planes([1], [[5]] * 2)
    make = plane_ablation(planes, epsilon=epsilon)
    before = read_activations(model, batch.tokens[:2], [Site(1)])[Site(1)][:, 5]
    with interventions_on(model, make(slice(0, 2))):
        after = read_activations(model, batch.tokens[:2], [Site(1)])[Site(1)][:, 5]
    w, b = planes.directions[0, 0], planes.offsets[0, 0]
    torch.testing.assert_close(after @ w + b, (1 - epsilon) * (before @ w + b), rtol=1e-4, atol=1e-4)


def test_planes_that_cannot_be_are_refused():
    weight, intercept, fitted = drawn_probes(2)
    positions = np.array([[5, 7]])
    with pytest.raises(ValueError, match=r"layers must lie in \[0, 3\), got -1 to 2"):
        probe_planes(weight, intercept, fitted, layers=np.array([[2], [-1]]), positions=positions)
    none = probe_planes(weight, intercept, ~fitted, layers=np.array([[2], [1]]), positions=positions)
    with pytest.raises(ValueError, match="at least one plane, got none of 2"):
        plane_ablation(none)


# Scores


def planted(model, examples=None):
    """The direction that decides between both tokens, at every position that predicts an answer token.

    The final norm only rescales: the logit difference is `(gain * (U_1 - U_0)) . x / rms(x)`.
    """
    used = model.ln_final.w.detach() * (model.unembed.W_U[:, 1] - model.unembed.W_U[:, 0]).detach()
    places = torch.arange(EQUALS, N_CTX - 1)
    positions = places.repeat(N_EXAMPLES, 1)
    if examples is not None:
        positions[~examples] = NO_POSITION
    n = len(places)
    return Planes(
        3 * used.repeat(n, 1, 1),
        torch.zeros(n, 1),
        np.full(n, N_LAYERS - 1),
        positions[..., None],
        torch.ones(n, 1).bool(),
    )


def scored(model, batch, planes, *, n_trials=1, seed=0, epsilon=1.0, pool=None, **settings):
    """The ablation of planes beside all its controls."""
    make = plane_ablation(planes, epsilon=epsilon)
    controls = plane_controls(
        planes,
        plane_means(model, batch.tokens, planes),
        moves=moves_made(model, batch.tokens, make),
        pool=pool,
        epsilon=epsilon,
    )
    rng = np.random.default_rng(seed)
    return score_ablation(model, batch, make, controls, n_trials=n_trials, rng=rng, **settings)


def test_a_direction_the_model_uses_shows_and_controls_do_not(model, batch):
    """Other features' directions: drawn ones, made orthogonal to the one in use."""
    planes = planted(model)
    used = planes.directions[0, 0] / planes.directions[0, 0].norm()
    others = torch.randn(5, D_MODEL, generator=torch.Generator().manual_seed(0))
    others -= (others @ used)[:, None] * used
    found = scored(model, batch, planes, n_trials=6, pool={N_LAYERS - 1: others})
    assert {name: len(trials) for name, trials in found.items()} == {
        "intact": 1, "ablated": 1, "random": 6, "feature": 6, "same_norm": 6
    }  # fmt: skip
    (whole,), (ablated,) = found["intact"], found["ablated"]
    assert whole.exact_answer.all()
    # Both tokens are equally likely wherever the direction is gone.
    np.testing.assert_allclose(ablated.loss_answer, math.log(2), rtol=1e-5)
    assert whole.loss_answer.mean() < 0.6 * math.log(2)
    for name in ("random", "feature", "same_norm"):
        for trial in found[name]:
            assert abs(trial.loss_answer.mean() - whole.loss_answer.mean()) < 0.05, name
            assert trial.exact_answer.mean() > 0.7, name
            assert not np.array_equal(trial.loss, whole.loss), name


@pytest.mark.parametrize("chunk", [3, 256])
def test_positions_go_with_their_examples(model, batch, chunk):
    """Only the odd examples have the label; chunks must not shift the rows."""
    odd = torch.arange(N_EXAMPLES) % 2 == 1
    found = scored(model, batch, planted(model, odd), chunk=chunk)
    np.testing.assert_allclose(found["ablated"][0].loss_answer[odd], math.log(2), rtol=1e-5)
    for name in ("ablated", "random", "same_norm"):
        # The hooked pass and the fused one sum in another order, in float32.
        loss, whole = found[name][0].loss, found["intact"][0].loss
        np.testing.assert_allclose(loss[~odd], whole[~odd], rtol=1e-5, atol=1e-6)
        assert (np.abs(loss - whole)[odd] > 1e-5).all()


def test_strength_zero_is_the_intact_model(model, batch):
    planes = draw_planes([0, 2], [[5, 6]] * N_EXAMPLES)
    found = scored(model, batch, planes, epsilon=0.0)
    plain = evaluate(lambda tokens, positions, _: model(tokens)[:, positions], batch)
    for name in ("ablated", "random", "same_norm"):
        for value, hooked, whole in zip(found[name][0], plain, found["intact"][0], strict=True):
            np.testing.assert_array_equal(value, whole)  # the very same computation
            np.testing.assert_allclose(value, hooked, rtol=1e-5, atol=1e-6)  # another order of sums
    full = scored(model, batch, planes)
    assert np.abs(full["ablated"][0].loss - plain.loss).max() > 1e-3


@pytest.mark.parametrize("chunk", [7, 128])
def test_scores_from_the_first_changed_token_on_are_those_of_full_passes(model, batch, monkeypatch, chunk):
    planes = draw_planes([0, 2], [[5, 6]] * N_EXAMPLES)
    settings = {"n_trials": 3, "pool": {0: torch.eye(D_MODEL), 2: torch.eye(D_MODEL)}, "chunk": chunk}
    found = scored(model, batch, planes, first=5, **settings)
    monkeypatch.setattr(streams, "is_fast", lambda _: False)
    wanted = scored(model, batch, planes, **settings)
    assert found.keys() == wanted.keys()
    for name, trials in wanted.items():
        for mine, theirs in zip(found[name], trials, strict=True):
            for value, want in zip(mine, theirs, strict=True):
                np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6)
    assert np.abs(found["ablated"][0].loss - found["intact"][0].loss).max() > 1e-3


def test_a_change_before_the_first_token_is_refused(model, batch):
    with pytest.raises(QflError, match="must leave the tokens before position"):
        scored(model, batch, draw_planes([1], [[2]] * N_EXAMPLES), first=EQUALS)


def test_trials_follow_the_generator_and_nothing_else(model, batch):
    planes = draw_planes([1], [[5]] * N_EXAMPLES)

    def losses(seed, control="random", **settings):
        found = scored(model, batch, planes, seed=seed, **settings)
        return np.stack([trial.loss for trial in found[control]])

    first, other = losses(0, n_trials=3), losses(1, n_trials=3)
    assert not np.isclose(first, other).all(axis=1).any()
    assert not np.array_equal(first[0], first[1])
    pool = {1: torch.eye(D_MODEL)}
    assert np.array_equal(losses(0, n_trials=2, pool=pool), first[:2]), "another control, fewer trials"
    # Another batch shape may round otherwise.
    np.testing.assert_allclose(losses(0, n_trials=3, chunk=7), first, rtol=1e-5)
    noisy = [losses(0, "same_norm", n_trials=3, chunk=chunk) for chunk in (7, 256)]
    np.testing.assert_allclose(*noisy, rtol=1e-5)
    assert not np.isclose(noisy[0], first).all(axis=1).any()


# The shared prefix


def double(x):
    return 2 * x


@pytest.mark.parametrize(
    "sites",
    [[Site(0)], [Site(2)], [Site(1), Site(1, "z"), Site(2)], [Site(1, "mlp_post")], [Site(1, "resid_pre"), Site(2)]],
    ids=str,
)
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_scores_from_a_prefix_are_those_of_full_passes(model, batch, sites, layer):
    """Interventions before the prefix make a full pass; all others start there."""
    made = [Intervention(site, double) for site in sites] + [Intervention(sites[0], torch.tanh)]
    prefix = shared_prefix(model, batch.tokens, layer, chunk=7)
    assert prefix is not None
    found = score_interventions(model, batch, lambda _: made, chunk=7, prefix=prefix)
    want = score_interventions(model, batch, lambda _: made, chunk=7)
    for mine, theirs in zip(found, want, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    assert np.abs(want.loss - score_interventions(model, batch).loss).max() > 1e-3


def test_a_hook_outside_the_blocks_makes_a_full_pass(model, batch):
    made = [Intervention(Site(None, "hook_embed"), double), Intervention(Site(2), double)]
    found = score_interventions(model, batch, lambda _: made, prefix=shared_prefix(model, batch.tokens, 2))
    np.testing.assert_array_equal(found.loss, score_interventions(model, batch, lambda _: made).loss)


def test_blocks_before_the_first_change_run_once(model, batch):
    ran = []
    handles = [
        block.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
        for layer, block in enumerate(model.blocks)
    ]
    try:
        noise = {"noise": lambda rng: lambda _: [Intervention(Site(1), lambda x: x + rng.standard_normal())]}
        score_ablation(
            model, batch, lambda _: [zero(Site(1))], noise, n_trials=5, rng=np.random.default_rng(0), chunk=20
        )
    finally:
        for handle in handles:
            handle.remove()
    # With hooks attached the intact model takes a full pass too.
    assert [ran.count(layer) for layer in range(N_LAYERS)] == [2, 2, 7]
    assert shared_prefix(model, batch.tokens, 0) is None


# Heads and neurons


def by_plain_hooks(model, batch, name, layer, unit, method, positions):
    """Scores with one unit replaced, by loops over examples and places."""
    hook_name = f"blocks.{layer}." + {"z": "attn.hook_z", "mlp_post": "mlp.hook_post"}[name]
    _, cache = model.run_with_cache(batch.tokens)
    clean = cache[hook_name].detach()[:, :, unit]
    values = []
    for column in zip(*positions, strict=True):
        seen = torch.stack([clean[e, place] for e, place in enumerate(column) if place != NO_POSITION])
        values.append(torch.zeros_like(seen[0]) if method == "zero" else seen.mean(0))

    def change(x, hook):
        x = x.clone()
        for example, places in enumerate(positions):
            for value, place in zip(values, places, strict=True):
                if place != NO_POSITION:
                    x[example, place, unit] = value
        return x

    def forward(tokens, span, rows):
        return model.run_with_hooks(tokens, fwd_hooks=[(hook_name, change)])[:, span]

    return evaluate(forward, batch)


@pytest.mark.parametrize("name", ["z", "mlp_post"])
@pytest.mark.parametrize("method", ["zero", "mean"])
@pytest.mark.parametrize("aligned", [False, True], ids=["everywhere", "aligned"])
def test_units_against_plain_hooks(small, name, method, aligned):
    """The batch has 20 examples: chunks smaller than it, of two units and some rows, and of all units."""
    model, batch = small
    positions = torch.tensor([[4, 8], [6, NO_POSITION], [5, 7], [NO_POSITION, 3]]).repeat(5, 1) if aligned else None
    units = [2, 0] if name == "z" else [11, 3, 5]
    every = torch.arange(N_CTX).repeat(N_EXAMPLES, 1) if positions is None else positions
    want = [
        [by_plain_hooks(model, batch, name, layer, unit, method, every.tolist()) for unit in units] for layer in (1, 0)
    ]
    for chunk in (7, 50, 256):
        found = score_units(
            model, batch, name=name, method=method, layers=[1, 0], units=units, positions=positions, chunk=chunk
        )
        assert found.layers == (1, 0)
        assert found.units == tuple(units)
        for key in ("loss", "loss_answer", "exact", "exact_answer"):
            wanted = np.array([[getattr(scores, key) for scores in row] for row in want])
            np.testing.assert_allclose(getattr(found, key), wanted, rtol=1e-4, err_msg=f"{key}, {chunk}")
        assert np.abs(found.loss - found.intact.loss).max() > 1e-3


@pytest.fixture(scope="module")
def small():
    """A smaller model with several heads, and what it has continued."""
    model = build_hooked(ModelConfig(d_model=16, n_layers=2, n_heads=4), d_vocab=5, n_ctx=N_CTX, seed=1)
    prompts = torch.randint(0, 5, (N_EXAMPLES, EQUALS + 1), generator=torch.Generator().manual_seed(1))
    tokens = generate_greedy(model, prompts, n_new=N_CTX - EQUALS - 1)
    return model, Batch(tokens, (torch.arange(N_CTX) >= EQUALS).repeat(N_EXAMPLES, 1))


def test_resampled_units_take_other_examples_values(small):
    model, batch = small
    same = Batch(batch.tokens[:1].repeat(6, 1), batch.loss_mask[:6])
    settings = {"name": "z", "method": "resample"}
    found = score_units(model, same, rng=np.random.default_rng(0), **settings)
    # Donors with the same tokens change nothing.
    np.testing.assert_allclose(found.loss, np.broadcast_to(found.intact.loss, found.loss.shape), rtol=1e-5)
    first, again, other = (
        score_units(model, batch, rng=np.random.default_rng(seed), **settings).loss for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.isclose(first, other).all()
    pair = Batch(batch.tokens[:2], batch.loss_mask[:2])
    swapped = score_units(model, pair, rng=np.random.default_rng(0), **settings)
    _, cache = model.run_with_cache(pair.tokens)

    def swap(z, hook):
        z = z.clone()
        z[:, :, 3] = cache["z", 1][[1, 0], :, 3]
        return z

    def forward(tokens, span, rows):
        return model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.attn.hook_z", swap)])[:, span]

    np.testing.assert_allclose(swapped.loss[1, 3], evaluate(forward, pair).loss, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "resample"}, "rng must be given"),
        ({"units": [4]}, r"must lie in \[0, 4\), got"),
        ({"layers": []}, "at least one block"),
    ],
    ids=lambda v: "" if isinstance(v, str) else str(v),
)
def test_units_that_cannot_be_are_refused(small, settings, words):
    with pytest.raises(ValueError, match=words):
        score_units(*small, **settings)
