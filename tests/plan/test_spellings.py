"""Two spellings of one model: known ones pair, unknown ones are refused with the map that pairs them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from partialkit import SOUP, refused, run, write

import jmerge
from jmerge.plan.steps import Plan
from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

Tensors = dict[str, np.ndarray]
Spelling = Callable[[str], str]  # the name of `text` or `seeing` below -> another


def replaced(*pairs: tuple[str, str]) -> Spelling:
    """The first pattern that a name matches is replaced."""

    def spell(name: str) -> str:
        for old, new in pairs:
            if re.search(old, name):
                return re.sub(old, new, name, count=1)
        return name

    return spell


def text(seed: int) -> Tensors:
    """Three layers, a head of its own, and a weight norm."""
    rng = np.random.default_rng(50 + seed)
    norm = {"conv.weight_g": (1, 1, 4), "conv.weight_v": (8, 4, 4)}
    return llama_tensors(seed, layers=3) | {
        f"model.{name}": rng.standard_normal(shape).astype(np.float32)
        for name, shape in norm.items()
    }


TEXT = llama_config(layers=3)
# name -> how it calls what `text` makes
TEXTS: dict[str, Spelling] = {
    "plain": str,
    "without the prefix": replaced((r"^model\.", "")),
    "another prefix": replaced((r"^model\.", "gpt_neox.")),
    "around all": replaced((r"^", "policy.")),
    "compiled": replaced((r"^", "_orig_mod.")),
    "parallel": replaced((r"^", "module.")),
    "parallel and compiled": replaced((r"^", "module._orig_mod.")),
    "of peft": replaced((r"^", "base_model.model.")),
    "base layers": replaced((r"([qv]_proj)\.", r"\1.base_layer.")),
    "compiled layers": replaced((r"(layers\.\d\.)", r"\1_orig_mod.")),
    "compiled list": replaced((r"layers\.", r"layers._orig_mod.")),
    "one compiled layer": replaced((r"(layers\.1\.)", r"\1_orig_mod.")),
    "two compiled layers": replaced((r"(layers\.[12]\.)", r"\1_orig_mod.")),
    "compiled attention": replaced((r"(layers\.[02])\.(self_attn)", r"\1._orig_mod.\2")),
    "parametrized": replaced(
        (r"weight_g$", "parametrizations.weight.original0"),
        (r"weight_v$", "parametrizations.weight.original1"),
    ),
}


def seeing(seed: int) -> Tensors:
    """A decoder of two layers, a tower of three whose blocks are like them, what is between."""
    rng = np.random.default_rng(80 + seed)
    shapes = {
        "patch_embed.proj.weight": (8, 3),
        "merger.ln_q.weight": (8,),
        "merger.mlp.0.weight": (8, 8),
    }
    for i in range(3):
        shapes |= {f"blocks.{i}.{name}.weight": (8, 8) for name in ("attn.qkv", "mlp.fc1")}
        shapes |= {f"blocks.{i}.norm1.weight": (8,)}
    return llama_tensors(seed) | {
        f"visual.{name}": rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


SEES = llama_config() | {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "vision_config": {"depth": 3},
}
NEW_SEES = {
    "architectures": SEES["architectures"],
    "model_type": "qwen2_5_vl",
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
    "text_config": llama_config() | {"model_type": "qwen2_5_vl_text"},
    "vision_config": {"depth": 3},
}
SEEINGS: dict[str, tuple[Spelling, dict[str, Any]]] = {
    "published": (str, SEES),
    "new": (replaced((r"^model\.", "model.language_model."), (r"^v", "model.v")), NEW_SEES),
    "language model first": (
        replaced((r"^model\.", "language_model.model."), (r"^lm_", "language_model.lm_")),
        NEW_SEES,
    ),
    "other words": (
        replaced((r"^model\.", "model.text_model."), (r"^visual", "vision_tower")),
        NEW_SEES,
    ),
    "inside": (replaced((r"^", "thinker.")), SEES),
    "counted in one place only": (str, {k: v for k, v in SEES.items() if k != "vision_config"}),
    "mixed": (replaced((r"^model\.layers", "model.language_model.layers")), NEW_SEES),
}


def planned(folder: Path, recipe: str) -> Plan:
    return jmerge.plan(write(folder, recipe))


def check_all_merged(plan: Plan, donor: Tensors) -> None:
    """Every tensor of the donor is made of both models, and nothing else is made."""
    assert {step.name for step in plan.steps} == donor.keys()
    assert [step.name for step in plan.steps if len(step.inputs) != 2] == []
    assert plan.unused == ()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pair
        for pair in itertools.permutations(TEXTS, 2)
        if {*pair} != {"another prefix", "around all"}  # which may be two models
    ],
)
def test_known_spellings_of_text(tmp_path: Path, one: str, other: str) -> None:
    """Whichever is the donor."""
    models = {}
    for seed, (name, spelling) in enumerate((("a", one), ("b", other))):
        models[name] = {TEXTS[spelling](each): array for each, array in text(seed).items()}
        write_checkpoint(tmp_path / name, models[name], TEXT)
    plan = planned(tmp_path, SOUP)
    if "compiled" in one and one not in ("compiled", "parallel and compiled", "compiled list"):
        names = set(models["a"])  # layers of one stack have names of one kind
        made = {step.name for step in plan.steps}
        assert made - names == ({TEXTS["plain"](n.replace("._orig_mod", "")) for n in names - made})
        assert all(len(step.inputs) == 2 for step in plan.steps) and plan.unused == ()
    else:
        check_all_merged(plan, models["a"])


@pytest.mark.parametrize(("one", "other"), [*itertools.permutations(SEEINGS, 2)])
def test_known_spellings_of_a_family(tmp_path: Path, one: str, other: str) -> None:
    """Of a decoder, a tower of another depth and what is between, some of which may be spelt otherwise than the rest."""
    models = {}
    for seed, (name, spelling) in enumerate((("a", one), ("b", other))):
        spell, config = SEEINGS[spelling]
        models[name] = {spell(each): array for each, array in seeing(seed).items()}
        write_checkpoint(tmp_path / name, models[name], config)
    check_all_merged(planned(tmp_path, SOUP), models["a"])


def test_values(tmp_path: Path) -> None:
    """What pairs is merged: a published model of which one layer is compiled, and a new one."""
    compiled = replaced((r"(layers\.1\.)", r"\1_orig_mod."))
    first = {compiled(name): array for name, array in seeing(0).items()}
    write_checkpoint(tmp_path / "a", first, SEES)
    spell, config = SEEINGS["new"]
    write_checkpoint(tmp_path / "b", {spell(k): v for k, v in seeing(1).items()}, config)
    made = run(tmp_path, SOUP)
    assert made.tensors.keys() == seeing(0).keys()
    for name, array in made.tensors.items():
        wanted = (seeing(0)[name] + 3 * seeing(1)[name]) / 4
        np.testing.assert_allclose(array, wanted, rtol=1e-6)


# Unknown spellings

UNKNOWN: dict[str, tuple[Spelling, str]] = {
    "a stack": (replaced((r"model\.layers", "decoder.blocks")), "decoder.blocks.: model.layers."),
    "all": (
        replaced((r"^model\.layers", "body.trunk"), (r"^model\.", "body."), (r"^lm_head", "out")),
        "body.trunk.: model.layers., out.: lm_head.",
    ),
    "in layers": (
        replaced((r"self_attn\.", "attn."), (r"mlp\.", "ffn.")),
        "model.layers.*.attn.: model.layers.*.self_attn., model.layers.*.ffn.: model.layers.*.mlp.",
    ),
    "ends": (
        replaced((r"(\d)\.input_layernorm", r"\1.ln_1"), (r"post_attention_layernorm", "ln_2")),
        "model.layers.*.ln_1.: model.layers.*.input_layernorm., "
        "model.layers.*.ln_2.: model.layers.*.post_attention_layernorm.",
    ),
    "loose": (replaced((r"model\.norm\.", "final.")), "final.: model.norm."),
    "embedding and head": (
        replaced((r"model\.embed_tokens", "model.wte"), (r"^lm_head", "model.unembed")),
        "model.wte.: model.embed_tokens., model.unembed.: lm_head.",
    ),
    "an embedding that nothing tells": (
        replaced((r"embed_tokens", "tok")),
        "model.tok.: model.embed_tokens.",
    ),
    "some of another stack": (
        replaced(
            (r"^model\.layers\.(\d)\.mlp", r"gpt_neox.layers.\1.ffn"), (r"^model\.", "gpt_neox.")
        ),
        "gpt_neox.layers.*.ffn.: model.layers.*.mlp., gpt_neox.: model.",
    ),
    "numbers within words": (
        replaced((r"layers\.(\d)", r"layers.layer_\1")),
        "model.layers.layer_0.: model.layers.0., model.layers.layer_1.: model.layers.1., "
        "model.layers.layer_2.: model.layers.2.",
    ),
    "numbers within words, from one": (
        lambda name: re.sub(r"layers\.(\d)", lambda number: f"h{int(number[1]) + 1}", name),
        "model.h1.: model.layers.0., model.h2.: model.layers.1., model.h3.: model.layers.2.",
    ),
}


@pytest.mark.parametrize("donor", ["other", "plain"])
@pytest.mark.parametrize("kind", UNKNOWN)
def test_unknown_spellings(
    tmp_path: Path, kind: str, donor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused once, with the map that pairs everything, whichever is the donor; or with the line that leaves it out."""
    spell, rules = UNKNOWN[kind]
    spellings: list[Spelling] = [str, spell] if donor == "plain" else [spell, str]
    models = {}
    for seed, (name, each) in enumerate(zip("ab", spellings, strict=True)):
        models[name] = {each(key): array for key, array in text(seed).items()}
        write_checkpoint(tmp_path / name, models[name], TEXT)
    (error,) = refused(tmp_path, SOUP, capsys)
    rule = re.search(r"write '(map: \{.*?\})' beside the model", error)
    assert rule is not None
    if donor == "plain":
        assert rule[1] == f"map: {{{rules}}}"
    check_all_merged(
        planned(tmp_path, SOUP.replace("{b}\n", f"{{b}}\n    {rule[1]}\n")), models["a"]
    )
    if line := re.search(r"with '(except: \[.*\])'$", error):
        plan = planned(tmp_path, f"{SOUP}{line[1]}\n")
        assert {step.name for step in plan.steps} == models["a"].keys()
        assert {len(step.inputs) for step in plan.steps} == {1, 2}


