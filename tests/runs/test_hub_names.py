"""The names of published revisions, and what they say."""

from __future__ import annotations

import pytest

from qfl_interp.runs.hub.names import TITLE, Named, Tokens, read_name, read_tokens, tokens_at, tokens_per_step

B = 10**9


@pytest.mark.parametrize(
    ("name", "step", "tokens", "series"),
    [
        ("step143000", 143_000, None, ""),
        ("step556000-tokens2460B", 556_000, 2460 * B, ""),
        ("stage1-step150-tokens1B", 150, B, "stage1"),
        ("stage2-ingredient1-step11931-tokens50B", 11_931, 50 * B, "stage2-ingredient1"),
        ("stage3-step11921", 11_921, None, "stage3"),
        ("step-40000", 40_000, None, ""),
        ("lc-4k-to-32k-step-4000", 4_000, None, "lc-4k-to-32k"),
        ("step-001000-2BT", 1_000, 2 * B, ""),
        ("step1250-seed-small-aux-2", 1_250, None, "seed-small-aux-2"),
        ("global_step500", 500, None, ""),
        ("checkpoint-500", 500, None, ""),
    ],
)
def test_published_names(name, step, tokens, series):
    found = read_name(name)
    assert (found.step, found.tokens and found.tokens.count, found.series) == (step, tokens, series)


@pytest.mark.parametrize("name", ["main", "it-SFT", "soup", "refs/convert/parquet", "step", "v1.0", "footstep3x"])
def test_names_without_a_step(name):
    assert read_name(name) is None


def test_titles_of_commits():
    assert read_name("Saving HF Model -- Step 1000", TITLE) == Named(1000, None, "")
    assert read_name("Training in progress, step 500", TITLE) == Named(500, None, "")
    assert read_name("Saving Fabric Checkpoint -- Step 1000", TITLE) is None
    assert read_name("Training in progress, epoch 1", TITLE) is None


def test_a_pattern_of_ones_own():
    found = read_name("big/0100/3.5M/b", r"(?P<size>\w+)/(?P<step>\d+)/(?P<tokens>[\d.]+M)/(?P<seed>\w)")
    assert found == Named(100, Tokens(3_500_000, 100_000), "big-b")
    with pytest.raises(ValueError, match="must have a group named step, got "):
        read_name("x", r".d.")
    with pytest.raises(ValueError, match=r"group step must match digits, got 'x1' in 'ax1'"):
        read_name("ax1", r"a(?P<step>.*)")
    with pytest.raises(ValueError, match=r"tokens must be a number like 4B, .* got 'many'"):
        read_name("1-many", r"(?P<step>\d+)-(?P<tokens>\w+)")


def test_tokens():
    assert read_tokens("4B") == read_tokens("4BT") == (4 * B, B)
    assert read_tokens("2.5T") == (2_500 * B, 100 * B)
    assert read_tokens("2097152") == (2_097_152, 1)
    for text in ("", "B", "1.5", "-4B", "4BB"):
        with pytest.raises(ValueError, match="tokens must be"):
            read_tokens(text)


def rounded(rate: float, steps: list[int]) -> list[Named]:
    return [read_name(f"step{step}-tokens{round(rate * step / B)}B") for step in steps]


def test_tokens_of_a_step():
    # OLMo 2 1B: 2,097,152 tokens a step; at step 1000 its name says 2B, at 150 nothing or a billion.
    assert tokens_per_step(rounded(2_097_152, [0, 150, 1_000, 30_000, 1_907_359])) == 2_100_000
    up = [read_name("stage1-step150-tokens1B"), *rounded(2_097_152, [30_000, 1_907_359])]
    assert tokens_per_step(up) == 2_100_000
    # Batches that grew, names without tokens, and a beginning whose rounding says nothing.
    grown = ((1_000, 2), (10_000, 21), (20_000, 90))
    assert tokens_per_step([read_name(f"step{step}-tokens{billions}B") for step, billions in grown]) is None
    assert tokens_per_step([read_name("step100"), *rounded(2_097_152, [100_000])]) is None
    assert tokens_per_step(rounded(2_097_152, [1_000, 5_000])) is None
    assert tokens_per_step([]) is None


def test_tokens_step_by_step():
    """A batch that grew; not where a name says none, or where rounding makes two steps one."""
    grown = [read_name(f"step{step}-tokens{billions}B") for step, billions in ((3000, 20), (0, 0), (1000, 2))]
    assert tokens_at(grown) == {0: 0, 1000: 2 * 10**9, 3000: 20 * 10**9}
    assert tokens_at([*grown, read_name("step4000")]) is None
    assert tokens_at([*grown, read_name("step1100-tokens2B")]) is None
    assert tokens_at([read_name("step0")]) is None
