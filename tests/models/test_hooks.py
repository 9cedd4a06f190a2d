"""Sites, interventions, patching, and projecting directions out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import qfl_interp as qfl
from qfl_interp.config import ModelConfig
from qfl_interp.errors import QflError
from qfl_interp.interventions.planes import affine_projection, project_out
from qfl_interp.interventions.replace import zero
from qfl_interp.models.build import build_hooked
from qfl_interp.models.fast_forward import fast_logits
from qfl_interp.models.hooks import (
    Intervention,
    Site,
    hook_point,
    interventions_on,
    read_activations,
    write_activation,
)
from qfl_interp.models.metrics import masked_loss, scored_span, targets
from qfl_interp.sites import HEAD_SITES, PROBE_SITES, SITES, STREAM_SITES
from tests.helpers_golden import golden_forward, hooked_from_golden

D_MODEL, N_POS, N_LAYERS = 16, 9, 2


@pytest.fixture(scope="module")
def model():
    """Random weights in float64: identities hold to 1e-12."""
    config = ModelConfig(d_model=D_MODEL, n_layers=N_LAYERS)
    return build_hooked(config, d_vocab=7, n_ctx=N_POS, seed=1).to(torch.float64, print_details=False)


def draw_tokens(seed, n=3):
    return torch.randint(0, 7, (n, N_POS), generator=torch.Generator().manual_seed(seed))


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attached(model):
    """How many hooks hang on any module of the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# Sites


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        (Site(0), "blocks.0.hook_resid_post"),
        (Site(1, "z"), "blocks.1.attn.hook_z"),
        (Site(2, "mlp_pre"), "blocks.2.mlp.hook_pre"),
        (Site(None, "ln_final.hook_normalized"), "ln_final.hook_normalized"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_hook_name(site, expected):
    assert site.hook_name == expected


@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_the_table_of_sites_is_what_a_hooked_transformer_has(style):
    """Every name is a hook point that fires, with the axes that the table says; no two sizes are equal."""
    config = ModelConfig(d_model=24, n_layers=2, n_heads=2, style=style, d_mlp=10)
    model, tokens = build_hooked(config, d_vocab=7, n_ctx=N_POS, seed=1), draw_tokens(0)
    _, cache = model.run_with_cache(tokens)
    sizes = {"pos": N_POS, "query": N_POS, "key": N_POS, "head": 2, "d_model": 24, "d_head": 12, "d_mlp": 10}
    found = read_activations(model, tokens, [Site(1, name) for name in SITES])
    for site, activation in found.items():
        torch.testing.assert_close(activation, cache[site.hook_name], rtol=0, atol=0)
        assert activation.shape == (3, *(sizes[axis] for axis in SITES[site.name].axes)), site


def test_what_follows_from_the_table_of_sites():
    assert PROBE_SITES == (
        "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "mlp_pre", "mlp_post",
    )  # fmt: skip
    assert HEAD_SITES == ("q", "k", "v", "z")
    assert STREAM_SITES == ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    assert SITES["z"].shape == "[batch, pos, head, d_head]"
    for name, kind in SITES.items():
        assert Site(0, name).kind is Site(None, f"blocks.3.{kind.hook}").kind is kind
    assert Site(None, "ln_final.hook_normalized").kind is None


def test_a_site_by_its_full_name_has_heads_too(model):
    full, short = Site(None, "blocks.1.attn.hook_z"), Site(1, "z")
    x = draw(3, N_POS, 4, 4)
    assert torch.equal(zero(full, units=[2]).fn(x), zero(short, units=[2]).fn(x))
    with pytest.raises(ValueError, match=r"must hold an entry a token, got 'blocks.0.attn.hook_pattern'"):
        zero(Site(None, "blocks.0.attn.hook_pattern"))


def test_bad_sites_are_refused():
    with pytest.raises(ValueError, match="Did you mean 'resid_post'"):
        Site(0, "resid_pst")
    with pytest.raises(ValueError, match="got -1"):
        Site(-1)
    # The second axis of these is the head: positions would select heads.
    Site(0, "pattern")
    for site in ((0, "pattern"), (0, "attn_scores"), (None, "blocks.0.attn.hook_pattern")):
        with pytest.raises(ValueError, match=r"positions must be None at .*head, query, key"):
            Site(*site, positions=(1,))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site(None, "hook_embd"), r"no hook point 'hook_embd'. Did you mean .hook_embed"),
        (
            Site(N_LAYERS),
            r"no hook point 'blocks.2.hook_resid_post'. Did you mean .*has 2 layers, counted from 0",
        ),
        (Site(None, "blocks.0.attn.hook_result"), "does not fire while cfg.use_attn_result is False"),
        (Site(None, "blocks.1.hook_mlp_in"), "does not fire while cfg.use_hook_mlp_in is False"),
    ],
    ids=["typo", "layer", "gated", "gated-mlp"],
)
def test_hook_points_that_cannot_fire_are_refused(model, site, message):
    with pytest.raises(QflError, match=message):
        read_activations(model, draw_tokens(0), [site])
    assert attached(model) == 0


