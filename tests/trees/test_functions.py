"""Every method is a typed function of trees: its signature is the declaration's, in Python and for type checkers."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmerge
from jmerge.methods import REGISTRY
from jmerge.methods.spec import Required
from jmerge.testing.close import assert_same_bytes
from jmerge.trees import functions
from jmerge.trees.merge import COMMON

STUB = Path(functions.__file__).with_suffix(".pyi")
OWN = sorted(n for n, m in REGISTRY.items() if m.function.__module__.startswith("jmerge."))
DECLARED = {
    node.name: node.args
    for node in ast.parse(STUB.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef)
}


def test_every_method_is_one() -> None:
    assert sorted(DECLARED) == OWN
    assert set(OWN) <= set(jmerge.__all__)
    assert set(COMMON) == {
        each.target.id  # type: ignore[union-attr]
        for node in ast.parse(STUB.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and node.name == "Common"
        for each in node.body
        if isinstance(each, ast.AnnAssign)
    }


@pytest.mark.parametrize("name", OWN)
def test_types_are_those_of_the_declaration(name: str) -> None:
    stub, method = DECLARED[name], REGISTRY[name]
    signature = inspect.signature(getattr(jmerge, name)).parameters
    own = [key for key in signature if key not in COMMON]
    assert [arg.arg for arg in (*stub.args, *stub.kwonlyargs)] == own
    assert stub.kwarg is not None and list(signature)[len(own) :] == list(COMMON)
    defaults = dict(zip([arg.arg for arg in stub.kwonlyargs], stub.kw_defaults, strict=True))
    for key, default in defaults.items():
        wanted = signature[key].default
        assert (default is None) == (wanted is inspect.Parameter.empty), key
        if default is not None:
            assert ast.literal_eval(default) == wanted
    for key, declared in method.settable.items():
        default = signature[method.keywords[key]].default
        if not isinstance(declared.default, Required):
            assert default == declared.default or (default, declared.default) == ("norm", True)
        else:
            assert default is inspect.Parameter.empty or (key, default) == ("weight", 1.0)
        note = next(a for a in stub.kwonlyargs if a.arg == method.keywords[key]).annotation
        assert note is not None
        kind = ast.unparse(note)
        assert ("Each" in kind) == declared.per_model, key


CHECKED = """
from typing import Any, assert_type
import jax
import jmerge

Params = dict[str, jax.Array]

def merge(a: Params, b: Params, density: jax.Array) -> None:
    assert_type(jmerge.linear([a, b]), Params)
    assert_type(jmerge.ties([a, b], base=a, weight=[0.3, density], density=density), Params)
    assert_type(jmerge.dare_ties([a, b], base=a, density=0.5, key=jax.random.key(0), rescale="chance"), Params)
    assert_type(jmerge.slerp([a], base=b, t=jmerge.by_path({"*": jmerge.over_layers(0.0, 1.0)})), Params)
    assert_type(jmerge.emr([a, b], base=a, where=["*w"], otherwise="base", donate=True), list[Params])
    assert_type(jmerge.linear([density, density], weight={"a": 0.5}, layers=0), jax.Array)
    assert_type(jmerge.merge_trees([a, b], method="ties", base=a), Any)
    jmerge.ties([a, b])  # E: Missing named argument "base"
    jmerge.slerp([a], base=b)  # E: Missing named argument "t"
    jmerge.linear([a, b], wieght=0.5)  # E: Unexpected keyword argument "wieght"
    jmerge.linear([a, b], weight="0.5")  # E: Argument "weight" to "linear" has incompatible type
    jmerge.linear([a, b], otherwise="last")  # E: Argument "otherwise" to "linear" has incompatible type
    jmerge.ties([a, b], base=a, rescale="chance")  # E: Argument "rescale" to "ties" has incompatible type
    jmerge.nonexistent  # E: Module has no attribute "nonexistent"