def test_a_map_is_extended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where the recipe has a map that is not enough, the whole map is told."""
    write_checkpoint(tmp_path / "a", text(0), TEXT)
    spell = replaced((r"^model\.", "body.trunk."), (r"^lm_head", "out"))
    write_checkpoint(tmp_path / "b", {spell(k): v for k, v in text(1).items()}, TEXT)
    recipe = SOUP.replace("{b}\n", "{b}\n    map: {body.trunk.: model.}\n")
    (error,) = refused(tmp_path, recipe, capsys)
    assert "models[1].map: out.weight of b and lm_head.weight of a end alike" in error
    assert "write 'map: {body.trunk.: model., out.: lm_head.}' beside" in error


def test_what_looks_alike_and_is_left_out_is_no_problem(tmp_path: Path) -> None:
    """`only` may be about other tensors."""
    spell = replaced((r"mlp\.", "ffn."))
    write_checkpoint(tmp_path / "a", text(0), TEXT)
    write_checkpoint(tmp_path / "b", {spell(k): v for k, v in text(1).items()}, TEXT)
    plan = planned(tmp_path, SOUP + "only: ['*.self_attn.*']\n")
    assert sum(len(step.inputs) == 2 for step in plan.steps) == 12


def test_what_looks_alike_and_is_in_no_module_of_the_recipe_is_no_problem(tmp_path: Path) -> None:
    """A tower that is copied may be spelt in any way in other models."""
    spell = replaced((r"^visual\.blocks", "visual.odd"))
    write_checkpoint(tmp_path / "a", seeing(0), SEES)
    write_checkpoint(tmp_path / "b", {spell(k): v for k, v in seeing(1).items()}, SEES)
    recipe = """\