def test_a_gated_hook_point_works_once_its_flag_is_on(model):
    site = Site(None, "blocks.0.attn.hook_result")
    model.set_use_attn_result(True)
    try:
        found = read_activations(model, draw_tokens(0), [site, Site(0, "attn_out")])
    finally:
        model.set_use_attn_result(False)
    torch.testing.assert_close(found[site].sum(2), found[Site(0, "attn_out")], rtol=1e-12, atol=1e-12)


# Interventions


def test_interventions_compose_in_the_order_of_the_list(model):
    add = Intervention(Site(0), lambda x: x + 3, "add")
    double = Intervention(Site(0), lambda x: 2 * x, "double")
    tokens = draw_tokens(0)
    x = read_activations(model, tokens, [Site(0)])[Site(0)]
    for order, expected in (([add, double], 2 * (x + 3)), ([double, add], 2 * x + 3)):
        with interventions_on(model, order):
            found = read_activations(model, tokens, [Site(0)])[Site(0)]
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_interventions_are_removed_whatever_happens(model):
    tokens = draw_tokens(0)
    clean = model(tokens)

    def boom(_x):
        raise RuntimeError("in the hook")

    with interventions_on(model, [Intervention(Site(1), lambda x: 0 * x)]):
        changed = model(tokens)
        assert attached(model) > 0
    assert not torch.equal(changed, clean)
    assert attached(model) == 0
    with (
        pytest.raises(KeyError, match="body"),
        interventions_on(model, [Intervention(Site(1), lambda x: 0 * x)]),
    ):
        raise KeyError("body")
    assert attached(model) == 0
    with (
        pytest.raises(RuntimeError, match="in the hook"),
        interventions_on(model, [Intervention(Site(0), boom)]),
    ):
        model(tokens)
    assert attached(model) == 0
    assert torch.equal(model(tokens), clean)


def test_hooks_of_others_stay(model):
    """Interventions inside one another, and a hook added by hand, each come off with what put them on."""
    tokens, point = draw_tokens(0), hook_point(model, "blocks.0.hook_resid_post")
    clean, seen = model(tokens), []
    point.add_hook(lambda x, hook: seen.append(x.mean().item()))
    try:
        with interventions_on(model, [Intervention(Site(0), lambda x: 0 * x, "outer")]):
            with interventions_on(model, [Intervention(Site(0), lambda x: x + 1, "inner")]):
                inside = read_activations(model, tokens, [Site(0)])[Site(0)]
                assert len(point.fwd_hooks) == 3
            assert float(read_activations(model, tokens, [Site(0)])[Site(0)].abs().max()) == 0
        assert len(point.fwd_hooks) == attached(model) == 1
        assert torch.equal(inside, torch.ones_like(inside))
        assert torch.equal(model(tokens), clean)
        assert len(seen) == 3
    finally:
        point.remove_hooks()
    assert attached(model) == 0