"""


@pytest.mark.slow
def test_type_checkers_see_them(tmp_path: Path) -> None:
    file = tmp_path / "checked.py"
    file.write_text(CHECKED)
    root = Path(jmerge.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(file)],
        cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = {
        int(line.split(":")[1]): line for line in done.stdout.splitlines() if ": error:" in line
    }
    wanted = {
        i: line.split("# E: ")[1]
        for i, line in enumerate(CHECKED.splitlines(), 1)
        if "# E:" in line
    }
    assert said.keys() == wanted.keys(), done.stdout + done.stderr
    for number, message in wanted.items():
        assert message in said[number]


# What they do


BASE: dict[str, Any] = {"w": jnp.arange(12.0).reshape(3, 4), "n": 3}
MODELS: list[dict[str, Any]] = [{"w": BASE["w"] + jnp.sin(BASE["w"] * k), "n": 3} for k in (1, 2)]


def test_they_are_merge_trees_by_name() -> None:
    cases: dict[str, dict[str, Any]] = {
        "linear": {"weight": 1.0},
        "task_arithmetic": {"weight": 1.0, "scale": 0.5},
    }
    for name, hyperparameters in cases.items():
        origin: dict[str, Any] = {} if name == "linear" else {"base": BASE}
        wanted = jmerge.merge_trees(MODELS, method=name, **origin, **hyperparameters)
        own = {key: value for key, value in hyperparameters.items() if key != "weight"}
        found = getattr(jmerge, name)(MODELS, **origin, **own)
        assert_same_bytes(np.asarray(found["w"]), np.asarray(wanted["w"]))
        assert found["n"] == 3
    keyed = [
        jmerge.dare_linear(MODELS, base=BASE, density=0.5, key=key)["w"]
        for key in (1, jax.random.key(1), 2)
    ]
    np.testing.assert_array_equal(keyed[0], keyed[1])
    assert (keyed[0] != keyed[2]).any()
    assert [tree["w"].shape for tree in jmerge.emr(MODELS, base=BASE)] == [(3, 4)] * 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jmerge.slerp(MODELS[:1], base=BASE), "'slerp' needs 't': 0 gives the base"),  # type: ignore[call-arg]
        (lambda: jmerge.ties(MODELS), "'ties' needs a base; pass base="),  # type: ignore[call-arg]
        (lambda: jmerge.linear(MODELS, base=BASE), "'linear' takes no base"),  # type: ignore[call-arg]
        (lambda: jmerge.slerp(MODELS[:1], base=BASE, tt=1.0), "'tt' is not a parameter of 'slerp'; did you mean 't'"),  # type: ignore[call-arg]
        (lambda: jmerge.ties(MODELS, base=BASE, denisty=0.5), "did you mean 'density'"),  # type: ignore[call-arg]
        (lambda: jmerge.ties(MODELS, base=BASE, rescale="chance"), "'rescale' is True, 'norm' or False; found 'chance'"),  # type: ignore[arg-type]
        (lambda: jmerge.dare_ties(MODELS, base=BASE, rescale="chances"), "is True, 'norm', 'chance' or False"),  # type: ignore[arg-type]
        (lambda: jmerge.dare_ties(MODELS, base=BASE, key=jax.random.PRNGKey(0)), "key is a key without a type"),
        (lambda: jmerge.dare_ties(MODELS, base=BASE, seed=1, key=1), "seed and key say the same"),  # type: ignore[call-arg]
    ],
)  # fmt: skip
def test_mistakes(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


def test_help_says_what_parameters_are() -> None:
    text = inspect.getdoc(jmerge.dare_ties)
    assert text is not None
    for part in (
        "DARE TIES",
        "density: probability that a change is kept, from 0 to 1",
        "arxiv.org",
    ):
        assert part in text


# Rescaling by the chance to be kept


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_what_is_kept_is_divided_by_its_chance(name: str) -> None:
    """So every element is on average what it was, whatever its rank: within five standard errors."""
    change = jnp.asarray(np.random.default_rng(0).choice([0.5, 1.0, 2.0, 3.0], (6, 9)), jnp.float32)
    merge, draws, density = getattr(jmerge, name), 4000, 0.3

    def draw(key: Any) -> jax.Array:
        zeros = jnp.zeros_like(change)
        return merge([change], base=zeros, density=density, key=key, rescale="chance")

    many = np.asarray(jax.jit(jax.vmap(draw))(jnp.arange(draws)) / change[None])
    least = density if name == "dare_linear" else density - 0.15
    assert (np.abs(many.mean(axis=0) - 1) < 5 * np.sqrt((1 / least - 1) / draws)).all()
    assert abs(many.mean() - 1) < 5 * np.sqrt((1 / least - 1) / many.size)
    for kept in (0.0, 1.0):
        same = merge([change], base=jnp.zeros_like(change), density=kept, rescale="chance")
        np.testing.assert_array_equal(same, change * kept)


# Functions of one's own


def middle(models: jax.Array, *, power: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """A merge that jmerge has not."""
    assert models.ndim == 3 and power.ndim == 0
    changed = models if weight is None else weight[:, None, None] * models
    return jnp.median(changed, axis=0) ** power


def test_a_function_of_ones_own() -> None:
    trees = [*MODELS, BASE]
    wanted = np.median([np.asarray(tree["w"]) for tree in trees], axis=0)
    found = jmerge.merge_trees(trees, method=middle, power=1.0)
    np.testing.assert_allclose(found["w"], wanted, rtol=1e-6)
    found = jmerge.merge_trees(trees, method=middle, power=1.0, weight=[2.0, 2.0, 2.0])
    np.testing.assert_allclose(found["w"], 2 * wanted, rtol=1e-6)
    slope = jax.grad(lambda p: jmerge.merge_trees(trees, method=middle, power=p)["w"].sum())(1.0)
    assert slope == pytest.approx((wanted * np.log(np.maximum(wanted, 1e-9))).sum(), rel=1e-3)
    with_base = jmerge.merge_trees(
        MODELS, method=lambda base, models: base + 0 * models[0], base=BASE
    )
    np.testing.assert_array_equal(with_base["w"], BASE["w"])
    ties = REGISTRY["ties"].function
    hyperparameters: dict[str, Any] = {"base": BASE, "weight": 1.0, "density": 0.5}
    np.testing.assert_array_equal(
        jmerge.merge_trees(MODELS, method=ties, **hyperparameters)["w"],
        jmerge.ties(MODELS, **hyperparameters)["w"],
    )
    with pytest.raises(
        TypeError, match="'powre' is not a parameter of 'middle'; did you mean 'power'"
    ):
        jmerge.merge_trees(trees, method=middle, powre=1.0)