merge_method: linear
modules:
  text_decoder:
    models:
      - {model: {a}, parameters: {weight: 1}}
      - {model: {b}, parameters: {weight: 1}}
"""
    plan = planned(tmp_path, recipe)
    assert all((len(step.inputs) == 1) == ("visual" in step.name) for step in plan.steps)


def test_a_map_may_bring_spellings_of_layers_together(tmp_path: Path) -> None:
    """Two names become one where no layer has both."""
    spell = replaced((r"layers\.1\.mlp", "layers.1.ffn"))
    write_checkpoint(tmp_path / "a", text(0), TEXT)
    write_checkpoint(tmp_path / "b", {spell(k): v for k, v in text(1).items()}, TEXT)
    rule = "map: {model.layers.*.ffn.: model.layers.*.mlp.}"
    plan = planned(tmp_path, SOUP.replace("{b}\n", f"{{b}}\n    {rule}\n"))
    check_all_merged(plan, text(0))


def test_a_star_is_the_number_of_a_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On both sides of a rule of a map."""
    for seed, name in enumerate("ab"):
        write_checkpoint(tmp_path / name, text(seed), TEXT)
    recipe = SOUP.replace("{b}\n", "{b}\n    map: {model.layers.*.mlp.: model.mlp.}\n")
    (error,) = refused(tmp_path, recipe, capsys)
    assert "expected one '*', the number of the layer, on both sides or on none" in error