def test_an_intervention_that_never_fires_is_an_error(model):
    late = Intervention(Site(1), lambda x: x, "late")
    with pytest.raises(QflError, match=r"never fired: <late at blocks.1.hook_resid_post>"):
        with interventions_on(model, [Intervention(Site(0, "resid_pre"), lambda x: x, "early"), late]):
            model(draw_tokens(0), stop_at_layer=1)
    assert attached(model) == 0
    with interventions_on(model, [late]):
        pass  # the model did not run: nothing was missed


def test_a_change_of_shape_is_an_error(model):
    with pytest.raises(ValueError, match=r"<crop at .*shape \(3, 9, 16\), got \(3, 8, 16\)"):
        with interventions_on(model, [Intervention(Site(0), lambda x: x[:, 1:], "crop")]):
            model(draw_tokens(0))


def test_fast_logits_refuses_while_interventions_are_installed(model):
    tokens = draw_tokens(0)
    with interventions_on(model, [Intervention(Site(0), lambda x: x)]):
        model(tokens)
        with pytest.raises(QflError, match="hooks are attached"):
            fast_logits(model, tokens)
    torch.testing.assert_close(fast_logits(model, tokens), model(tokens), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z"])
@pytest.mark.parametrize("positions", [None, (5,), (7, 2, 3)], ids=str)
def test_reading_equals_the_cache(model, name, positions):
    tokens = draw_tokens(0)
    _, cache = model.run_with_cache(tokens)
    for layer in range(N_LAYERS):
        site = Site(layer, name, positions)
        whole = cache[site.hook_name]
        expected = whole if positions is None else whole[:, list(positions)]
        torch.testing.assert_close(read_activations(model, tokens, [site])[site], expected, rtol=0, atol=0)


# Writing


@pytest.mark.parametrize(
    ("name", "positions"),
    [("resid_pre", None), ("attn_out", (2, 4)), ("z", None), ("z", (7, 1)), ("pattern", None)],
    ids=str,
)
def test_patching_a_run_with_itself_changes_no_bit(model, name, positions):
    site, tokens = Site(1, name, positions), draw_tokens(0)
    own = read_activations(model, tokens, [site])[site]
    with interventions_on(model, [write_activation(site, own)]):
        patched = model(tokens)
    assert torch.equal(patched, model(tokens))


def test_patching_the_whole_stream_gives_the_other_run(model):
    site, clean, other = Site(0, "resid_pre"), draw_tokens(0), draw_tokens(1)
    source = read_activations(model, other, [site])[site]
    with interventions_on(model, [write_activation(site, source)]):
        patched = model(clean)
    assert torch.equal(patched, model(other))
    assert not torch.equal(patched, model(clean))


def test_patching_positions_changes_only_what_follows(model):
    site, clean, other = Site(0, "resid_post", (4, 6)), draw_tokens(0), draw_tokens(1)
    source = read_activations(model, other, [site])[site]
    with interventions_on(model, [write_activation(site, source)]):
        patched = model(clean)
        after = read_activations(model, clean, [Site(0)])[Site(0)]
    before = read_activations(model, clean, [Site(0)])[Site(0)]
    expected = before.clone()
    expected[:, 4], expected[:, 6] = source[:, 0], source[:, 1]
    assert torch.equal(after, expected)
    changed = (patched != model(clean)).any(dim=2).any(dim=0)
    assert changed.tolist() == [False] * 4 + [True] * 5


def test_the_old_names_work_for_a_release_and_say_the_new_ones(model):
    site, tokens = Site(0), draw_tokens(0)
    with pytest.warns(DeprecationWarning, match=r"qfl.capture is called qfl.read_activations now.*analyses.capture"):
        found = qfl.capture(model, tokens, [site], stop_at_layer=1)
    assert torch.equal(found[site], read_activations(model, tokens, [site])[site])
    with pytest.warns(DeprecationWarning, match=r"qfl.patch is called qfl.write_activation now.*analyses.patch"):
        change = qfl.patch(site, found[site])
    assert torch.equal(change.fn(torch.zeros_like(found[site])), found[site])


# Projecting out

# What the golden file calls a site.
GOLDEN_SITES = {
    "residual": "resid_post",
    "attn_residual": "resid_mid",
    "attention": "attn_out",
    "ffn": "mlp_out",
}
GOLDEN = [
    pytest.param(case, ablation, id=f"{case['config']['n_layers']}-layers-{ablation['site']}-{ablation['what'][:5]}")
    for case in golden_forward()
    for ablation in case["ablations"]
]


@pytest.mark.parametrize(("case", "ablation"), GOLDEN)
@pytest.mark.parametrize("how", ["positions", "beyond", "columns"])
def test_golden_ablations(case, ablation, how):
    """The reference sums over separately normalised rows, at consecutive positions."""
    golden = hooked_from_golden(case)
    tokens, mask = torch.tensor(case["ids"]), torch.tensor(case["loss_mask"]).bool()
    coef, intercept = torch.tensor(ablation["coef"]), torch.tensor(ablation["intercept"])
    where = ablation["first_token_index"] + torch.arange(len(coef))
    site = Site(ablation["block"], GOLDEN_SITES[ablation["site"]])
    settings = {"epsilon": float(ablation["epsilon"]), "joint": False}
    if how == "columns":  # a projection a label, each at its own fixed position
        changes = [
            project_out(Site(site.layer, site.name, (int(p),)), w, offsets=b, **settings)
            for p, w, b in zip(where, coef, intercept, strict=True)
        ]
    else:
        if how == "beyond":  # a label past the end of the sequence is not there
            coef, intercept = torch.cat([coef, coef[:1]]), torch.cat([intercept, intercept[:1]])
            where = torch.cat([where, torch.tensor([tokens.shape[1]])])
        changes = [project_out(site, coef, offsets=intercept, positions=where[None], **settings)]
    with torch.no_grad(), interventions_on(golden, changes):
        logits = golden(tokens)
    span = scored_span(mask)
    scored = logits[:, :-1][mask[:, 1:]]
    # The file has 7 digits of a float32 computation.
    torch.testing.assert_close(scored, torch.tensor(ablation["masked_logits"]), rtol=1e-4, atol=1e-4)
    loss = masked_loss(logits[:, span], targets(tokens, mask, span))
    assert loss.item() == pytest.approx(ablation["loss"], abs=1e-4)


@pytest.mark.parametrize("case", golden_forward(), ids=lambda case: f"{case['config']['n_layers']}-layers")
def test_golden_unit_rows(case):
    for ablation in case["ablations"]:
        coef, intercept = torch.tensor(ablation["coef"]), torch.tensor(ablation["intercept"])
        if coef.shape[1] > 1:
            continue  # an orthonormal basis is not the normalised rows
        unit, shift = affine_projection(coef, intercept)
        sign = torch.sign((unit * coef).sum(-1))  # a row and its offset may both change sign
        torch.testing.assert_close(
            (unit * sign[..., None]).float(), torch.tensor(ablation["unit_w"]), rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close((shift * sign).float(), torch.tensor(ablation["scaled_b"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3, D_MODEL])
def test_joint_projection_is_the_nearest_point_of_the_planes(k):
    x, w, b = draw(2, 5, D_MODEL), draw(k, D_MODEL, seed=1) * 7, draw(k, seed=2)
    step = project_out(Site(0), w, offsets=b)
    after = step.fn(x)
    torch.testing.assert_close(after @ w.mT + b, torch.zeros(2, 5, k, dtype=torch.float64), rtol=0, atol=1e-10)
    nearest = x.numpy() - (x @ w.mT + b).numpy() @ np.linalg.pinv(w.numpy()).T
    np.testing.assert_allclose(after.numpy(), nearest, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(step.fn(after), after, rtol=1e-9, atol=1e-10)


def test_rows_of_very_different_scale_are_not_dependent():
    w = draw(2, D_MODEL)
    w[1] *= 1e-11
    x, b = draw(1, 4, D_MODEL, seed=1), torch.tensor([0.5, 2e-12], dtype=torch.float64)
    after = project_out(Site(0), w, offsets=b).fn(x) @ w.mT + b
    assert after.abs().max(dim=1).values.max() < 1e-9
    assert (after[..., 1] / 1e-11).abs().max() < 1e-9


def test_one_row_is_the_same_either_way_and_several_are_not():
    x, w, b = draw(2, 5, D_MODEL), draw(3, D_MODEL, seed=1), draw(3, seed=2)
    for rows, same in (([1], True), ([0, 1, 2], False)):
        both = [project_out(Site(0), w[rows], offsets=b[rows], joint=joint).fn(x) for joint in (True, False)]
        assert torch.allclose(*both, rtol=1e-12, atol=1e-12) == same
    unit = w / w.norm(dim=1, keepdim=True)
    summed = x - sum((x @ u + c / r.norm())[..., None] * u for u, c, r in zip(unit, b, w, strict=True))
    torch.testing.assert_close(project_out(Site(0), w, offsets=b, joint=False).fn(x), summed, rtol=1e-12, atol=1e-12)


def test_strength_is_linear_and_zero_changes_nothing():
    x, w, b = draw(2, 5, D_MODEL), draw(3, D_MODEL, seed=1), draw(3, seed=2)
    none, half, full = (project_out(Site(0), w, offsets=b, epsilon=e).fn(x) for e in (0.0, 0.5, 1.0))
    assert torch.equal(none, x)
    torch.testing.assert_close(half, (x + full) / 2, rtol=1e-12, atol=1e-12)


def test_no_offsets_means_zero():
    x, w = draw(2, 5, D_MODEL), draw(2, D_MODEL, seed=1)
    zero = torch.zeros(2, dtype=torch.float64)
    assert torch.equal(project_out(Site(0), w).fn(x), project_out(Site(0), w, offsets=zero).fn(x))


@pytest.mark.parametrize("joint", [True, False])
def test_positions_by_example_against_a_loop(joint):
    x, w, b = draw(4, 6, D_MODEL), draw(3, 2, D_MODEL, seed=1), draw(3, 2, seed=2)
    positions = torch.tensor([[0, 3, 5], [2, -1, 1], [-1, -1, -1], [4, 2, 6]])  # 6 is past the end
    kept = x.clone()
    found = project_out(Site(0), w, offsets=b, positions=positions, joint=joint).fn(x)
    assert torch.equal(x, kept)  # not in place
    expected = x.clone()
    for example in range(4):
        for label in range(3):
            place = int(positions[example, label])
            if 0 <= place < 6:
                alone = project_out(Site(0), w[label], offsets=b[label], joint=joint)
                expected[example, place] = alone.fn(x[example : example + 1, place : place + 1])[0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found[2], x[2])


def test_positions_of_a_site_are_the_only_ones_changed():
    x, w = draw(2, 6, D_MODEL), draw(1, D_MODEL, seed=1)
    found = project_out(Site(0, positions=(1, 4)), w).fn(x)
    changed = (found != x).any(dim=2)
    assert changed.tolist() == [[False, True, False, False, True, False]] * 2
    assert torch.equal(found[:, [1, 4]], project_out(Site(0), w).fn(x)[:, [1, 4]])


def _bad_directions():
    w = draw(3, D_MODEL)
    zero, twice, nan, many = w.clone(), w.clone(), w.clone(), draw(D_MODEL + 1, D_MODEL)
    zero[1], twice[2], nan[0, 3] = 0, 2 * w[0] - w[1], torch.nan
    return {"zero": zero, "dependent": twice, "nan": nan, "more-than-d_model": many}


@pytest.mark.parametrize("directions", _bad_directions().values(), ids=_bad_directions())
@pytest.mark.parametrize("labels", [False, True], ids=["everywhere", "by-label"])
def test_unusable_directions_are_refused(directions, labels):
    if labels:
        # The first label's are good.
        good = draw(*directions.shape, seed=3) if len(directions) <= D_MODEL else directions
        directions, positions = torch.stack([good, directions]), torch.tensor([[0, 1]])
    else:
        positions = None
    with pytest.raises(ValueError, match="finite and linearly independent"):
        project_out(Site(0), directions, positions=positions)


@pytest.mark.parametrize("name", ["zero", "nan"])
def test_unusable_rows_are_refused_when_summed_too(name):
    with pytest.raises(ValueError, match="zero, dependent or non-finite"):
        project_out(Site(0), _bad_directions()[name], joint=False)


def test_arguments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"positions go with .*\(2, 1, 16\) and positions None"):
        project_out(Site(0), draw(2, 1, D_MODEL))
    with pytest.raises(ValueError, match=r"positions go with .*\(1, 16\) and positions \(1, 2\)"):
        project_out(Site(0), draw(1, D_MODEL), positions=torch.tensor([[0, 1]]))


def test_shapes_are_checked_without_the_type_checker():
    """Users run without it; a broadcast would then pass."""
    plain = project_out.__wrapped__
    with pytest.raises(ValueError, match=r"one number a direction, \(2,\), got \(1,\)"):
        plain(Site(0), draw(2, D_MODEL), offsets=draw(1))
    with pytest.raises(ValueError, match=r"a column for each of 3 labels, got \(1, 1\)"):
        plain(Site(0), draw(3, 1, D_MODEL), positions=torch.tensor([[4]]))


def test_two_labels_at_one_position_are_refused():
    """One of them would silently win."""
    w = draw(3, 1, D_MODEL)
    project_out(Site(0), w, positions=torch.tensor([[1, -1, -1], [1, 2, 0]]))
    with pytest.raises(ValueError, match="got 4 twice in example 1"):
        project_out(Site(0), w, positions=torch.tensor([[1, 2, 3], [4, 2, 4]]))


def test_an_intervention_must_fire_in_every_pass(model):
    late = Intervention(Site(1), lambda x: x, "late")

    def two_passes() -> None:
        with interventions_on(model, [late]):
            model(draw_tokens(0))
            model(draw_tokens(0), stop_at_layer=1)

    with pytest.raises(QflError, match=r"in a pass of it these interventions never fired: <late at blocks\.1"):
        two_passes()
    with interventions_on(model, [late]):
        model(draw_tokens(0))
        model(draw_tokens(0))


def test_what_would_do_nothing_is_refused():
    with pytest.raises(ValueError, match="positions must hold at least one token index"):
        Site(0, positions=())
    with pytest.raises(ValueError, match="directions must hold at least one row"):
        project_out(Site(0), torch.zeros(0, 4))
    for strength in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="epsilon must be a finite number"):
            project_out(Site(0), torch.eye(4)[:1], epsilon=strength)
        with pytest.raises(ValueError, match="epsilon must be a finite number"):
            zero(Site(0), epsilon=strength)
    with pytest.raises(ValueError, match="units must name at least one"):
        zero(Site(0, "z"), units=[])


@pytest.mark.parametrize(("positions", "shape"), [(None, (2, 1, 4)), ((0, 2), (2, 1, 4)), (None, (3, 5, 4))])
def test_an_activation_is_not_spread_over_what_it_is_not_of(positions, shape):
    with pytest.raises(ValueError, match=r"must have the shape \(2, . *"):
        write_activation(Site(0, positions=positions), torch.ones(shape)).fn(torch.zeros(2, 5, 4))
    whole = write_activation(Site(0), torch.ones(1, 5, 4)).fn(torch.zeros(2, 5, 4))
    assert torch.equal(whole, torch.ones(2, 5, 4))
