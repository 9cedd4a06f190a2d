"""Colours that stand side by side are told apart with every common kind of colour vision."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from plotly.colors import hex_to_rgb

from qfl_interp.plots import theme
from qfl_interp.plots.conditions import ABLATION, INTERCHANGE

# Machado, Oliveira and Fernandes 2009, full severity, on linear RGB.
VISION = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}
# CIE 1931 of linear sRGB, and the white of D65.
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = XYZ.sum(axis=1)
# In CIE Lab (1976) about 2.3 is just seen side by side; thin lines apart need several times that.
LEAST = 11.0


def lab(color: str, vision: str) -> np.ndarray:
    """Lightness, a and b of a colour as it is seen."""
    value = np.array(hex_to_rgb(color)) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    seen = XYZ @ np.clip(VISION[vision] @ linear, 0, 1) / WHITE
    f = np.where(seen > (6 / 29) ** 3, np.cbrt(seen), seen * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one: str, other: str, vision: str) -> float:
    return float(np.linalg.norm(lab(one, vision) - lab(other, vision)))


TOGETHER = {
    "thirds": {name: (style.color, style.symbol) for name, style in theme.THIRD_STYLES.items() if name != "all"},
    "series": {f"series {k}": look for k, look in enumerate(theme.SERIES)},
    "ablation": {name: (style.color, style.symbol, style.dash, style.pattern) for name, style in ABLATION.items()},
    "interchange": {name: (style.color, style.symbol, style.dash) for name, style in INTERCHANGE.items()},
}


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("group", TOGETHER)
def test_colours_of_one_figure_are_told_apart(group, vision):
    close = {
        pair: round(distance(looks[0][0], looks[1][0], vision), 1)
        for pair in itertools.combinations(TOGETHER[group], 2)
        if distance((looks := [TOGETHER[group][name] for name in pair])[0][0], looks[1][0], vision) < LEAST
    }
    assert close == {}


@pytest.mark.parametrize("group", TOGETHER)
def test_no_two_are_told_apart_by_colour_alone(group):
    marks = [look[1:] for look in TOGETHER[group].values()]
    assert len(set(marks)) == len(marks)


@pytest.mark.parametrize("vision", VISION)
def test_layers_are_told_apart_in_their_order(vision):
    light = [
        lab("#" + "".join(f"{int(v):02x}" for v in color[4:-1].split(",")), vision)[0]
        for color in theme.ordered_colors(6)
    ]
    assert np.diff(light).min() > 4


def test_lab_and_vision_are_those_of_the_sources():
    np.testing.assert_allclose(lab("#ff0000", "usual"), [53.24, 80.09, 67.20], atol=0.1)
    np.testing.assert_allclose(lab("#ffffff", "deuteranopia"), [100, 0, 0], atol=0.1)
    assert distance("#cc0000", "#7a6a00", "usual") > 60
    assert distance("#cc0000", "#7a6a00", "deuteranopia") < 25, "red and olive are one to the red-green blind"
