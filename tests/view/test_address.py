"""Addresses of the viewer: each brings back what it was made of, and a bad one hurts nobody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qfl_interp.analyses.view.address import Address, read_address

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
NAMES = st.lists(TEXT, max_size=3, unique=True).map(tuple)


@given(
    st.fixed_dictionaries(
        dict(
            runs=NAMES,
            view=TEXT | st.just(""),
            step=st.none() | st.integers(0, 10**15 - 1),
            feature=TEXT | st.just(""),
            choices=st.dictionaries(TEXT, TEXT | st.just(""), max_size=3),
            search=TEXT | st.just(""),
            states=NAMES,
        )
    )
)
def test_an_address_brings_back_what_it_was_made_of(values):
    address = Address(**values)
    text = address.text()
    assert read_address(text) == address
    assert text == "" or text.startswith("?")
    assert not set(text) & set(" <>\"'\n")


def test_the_start_page_has_no_address():
    assert Address().text() == ""
    assert read_address("") == read_address(None) == read_address("?") == Address()


def test_what_nobody_wrote_is_passed_over():
    assert read_address("?step=-3&run=a&run=a&nonsense=1&x") == Address(("a",))
    assert read_address("?step=1e3").step is None
    assert read_address("?step=" + "9" * 5_000).step is None
    assert read_address("?step=٣").step is None
    assert read_address("?step=007").step == 7


def test_another_view_has_its_own_choices():
    shown = Address(("a",), view="patch", choices={"metric": "x"})
    assert shown.changed(step=3).choices == {"metric": "x"}
    assert shown.changed(view="patch").choices == {"metric": "x"}
    assert shown.changed(view="probe").choices == {}
