"""Settings: the conformance vectors, gradients, filters, conversions, and what is refused when."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from jmerge.recipe.settings import UNDEFINED, Kind, Setting, convert, gradient, parse_setting
from jmerge.recipe.yamltree import parse_yaml

VECTOR_COUNT = 48

TENSOR = "model.layers.0.mlp.up_proj.weight"


def setting(text: str) -> Setting:
    """The setting that a recipe with this YAML value has."""
    return parse_setting(parse_yaml(f"key: {text}", "x.yml").value["key"])


# Conformance


def outcome(case: dict[str, Any]) -> Any:
    """What a conformance case gives here, in the words of the file."""
    try:
        parsed = setting(case["setting_yaml"])
    except ValueError:
        return "error: rejected when the recipe is read"
    try:
        found = parsed.resolve(case["type"], case["t"], case["name"])
    except ValueError:
        return "error: rejected when the value is resolved (ValidationError)"
    return "undefined" if found is UNDEFINED else found


@pytest.mark.parametrize("number", range(VECTOR_COUNT))
def test_conformance(conformance: Path, number: int) -> None:
    """Every case of MergeKit gives its value and type, or is refused at the same stage."""
    cases = json.loads((conformance / "methods_f32.json").read_text())["parameter_cases"]
    assert len(cases) == VECTOR_COUNT
    case = cases[number]
    found, wanted = outcome(case), case["result"]
    assert type(found) is type(wanted), case
    if isinstance(wanted, float):
        assert math.isclose(found, wanted, rel_tol=1e-15, abs_tol=0), case
    else:
        assert found == wanted, case


# Gradients


@pytest.mark.parametrize("values", [(0.7,), (0.0, 1.0), (0, 0.5, 0.3, 0.7, 1), (3, 1, 2)])
@pytest.mark.parametrize("layers", [1, 2, 5, 9, 32])
def test_gradient_agrees_with_fractions(values: tuple[float, ...], layers: int) -> None:
    """A list is spread evenly over the layers and is straight between its entries."""
    for layer in range(layers):
        t = layer / (layers - 1) if layers > 1 else 1.0
        position = Fraction(t) * (len(values) - 1)
        left = math.floor(position)
        right = min(left + 1, len(values) - 1)
        share = position - left
        wanted = (1 - share) * Fraction(values[left]) + share * Fraction(values[right])
        assert gradient(values, "float", t) == pytest.approx(float(wanted), rel=1e-14, abs=1e-15)


@pytest.mark.parametrize("values", [(0.1, 0.2), (0.1, 0.2, 0.3), (0.3, 0.1, 0.7, 0.9)])
def test_gradient_ends_are_exact(values: tuple[float, ...]) -> None:
    """The first and last layer get the first and last entry to the bit."""
    assert gradient(values, "float", 0.0) == values[0]
    assert gradient(values, "float", 1.0) == values[-1]


SWITCHES = [
    # list, t, value: entry trunc(t (k - 1)), so that the last entry is for the last layer alone
    ("[on, off]", 0.0, True),
    ("[on, off]", 0.999, True),
    ("[on, off]", 1.0, False),
    ('["yes", 0, "f"]', 0.25, True),
    ('["yes", 0, "f"]', 0.75, False),
    ("[false]", 0.5, False),
]


@pytest.mark.parametrize(("text", "t", "wanted"), SWITCHES)
def test_gradient_of_switches(text: str, t: float, wanted: bool) -> None:
    """Switches do not interpolate."""
    assert setting(text).resolve("bool", t, TENSOR) is wanted


def test_gradient_of_whole_numbers() -> None:
    """Whole numbers interpolate, and what is between them is refused."""
    values = setting("[1, '3', 5.0]")
    found = [values.resolve("int", t, TENSOR) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert found == [1, 2, 3, 4, 5]
    assert {type(item) for item in found} == {int}
    with pytest.raises(ValueError, match=r"^expected a whole number, found 1\.5$"):
        values.resolve("int", 0.125, TENSOR)


# Filters

Q = "model.layers.1.self_attn.q_proj.weight"
UP = "model.layers.11.mlp.up_proj.weight"
NORM = "model.layers.1.input_layernorm.weight"
HEAD = "lm_head.weight"

FILTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "first_match_wins": (
        "[{filter: self_attn, value: 1}, {filter: q_proj, value: 2}, {value: 3}]",
        {Q: 1, UP: 3, NORM: 3, HEAD: 3},
    ),
    "a_later_case_is_never_reached": (
        "[{value: 1}, {filter: self_attn, value: 2}]",
        {Q: 1, UP: 1, NORM: 1, HEAD: 1},
    ),
    "star_alone_means_all": ('[{filter: mlp, value: 1}, {filter: "*", value: 2}]', {Q: 2, UP: 1}),
    "star_inside_is_a_star": ('[{filter: "self_*", value: 1}]', {Q: None, UP: None}),
    "no_regular_expression": ('[{filter: "q_proj|up_proj", value: 1}]', {Q: None, UP: None}),
    "part_of_a_number": ("[{filter: layers.1, value: 1}]", {Q: 1, UP: 1, NORM: 1, HEAD: None}),
    "whole_number": ("[{filter: layers.1., value: 1}]", {Q: 1, UP: None, NORM: 1}),
    "number_as_filter": ("[{filter: 11, value: 1}]", {Q: None, UP: 1}),
    "case_matters": ("[{filter: Self_Attn, value: 1}]", {Q: None}),
    "empty_filter_means_all": ('[{filter: "", value: 1}]', {Q: 1, HEAD: 1}),
    "null_filter_means_all": ("[{filter: ~, value: 1}]", {Q: 1, HEAD: 1}),
    "lone_map": ("{filter: self_attn, value: 1}", {Q: 1, UP: None}),
    "empty_value_ends_the_search": ("[{filter: mlp, value: []}, {value: 1}]", {UP: None, Q: 1}),
    "gradient_inside": ("[{filter: mlp, value: [0, 2, 8]}, {value: 1}]", {UP: 5, Q: 1}),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters(name: str) -> None:
    """The first case whose filter fits decides; None in the table means undefined. At t = 0.75."""
    text, table = FILTERS[name]
    parsed = setting(text)
    for tensor, wanted in table.items():
        found = parsed.resolve("float", 0.75, tensor)
        assert (found is UNDEFINED) if wanted is None else (found == wanted), tensor


# Conversions

CONVERSIONS: list[tuple[Any, Kind, Any]] = [
    (0.25, "float", 0.25),
    (3, "float", 3.0),
    (-1, "float", -1.0),
    (False, "float", 0.0),
    ("0.5", "float", 0.5),
    ("1e-4", "float", 1e-4),
    ("-2", "float", -2.0),
    (3, "int", 3),
    ("3.0", "int", 3),
    (-4.0, "int", -4),
    (True, "bool", True),
    (1.0, "bool", True),
    (0, "bool", False),
    *((word, "bool", True) for word in ("true", "True", "YES", "on", "t", "y", "1")),
    *((word, "bool", False) for word in ("false", "False", "NO", "off", "f", "n", "0")),
]


@pytest.mark.parametrize(("value", "kind", "wanted"), CONVERSIONS)
def test_convert(value: Any, kind: Kind, wanted: Any) -> None:
    """A scalar becomes what the method declares, with its type."""
    found = convert(value, kind)
    assert (type(found), found) == (type(wanted), wanted)


WRONG: list[tuple[Any, Kind, str]] = [
    ("abc", "float", "expected a number, found 'abc'"),
    ("", "float", "expected a number, found ''"),
    ("0,5", "float", "expected a number, found '0,5'"),
    (math.inf, "float", "expected a finite number, found inf"),
    (-math.inf, "float", "expected a finite number, found -inf"),
    (math.nan, "float", "expected a finite number, found nan"),
    ("nan", "float", "expected a finite number, found 'nan'"),
    (2.5, "int", "expected a whole number, found 2.5"),
    (math.inf, "int", "expected a finite number, found inf"),
    (0.5, "bool", "expected true or false, found 0.5"),
    (2, "bool", "expected true or false, found 2"),
    (-1, "bool", "expected true or false, found -1"),
    ("maybe", "bool", "expected true or false, found 'maybe'"),
    (math.nan, "bool", "expected true or false, found nan"),
]


@pytest.mark.parametrize(("value", "kind", "message"), WRONG)
def test_convert_refuses(value: Any, kind: Kind, message: str) -> None:
    """What is not of the kind is refused with the value in the words."""
    with pytest.raises(ValueError) as caught:
        convert(value, kind)
    assert str(caught.value) == message


def test_number_beyond_float_is_refused() -> None:
    """A whole number too large for a float is a problem like any other, not an OverflowError."""
    with pytest.raises(ValueError, match="^expected a finite number, found 1000"):
        convert(10**400, "float")


# What is refused as soon as it is read

UNREADABLE = {
    "null": "expected a number, found nothing (null)",
    "[0.5, null]": "expected a number, found nothing (null)",
    "[[0.1], [0.2]]": "expected a number, found [0.1]",
    "[{filter: mlp, value: 0.3}, 0.7]": (
        "a list of {value, filter} maps cannot also hold plain numbers"
    ),
    "{filter: mlp}": "a conditional value needs the key 'value'",
    "{filter: mlp, value: null}": "expected a number, found nothing (null)",
    "{filter: mlp, valu: 0.3}": (
        "'valu' is not a key of a conditional value; did you mean 'value'?"
    ),
    "{filters: mlp, value: 0.3}": (
        "'filters' is not a key of a conditional value; did you mean 'filter'?"
    ),
    "{value: 1, when: 2}": "'when' is not a key of a conditional value; known: value, filter",
    "{value: {value: 1}}": "expected a number, found {'value': 1}",
    "[{value: [{value: 1}]}]": "expected a number, found {'value': 1}",
    "{filter: [mlp], value: 1}": "filter: expected a part of a tensor's name, found ['mlp']",
    "{filter: yes, value: 1}": "filter: expected a part of a tensor's name, found True",
}


@pytest.mark.parametrize("text", UNREADABLE)
def test_refused_when_read(text: str) -> None:
    """A value that no parameter could have is refused by its shape alone."""
    with pytest.raises(ValueError) as caught:
        setting(text)
    assert str(caught.value) == UNREADABLE[text]


def test_scalars_lists_everything() -> None:
    """`scalars` gives every number, switch and word, whatever the filters."""
    parsed = setting('[{filter: a, value: [1, 2.5]}, {filter: b, value: "x"}, {value: off}]')
    assert parsed.scalars() == [1, 2.5, "x", False]


def test_a_setting_is_itself() -> None:
    """Reading a setting again changes nothing, and equal settings are equal."""
    parsed = setting("[{filter: a, value: [1, 2]}, {value: 3}]")
    assert parse_setting(parsed) is parsed
    assert parsed == setting("[{value: [1, 2], filter: a}, {value: 3}]")
    assert hash(parsed) == hash(setting("[{filter: a, value: [1, 2]}, {value: 3}]"))


@pytest.mark.parametrize("value", [1e39, -1e39, 1e-50, "3.5e38"])
def test_number_beyond_float32_is_refused(value: float | str) -> None:
    """Methods would take it for infinity or zero."""
    with pytest.raises(ValueError, match="that float32 can hold"):
        convert(value, "float")
    assert convert(0, "float") == 0 and convert(-3e38, "float") == -3e38