# What one model has and the other has no place for


def test_a_text_only_donor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tower is not written where config.json describes none; either line that is told works."""
    write_checkpoint(tmp_path / "a", llama_tensors(0), llama_config())
    write_checkpoint(tmp_path / "b", seeing(1), SEES)
    (error,) = [line for line in refused(tmp_path, SOUP, capsys) if line.startswith("error")]
    assert "is not a tensor of a (as are 11 more)" in error and "or list it first" in error
    assert "'except: [visual.*]'" in error
    plan = planned(tmp_path, SOUP + "except: [visual.*]\n")
    assert {step.name for step in plan.steps} == llama_tensors(0).keys()
    turned = SOUP.replace("{a}", "{c}").replace("{b}", "{a}").replace("{c}", "{b}")
    assert {step.name for step in planned(tmp_path, turned).steps} == seeing(1).keys()


@pytest.mark.parametrize(
    ("own", "donor", "refuses"),
    [
        ({"attention_bias": True}, {}, True),
        ({"attention_bias": True}, {"attention_bias": False}, True),
        ({"qkv_bias": True}, {"qkv_bias": False}, True),
        ({"no_bias": False}, {"no_bias": True}, True),
        ({"text_config": {"attention_bias": True}}, {}, True),
        ({"attention_bias": True}, {"attention_bias": True}, False),
        ({}, {}, False),
        ({"use_cache": True}, {"use_cache": False}, False),
        ({"mlp_scale": True}, {}, False),
        ({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}, {}, True),
        ({"architectures": ["LLaMAForCausalLM"]}, {}, False),
        ({"architectures": None}, {"architectures": None}, False),
    ],
)
@pytest.mark.parametrize("stacked", [False, True])
def test_biases(
    tmp_path: Path,
    own: dict[str, Any],
    donor: dict[str, Any],
    refuses: bool,
    stacked: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Biases that the donor's class or config turns off, also where layers of both are stacked."""
    biases = {f"model.layers.{i}.self_attn.q_proj.bias": np.ones(8, np.float32) for i in range(3)}
    write_checkpoint(tmp_path / "a", text(0), TEXT | donor)
    write_checkpoint(tmp_path / "b", text(1) | biases, TEXT | own)
    recipe = SOUP
    if stacked:
        recipe = """\
merge_method: passthrough
slices:
  - sources: [{model: {b}, layer_range: [0, 1]}]
  - sources: [{model: {b}, layer_range: [1, 3]}]
base_model: {a}
"""
    if refuses:
        errors = [each for each in refused(tmp_path, recipe, capsys) if each.startswith("error")]
        assert len(errors) == 1 and "except: [model.layers.*.self_attn.q_proj.bias]" in errors[0]
    else:
        assert biases.keys() <= {step.name for step in planned(tmp_path, recipe).steps}


def test_an_adapter_that_is_not_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its matrices would be copied and its model merged without them."""
    write_checkpoint(tmp_path / "a", text(0), TEXT)
    tuned = {TEXTS["base layers"](name): array for name, array in text(1).items()}
    tuned["model.layers.0.self_attn.q_proj.lora_A.default.weight"] = np.ones((2, 8), np.float32)
    write_checkpoint(tmp_path / "b", tuned, TEXT)
    (error,) = refused(tmp_path, SOUP, capsys)
    assert "it belongs to an adapter; merge that into its model first" in error


@pytest.mark.parametrize("name", ["v_head.summary", "score", "classifier"])
def test_a_head_that_a_trainer_left(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its config.json is that of a model with a head for tokens, whose class would not load it."""
    write_checkpoint(tmp_path / "a", text(0), TEXT)
    more = {f"{name}.weight": np.ones((1, 8), np.float32)}
    write_checkpoint(tmp_path / "b", text(1) | more, TEXT)
    (error,) = refused(tmp_path, SOUP, capsys)
    assert "LlamaForCausalLM has only a head for tokens" in error
    line = re.search(r"with '(except: \[.*\])'", error)
    assert line is not None
    check_names(planned(tmp_path, f"{SOUP}{line[1]}\n"), text(0))


def check_names(plan: Plan, donor: Tensors) -> None:
    """The output has the donor's tensors and no others."""
    assert {step.name for step in plan.steps} == donor.keys()


def test_layers_behind_that_the_donor_does_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts that foretell more tokens are written where config.json counts them."""
    behind = {"model.layers.3.eh_proj.weight": np.ones((8, 16), np.float32)}
    write_checkpoint(tmp_path / "b", text(1) | behind, TEXT | {"num_nextn_predict_layers": 1})
    write_checkpoint(tmp_path / "a", text(0), TEXT)
    (error,) = refused(tmp_path, SOUP, capsys)
    assert "num_nextn_predict_layers" in error and "except: [model.layers.*.eh_proj" in error
    write_checkpoint(tmp_path / "a", text(0), TEXT | {"num_nextn_predict_layers": 1})
    assert behind.keys() <= {step.name for step in planned(tmp_path, SOUP).steps}


LAST_WORDS: dict[str, Spelling] = {
    "scales of norms": replaced((r"norm\.weight$", "norm.scale")),
    "the final norm": replaced((r"^model\.norm\.weight$", "model.norm.scale")),
    "a kernel": replaced((r"^lm_head\.weight$", "lm_head.kernel")),
    "a head without a last word": replaced((r"^lm_head\.weight$", "lm_head")),
    "an underscore": replaced((r"q_proj\.weight$", "q_proj_weight")),
    "a table": replaced((r"embed_tokens\.weight$", "embed_tokens.embedding")),
    "a capital": replaced((r"v_proj\.weight$", "v_proj.Weight")),
}


@pytest.mark.parametrize("spelling", LAST_WORDS.values(), ids=LAST_WORDS)
@pytest.mark.parametrize("turned", [False, True])
def test_other_last_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spelling: Spelling, turned: bool
) -> None:
    """Tensors of one shape in one place are taken for one; the map that is told pairs them all."""
    first, second = text(1), {spelling(name): array for name, array in text(2).items()}
    models = [second, first] if turned else [first, second]
    for name, tensors in zip("ab", models, strict=True):
        write_checkpoint(tmp_path / name, tensors, TEXT)
    (line,) = refused(tmp_path, SOUP, capsys)
    told = re.search(r"write '(map: \{.*\})' beside the model", line)
    assert "stand in one place" in line and told
    plan = planned(tmp_path, SOUP.replace("{b}", "{b}\n    " + told[1]))
    check_all_merged(plan, models[0])


def test_what_a_module_adds_is_no_weight(tmp_path: Path) -> None:
    """A norm's bias alone and a norm's weight alone are two tensors."""
    norm = np.ones(8, np.float32)
    for seed, (name, last) in enumerate(zip("ab", ("weight", "bias"), strict=True)):
        tensors = text(seed) | {f"model.extra.{last}": norm}
        write_checkpoint(tmp_path / name, tensors, TEXT)
    names = planned(tmp_path, SOUP).outputs.keys()
    assert {"model.extra.weight", "model.extra.bias"} <= names


def test_a_table_is_told_as_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table and a head of one shape, both under names that nothing known pairs."""
    words = (("^model\\.embed_tokens", "token_embd"), ("^lm_head", "output"))
    other = {replaced(*words)(name): array for name, array in text(2).items()}
    write_checkpoint(tmp_path / "a", text(1), TEXT)
    write_checkpoint(tmp_path / "b", other, TEXT)
    (line,) = refused(tmp_path, SOUP, capsys)
    assert "token_embd.: model.embed_tokens." in line and "output.: lm_head." in line


def test_nothing_in_common(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names whose words no dots part have no layers, and are not written beside the donor's."""
    other = {name.replace(".", "/"): array for name, array in text(2).items()}
    write_checkpoint(tmp_path / "a", text(1), TEXT)
    write_checkpoint(tmp_path / "b", other, TEXT)
    lines = refused(tmp_path, SOUP, capsys)
    assert [line for line in lines if "nothing of b is called like anything of a" in line]
