"""Structure read from headers: 53 published classes against a hand-typed table, and others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from jmerge.arch.infer import Layout, Stack, infer_layout, is_buffer
from jmerge.dtypes import TensorSpec

EXPECTED = json.loads((Path(__file__).parents[1] / "data" / "arch_expected.json").read_text())
VOCAB, HIDDEN = 97, 32

Layouts = Callable[[str], Layout]
Shapes = Mapping[str, tuple[int, ...]]


def infer(shapes: Shapes, config: Mapping[str, Any]) -> Layout:
    """The layout of float32 tensors of these shapes."""
    return infer_layout({name: TensorSpec("F32", tuple(s)) for name, s in shapes.items()}, config)


@pytest.fixture(scope="session")
def headers(conformance: Path) -> dict[str, Any]:
    """Config and shapes of a tiny model of each class."""
    return json.loads((conformance / "arch_headers.json").read_text())


@pytest.fixture(scope="session")
def layout_of(headers: dict[str, Any]) -> Layouts:
    """The inferred layout of a class by its name."""
    return lambda name: infer(headers[name]["tensors"], headers[name]["config"])


def stack_rows(layout: Layout) -> list[tuple[str, int, str | None]]:
    """The stacks as the table of expectations writes them."""
    return sorted(
        (prefix, stack.depth, ".".join(stack.keys[0]) if stack.keys else None)
        for prefix, stack in layout.stacks.items()
    )


def key_paths(stack: Stack) -> list[str]:
    """Every config key of a stack, dotted, in name order."""
    return sorted(".".join(path) for path in stack.keys)


def modules_of(layout: Layout) -> dict[str, list[str]]:
    """Module -> its stacks and loose tensors."""
    return {
        name: sorted({r.stack or t for t, r in layout.roles.items() if r.module == name})
        for name in layout.modules
    }


def layers(prefix: str, depth: int, *names: str, start: int = 0) -> dict[str, tuple[int, ...]]:
    """Square matrices called `names` in every layer."""
    return {
        f"{prefix}.{i}.{name}": (HIDDEN, HIDDEN)
        for i in range(start, start + depth)
        for name in names
    }


# The 53 classes


def test_expectations_cover_the_headers(headers: dict[str, Any]) -> None:
    """The two files list the same classes."""
    assert len(EXPECTED) == 53
    assert EXPECTED.keys() == headers.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_published_class(name: str, layout_of: Layouts) -> None:
    """Stacks with depth and config key, embeddings, heads and vocabulary-sized biases."""
    layout, wanted = layout_of(name), EXPECTED[name]
    assert stack_rows(layout) == sorted(map(tuple, wanted["stacks"]))
    assert sorted(layout.embeddings) == wanted["embeddings"]
    assert sorted(layout.heads) == wanted["heads"]
    assert sorted(layout.vocab_biases) == wanted.get("vocab_biases", [])


@pytest.mark.parametrize("name", EXPECTED)
def test_every_tensor_has_a_role_of_its_own(
    name: str, headers: dict[str, Any], layout_of: Layouts
) -> None:
    """No tensor is lost, no two share template and layer, and the two give the name back."""
    layout = layout_of(name)
    assert list(layout.roles) == list(headers[name]["tensors"])
    assert len({(r.template, r.layer) for r in layout.roles.values()}) == len(layout.roles)
    for tensor, role in layout.roles.items():
        assert role.template.replace("{}", str(role.layer), 1) == tensor
        assert (role.part == "layer") == (role.layer is not None) == (role.stack is not None)
        assert role.module in layout.modules
        assert not role.buffer


@pytest.mark.parametrize("name", [name for name in EXPECTED if len(EXPECTED[name]["stacks"]) == 1])
def test_one_stack_is_one_module(name: str, layout_of: Layouts) -> None:
    """A model with one stack is the module `default`; layer ranges count that stack."""
    layout = layout_of(name)
    assert layout.modules == ("default",)
    prefix, depth, _ = EXPECTED[name]["stacks"][0]
    main = layout.main_stack("default")
    assert main is not None
    assert (main.prefix, main.depth) == (prefix, depth)


# Modules

GEMMA3_VISION = [
    "vision_tower.embeddings.patch_embedding.bias",
    "vision_tower.embeddings.patch_embedding.weight",
    "vision_tower.embeddings.position_embedding.weight",
    "vision_tower.encoder.layers",
    "vision_tower.head.attention.in_proj_bias",
    "vision_tower.head.attention.in_proj_weight",
    "vision_tower.head.attention.out_proj.bias",
    "vision_tower.head.attention.out_proj.weight",
    "vision_tower.head.layernorm.bias",
    "vision_tower.head.layernorm.weight",
    "vision_tower.head.mlp.fc1.bias",
    "vision_tower.head.mlp.fc1.weight",
    "vision_tower.head.mlp.fc2.bias",
    "vision_tower.head.mlp.fc2.weight",
    "vision_tower.head.probe",
    "vision_tower.post_layernorm.bias",
    "vision_tower.post_layernorm.weight",
]
QWEN_TEXT = ["lm_head.weight", "model.embed_tokens.weight", "model.layers", "model.norm.weight"]
QWEN_MERGER = [
    "visual.merger.ln_q.weight",
    "visual.merger.mlp.0.bias",
    "visual.merger.mlp.0.weight",
    "visual.merger.mlp.2.bias",
    "visual.merger.mlp.2.weight",
]
QWEN_VISION = ["visual.blocks", "visual.patch_embed.proj.weight"]
QWEN3_TEXT = [
    "lm_head.weight",
    "model.language_model.embed_tokens.weight",
    "model.language_model.layers",
    "model.language_model.norm.weight",
]
QWEN3_MERGER = sorted(
    f"model.visual.{place}.{layer}.{kind}"
    for place in ("merger", *(f"deepstack_merger_list.{i}" for i in range(3)))
    for layer in ("linear_fc1", "linear_fc2", "norm")
    for kind in ("bias", "weight")
)
QWEN3_VISION = [
    "model.visual.blocks",
    "model.visual.patch_embed.proj.bias",
    "model.visual.patch_embed.proj.weight",
    "model.visual.pos_embed.weight",
]

MODULES = {
    "Gemma3ForConditionalGeneration": {
        "text_decoder": [
            "language_model.model.embed_tokens.weight",
            "language_model.model.layers",
            "language_model.model.norm.weight",
        ],
        "multi_modal_projector": [
            "multi_modal_projector.mm_input_projection_weight",
            "multi_modal_projector.mm_soft_emb_norm.weight",
        ],
        "vision_tower": GEMMA3_VISION,
    },
    "Llama4ForConditionalGeneration": {
        "text_decoder": [
            "language_model.lm_head.weight",
            "language_model.model.embed_tokens.weight",
            "language_model.model.layers",
            "language_model.model.norm.weight",
        ],
        "multi_modal_projector": ["multi_modal_projector.linear_1.weight"],
        "vision_model": [
            "vision_model.class_embedding",
            "vision_model.layernorm_post.bias",
            "vision_model.layernorm_post.weight",
            "vision_model.layernorm_pre.bias",
            "vision_model.layernorm_pre.weight",
            "vision_model.model.layers",
            "vision_model.patch_embedding.linear.weight",
            "vision_model.positional_embedding_vlm",
            "vision_model.vision_adapter.mlp.fc1.weight",
            "vision_model.vision_adapter.mlp.fc2.weight",
        ],
    },
    "Mistral3ForConditionalGeneration": {
        "text_decoder": [
            "language_model.model.embed_tokens.weight",
            "language_model.model.layers",
            "language_model.model.norm.weight",
        ],
        "multi_modal_projector": [
            "multi_modal_projector.linear_1.weight",
            "multi_modal_projector.linear_2.weight",
            "multi_modal_projector.norm.weight",
            "multi_modal_projector.patch_merger.merging_layer.weight",
        ],
        "vision_tower": [
            "vision_tower.ln_pre.weight",
            "vision_tower.patch_conv.weight",
            "vision_tower.transformer.layers",
        ],
    },
    "Qwen2VLForConditionalGeneration": {
        "text_decoder": QWEN_TEXT,
        "multi_modal_projector": ["visual.merger.ln_q.bias", *QWEN_MERGER],
        "vision_tower": QWEN_VISION,
    },
    "Qwen2_5_VLForConditionalGeneration": {
        "text_decoder": QWEN_TEXT,
        "multi_modal_projector": QWEN_MERGER,
        "vision_tower": QWEN_VISION,
    },
    "Qwen3VLForConditionalGeneration": {
        "text_decoder": QWEN3_TEXT,
        "multi_modal_projector": QWEN3_MERGER,
        "vision_tower": QWEN3_VISION,
    },
    "Qwen3VLMoeForConditionalGeneration": {
        "text_decoder": QWEN3_TEXT,
        "multi_modal_projector": QWEN3_MERGER,
        "vision_tower": QWEN3_VISION,
    },
    "T5ForConditionalGeneration": {
        "encoder": ["encoder.block", "encoder.final_layer_norm.weight"],
        "decoder": ["decoder.block", "decoder.final_layer_norm.weight"],
        "shared": ["shared.weight"],
    },
    "WhisperForConditionalGeneration": {
        "encoder": [
            "model.encoder.conv1.bias",
            "model.encoder.conv1.weight",
            "model.encoder.conv2.bias",
            "model.encoder.conv2.weight",
            "model.encoder.embed_positions.weight",
            "model.encoder.layer_norm.bias",
            "model.encoder.layer_norm.weight",
            "model.encoder.layers",
        ],
        "decoder": [
            "model.decoder.embed_positions.weight",
            "model.decoder.embed_tokens.weight",
            "model.decoder.layer_norm.bias",
            "model.decoder.layer_norm.weight",
            "model.decoder.layers",
        ],
    },
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str, layout_of: Layouts) -> None:
    """The names users write under `modules:`, and every stack and loose tensor in its module."""
    assert modules_of(layout_of(name)) == MODULES[name]


def test_modules_cover_the_classes_with_several_stacks() -> None:
    """The table above has every such class of the headers."""
    assert MODULES.keys() == {name for name in EXPECTED if len(EXPECTED[name]["stacks"]) > 1}


@pytest.mark.parametrize(
    ("name", "module", "prefix"),
    [
        ("Qwen3VLForConditionalGeneration", "text_decoder", "model.language_model.layers"),
        ("Qwen3VLForConditionalGeneration", "vision_tower", "model.visual.blocks"),
        ("Qwen3VLForConditionalGeneration", "multi_modal_projector", None),
        ("T5ForConditionalGeneration", "encoder", "encoder.block"),
        ("T5ForConditionalGeneration", "decoder", "decoder.block"),
        ("T5ForConditionalGeneration", "shared", None),
        ("WhisperForConditionalGeneration", "decoder", "model.decoder.layers"),
    ],
)
def test_main_stack(name: str, module: str, prefix: str | None, layout_of: Layouts) -> None:
    """The stack that layer ranges of a module count; mergers are numbered and are no layers."""
    main = layout_of(name).main_stack(module)
    assert (main and main.prefix) == prefix


@pytest.mark.parametrize(
    ("name", "moves", "vision"),
    [
        (
            "Gemma3ForConditionalGeneration",
            {"vision_tower.": "vision_tower.vision_model."},
            "vision_tower.vision_model.encoder.layers",
        ),
        (
            "Gemma3ForConditionalGeneration",
            {
                "language_model.model.": "model.language_model.",
                "vision_tower.": "model.vision_tower.vision_model.",
                "multi_modal_projector.": "model.multi_modal_projector.",
            },
            "model.vision_tower.vision_model.encoder.layers",
        ),
        (
            "Qwen2_5_VLForConditionalGeneration",
            {"model.": "model.language_model.", "visual.": "model.visual."},
            "model.visual.blocks",
        ),
    ],
)
def test_other_spellings_of_a_class(
    name: str, moves: dict[str, str], vision: str, headers: dict[str, Any]
) -> None:
    """Files of other releases nest the same modules differently; what users write stays."""
    shapes = {}
    for tensor, shape in headers[name]["tensors"].items():
        old = next((prefix for prefix in moves if tensor.startswith(prefix)), "")
        shapes[moves.get(old, "") + tensor.removeprefix(old)] = shape
    layout = infer(shapes, headers[name]["config"])
    assert {m: len(names) for m, names in modules_of(layout).items()} == {
        m: len(names) for m, names in MODULES[name].items()
    }
    main = layout.main_stack("vision_tower")
    assert main is not None
    assert main.prefix == vision
    assert main.keys[0][0] == "vision_config"


def test_qwen2_vl_with_text_sizes_at_the_top(headers: dict[str, Any]) -> None:
    """config.json as published: no text_config."""
    header = headers["Qwen2VLForConditionalGeneration"]
    config = {k: v for k, v in header["config"].items() if k != "text_config"}
    layout = infer(header["tensors"], config | header["config"]["text_config"])
    assert key_paths(layout.stacks["model.layers"]) == ["num_hidden_layers"]
    assert key_paths(layout.stacks["visual.blocks"]) == ["vision_config.depth"]
    assert layout.embeddings == ("model.embed_tokens.weight",)
    assert layout.heads == ("lm_head.weight",)


@pytest.mark.parametrize(
    ("table", "head"),
    [
        ("tokens_embed", "lm_head"),
        ("token_embedding", "output_embedding"),
        ("value_embeddings", "unembed"),
        ("tok_emb", "embed_out"),
        ("word_embedding", "head_embeddings"),
    ],
)
def test_a_table_called_an_embedding_is_one(table: str, head: str) -> None:
    """Unless its name says that it is of what comes out; one that is known to be of tokens comes first."""
    shapes: dict[str, tuple[int, ...]] = {
        f"model.{table}.weight": (VOCAB, HIDDEN),
        f"{head}.weight": (VOCAB, HIDDEN),
    }
    shapes |= layers("model.layers", 3, "mlp.up", "mlp.down")
    config = {"vocab_size": VOCAB, "num_hidden_layers": 3}
    layout = infer(shapes, config)
    assert layout.embeddings == (f"model.{table}.weight",)
    assert layout.heads == (f"{head}.weight",)
    assert layout.roles[f"model.{table}.weight"].part == "first"
    both = infer(shapes | {"model.tok_embeddings.weight": (VOCAB, HIDDEN)}, config)
    assert both.embeddings == ("model.tok_embeddings.weight", f"model.{table}.weight")


def test_unknown_class_with_two_stacks_has_its_branches_as_modules() -> None:
    """Top-level branches; a head goes with the embedding, what is left is a module of its own."""
    shapes = {
        **layers("ear.blocks", 2, "mix.weight", "out.weight"),
        "ear.post.weight": (HIDDEN,),
        "bridge.proj.weight": (HIDDEN, HIDDEN),
        "mouth.embed_tokens.weight": (VOCAB, HIDDEN),
        **layers("mouth.layers", 3, "mix.weight", "out.weight"),
        "mouth.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCAB, HIDDEN),
    }
    config = {
        "architectures": ["EarToMouth"],
        "audio_config": {"num_hidden_layers": 2},
        "text_config": {"num_hidden_layers": 3, "vocab_size": VOCAB},
    }
    layout = infer(shapes, config)
    assert modules_of(layout) == {
        "ear": ["ear.blocks", "ear.post.weight"],
        "mouth": [
            "lm_head.weight",
            "mouth.embed_tokens.weight",
            "mouth.layers",
            "mouth.norm.weight",
        ],
        "bridge": ["bridge.proj.weight"],
    }
    assert key_paths(layout.stacks["ear.blocks"]) == ["audio_config.num_hidden_layers"]
    assert key_paths(layout.stacks["mouth.layers"]) == ["text_config.num_hidden_layers"]


def test_a_tensor_without_a_module_of_its_own_is_a_branch() -> None:
    """As Wav2Vec2's embedding of masked time steps: it has to be in a module that exists, or nothing would merge it."""
    shapes = {
        "ear.mask": (HIDDEN,),
        **layers("ear.convolutions.layers", 2, "mix.weight", "out.weight"),
        **layers("ear.encoder.layers", 3, "mix.weight", "out.weight"),
        "head.weight": (VOCAB, HIDDEN),
    }
    config = {"architectures": ["Ear"], "num_hidden_layers": 3, "num_convolution_layers": 2}
    layout = infer(shapes, config)
    assert layout.roles["ear.mask"].module == "mask"
    assert {role.module for role in layout.roles.values()} == set(layout.modules)


def test_branches_below_a_common_wrapper() -> None:
    """`model.` separates nothing; the component after it does."""
    shapes = {
        "lm_head.weight": (VOCAB, HIDDEN),
        "model.language.embed_tokens.weight": (VOCAB, HIDDEN),
        **layers("model.language.layers", 3, "mix.weight"),
        "model.connector.weight": (HIDDEN, HIDDEN),
        **layers("model.vision.layers", 3, "mix.weight"),
    }
    config = {
        "architectures": ["SomethingNew"],
        "text_config": {"num_hidden_layers": 3, "vocab_size": VOCAB},
        "vision_config": {"num_hidden_layers": 3},
    }
    layout = infer(shapes, config)
    assert modules_of(layout) == {
        "language": [
            "lm_head.weight",
            "model.language.embed_tokens.weight",
            "model.language.layers",
        ],
        "vision": ["model.vision.layers"],
        "connector": ["model.connector.weight"],
    }
    assert key_paths(layout.stacks["model.vision.layers"]) == ["vision_config.num_hidden_layers"]


# What comes before the layers and what after

PARTS = [
    ("LlamaForCausalLM", "first", "model.embed_tokens.weight"),
    ("LlamaForCausalLM", "last", "model.norm.weight"),
    ("LlamaForCausalLM", "last", "lm_head.weight"),
    ("LlamaForSequenceClassification", "last", "score.weight"),
    ("GPT2LMHeadModel", "first", "transformer.wte.weight"),
    ("GPT2LMHeadModel", "first", "transformer.wpe.weight"),
    ("GPT2LMHeadModel", "last", "transformer.ln_f.bias"),
    ("GPTNeoXForCausalLM", "first", "gpt_neox.embed_in.weight"),
    ("GPTNeoXForCausalLM", "last", "gpt_neox.final_layer_norm.weight"),
    ("GPTNeoXForCausalLM", "last", "embed_out.weight"),
    ("FalconForCausalLM", "first", "transformer.word_embeddings.weight"),
    ("MambaForCausalLM", "first", "backbone.embeddings.weight"),
    ("MambaForCausalLM", "last", "backbone.norm_f.weight"),
    ("Lfm2ForCausalLM", "last", "model.embedding_norm.weight"),
    ("BertForSequenceClassification", "first", "bert.embeddings.LayerNorm.bias"),
    ("BertForSequenceClassification", "first", "bert.embeddings.position_embeddings.weight"),
    ("BertForSequenceClassification", "first", "bert.embeddings.token_type_embeddings.weight"),
    ("BertForSequenceClassification", "last", "bert.pooler.dense.weight"),
    ("BertForSequenceClassification", "last", "classifier.weight"),
    ("BertForMaskedLM", "last", "cls.predictions.bias"),
    ("BertForMaskedLM", "last", "cls.predictions.transform.LayerNorm.weight"),
    ("DistilBertForSequenceClassification", "last", "pre_classifier.weight"),
    ("DistilBertForMaskedLM", "last", "vocab_transform.weight"),
    ("DistilBertForMaskedLM", "last", "vocab_layer_norm.bias"),
    ("RobertaForMaskedLM", "last", "lm_head.layer_norm.weight"),
    ("WhisperForConditionalGeneration", "first", "model.encoder.conv1.weight"),
    ("WhisperForConditionalGeneration", "first", "model.encoder.conv2.bias"),
    ("WhisperForConditionalGeneration", "first", "model.encoder.embed_positions.weight"),
    ("WhisperForConditionalGeneration", "last", "model.encoder.layer_norm.weight"),
    ("WhisperForConditionalGeneration", "first", "model.decoder.embed_positions.weight"),
    ("WhisperForConditionalGeneration", "last", "model.decoder.layer_norm.weight"),
    ("T5ForConditionalGeneration", "first", "shared.weight"),
    ("T5ForConditionalGeneration", "last", "encoder.final_layer_norm.weight"),
    ("Llama4ForConditionalGeneration", "first", "vision_model.class_embedding"),
    ("Llama4ForConditionalGeneration", "first", "vision_model.layernorm_pre.weight"),
    ("Llama4ForConditionalGeneration", "first", "vision_model.patch_embedding.linear.weight"),
    ("Llama4ForConditionalGeneration", "first", "vision_model.positional_embedding_vlm"),
    ("Llama4ForConditionalGeneration", "last", "vision_model.layernorm_post.weight"),
    ("Llama4ForConditionalGeneration", "last", "vision_model.vision_adapter.mlp.fc1.weight"),
    ("Mistral3ForConditionalGeneration", "first", "vision_tower.ln_pre.weight"),
    ("Mistral3ForConditionalGeneration", "first", "vision_tower.patch_conv.weight"),
    ("Gemma3ForConditionalGeneration", "last", "vision_tower.post_layernorm.weight"),
    ("Qwen3VLForConditionalGeneration", "first", "model.visual.pos_embed.weight"),
    ("Qwen3VLForConditionalGeneration", "first", "model.visual.patch_embed.proj.weight"),
]


@pytest.mark.parametrize(("name", "part", "tensor"), PARTS)
def test_parts(name: str, part: str, tensor: str, layout_of: Layouts) -> None:
    """Stacking two models, the first gives what comes before the layers, the second the rest."""
    assert layout_of(name).roles[tensor].part == part


@pytest.mark.parametrize(
    ("part", "tensor"),
    [
        ("first", "transformer.embedding.word_embeddings.weight"),  # ChatGLM
        ("last", "transformer.encoder.final_layernorm.weight"),
        ("last", "transformer.output_layer.weight"),
        ("first", "transformer.embd.wte.weight"),  # Phi-2 as first published
        ("last", "lm_head.ln.weight"),
        ("first", "model.tok_embeddings.weight"),  # InternLM2
        ("last", "output.weight"),
        ("first", "vision_tower.vision_model.pre_layrnorm.weight"),  # CLIP's spelling
        ("first", "transformer.word_embeddings_layernorm.weight"),  # BLOOM
        ("first", "model.encoder.layernorm_embedding.weight"),  # BART
        ("first", "model.embeddings.norm.weight"),  # ModernBERT
        ("first", "wav2vec2.encoder.pos_conv_embed.conv.bias"),
        ("first", "model.decoder.project_in.weight"),  # OPT-350m
        ("last", "model.decoder.project_out.weight"),
    ],
)
def test_parts_of_other_models(part: str, tensor: str) -> None:
    """Names of published models that are not among the headers."""
    shapes = {
        tensor: (HIDDEN,) if "norm" in tensor or ".ln." in tensor else (VOCAB, HIDDEN),
        **layers("layers", 3, "mix.weight"),
    }
    layout = infer(shapes, {"num_hidden_layers": 3, "vocab_size": VOCAB})
    assert layout.roles[tensor].part == part


# Numbering that is not the layers', and layouts nobody described


def mixformer(depth: int) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Phi-1 as published: the embedding is layer 0 and the head the last, all in one list."""
    shapes: dict[str, tuple[int, ...]] = {"layers.0.wte.weight": (VOCAB, HIDDEN)}
    for i in range(1, depth + 1):
        shapes |= {
            f"layers.{i}.ln.bias": (HIDDEN,),
            f"layers.{i}.ln.weight": (HIDDEN,),
            f"layers.{i}.mixer.Wqkv.bias": (3 * HIDDEN,),
            f"layers.{i}.mixer.Wqkv.weight": (3 * HIDDEN, HIDDEN),
            f"layers.{i}.mixer.out_proj.bias": (HIDDEN,),
            f"layers.{i}.mixer.out_proj.weight": (HIDDEN, HIDDEN),
            f"layers.{i}.mixer.rotary_emb.inv_freq": (4,),
            f"layers.{i}.mlp.fc1.bias": (4 * HIDDEN,),
            f"layers.{i}.mlp.fc1.weight": (4 * HIDDEN, HIDDEN),
            f"layers.{i}.mlp.fc2.bias": (HIDDEN,),
            f"layers.{i}.mlp.fc2.weight": (HIDDEN, 4 * HIDDEN),
        }
    shapes |= {
        f"layers.{depth + 1}.linear.bias": (VOCAB,),
        f"layers.{depth + 1}.linear.weight": (VOCAB, HIDDEN),
        f"layers.{depth + 1}.ln.bias": (HIDDEN,),
        f"layers.{depth + 1}.ln.weight": (HIDDEN,),
    }
    config = {
        "architectures": ["MixFormerSequentialForCausalLM"],
        "n_embd": HIDDEN,
        "n_head": 4,
        "n_layer": depth,
        "vocab_size": VOCAB,
    }
    return shapes, config


@pytest.mark.parametrize("depth", [2, 4, 24])
def test_mixformer_ends_are_not_layers(depth: int) -> None:
    """The ends of the numbering are loose; layer 0 is called `layers.1`."""
    layout = infer(*mixformer(depth))
    assert stack_rows(layout) == [("layers", depth, "n_layer")]
    assert layout.stacks["layers"].indices == tuple(range(1, depth + 1))
    assert layout.embeddings == ("layers.0.wte.weight",)
    assert layout.heads == (f"layers.{depth + 1}.linear.weight",)
    assert layout.vocab_biases == (f"layers.{depth + 1}.linear.bias",)
    first, ln = layout.roles["layers.1.ln.weight"], layout.roles[f"layers.{depth + 1}.ln.weight"]
    assert (first.template, first.layer, first.part) == ("layers.{}.ln.weight", 0, "layer")
    assert (ln.template, ln.layer, ln.part) == (f"layers.{depth + 1}.ln.weight", None, "last")
    assert layout.roles["layers.0.wte.weight"].part == "first"


INVENTED = {
    "net.embed_pieces.table": (VOCAB, HIDDEN),
    **layers("net.tower.rungs", 5, "stir.kernel", "stir.gain", "bend.kernel"),
    "net.settle.gain": (HIDDEN,),
    "net.to_pieces.table": (VOCAB, HIDDEN),
}


@pytest.mark.parametrize(
    "key", ["n_transformer_blocks", "num_blocks", "n_blocks", "num_rung_layers", "tower_depth"]
)
def test_invented_architecture(key: str) -> None:
    """Strange names and a strange key for the number of layers."""
    config = {"architectures": ["NetOfRungs"], "pieces": 5, "vocab_size": VOCAB, key: 5}
    layout = infer(INVENTED, config)
    assert stack_rows(layout) == [("net.tower.rungs", 5, key)]
    assert layout.embeddings == ("net.embed_pieces.table",)
    assert layout.heads == ("net.to_pieces.table",)
    assert layout.modules == ("default",)
    assert layout.roles["net.settle.gain"].part == "last"
    assert layout.roles["net.tower.rungs.3.stir.gain"].layer == 3


def test_a_usual_layer_key_wins_over_an_unusual_one() -> None:
    """A count of something else that is as large by chance is not rewritten."""
    config = {"num_dense_layers": 5, "num_hidden_layers": 5, "num_mtp_layers": 5}
    layout = infer(INVENTED, config)
    assert key_paths(layout.stacks["net.tower.rungs"]) == ["num_hidden_layers"]


def test_of_equal_stacks_the_same_one_is_meant_in_any_order_of_files() -> None:
    """By what is in them, then by name."""
    shapes = layers("pairs", 3, "match", "score") | layers("blocks", 3, "q", "k", "v")
    for each in (shapes, dict(reversed(shapes.items()))):
        for config in ({}, {"num_hidden_layers": 3}):
            assert {r.stack for r in infer(each, config).roles.values()} == {None, "blocks"}


def test_without_a_config_the_layers_are_still_found() -> None:
    """No key, so their number cannot change, but layer ranges of the old length work."""
    layout = infer(INVENTED, {})
    assert stack_rows(layout) == [("net.tower.rungs", 5, None)]
    assert layout.main_stack("default") == layout.stacks["net.tower.rungs"]
    assert layout.roles["net.tower.rungs.4.bend.kernel"].part == "layer"


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        ({f"merger.mlp.{i}.weight": (HIDDEN,) for i in (0, 2)}, "not consecutive"),
        ({"a.1.weight": (HIDDEN,)}, "a single number that is not 0"),
        ({f"a.{i}": (HIDDEN,) for i in range(3)}, "nothing after the number"),
        ({f"a.{i}.{'xyzw'[i]}": (HIDDEN,) for i in range(4)}, "no two alike"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_numbers_that_count_no_layers(shapes: Shapes, why: str) -> None:
    """Names with numbers that are no stack stay loose."""
    layout = infer(shapes, {"num_hidden_layers": len(shapes)})
    assert not layout.stacks, why
    assert all(role.part != "layer" for role in layout.roles.values())


def test_one_layer_is_a_stack() -> None:
    """A model with a single layer can be stacked on itself."""
    layout = infer(layers("model.layers", 1, "mix.weight"), {"num_hidden_layers": 1})
    assert stack_rows(layout) == [("model.layers", 1, "num_hidden_layers")]


def test_table_longer_than_the_vocabulary_is_found_by_its_name() -> None:
    """A padded embedding matches no vocabulary size."""
    names = ("model.embed_tokens.weight", "lm_head.weight")
    shapes = {**dict.fromkeys(names, (VOCAB + 7, HIDDEN)), **layers("model.layers", 2, "w.x")}
    layout = infer(shapes, {"num_hidden_layers": 2, "vocab_size": VOCAB})
    assert layout.embeddings == names[:1]
    assert layout.heads == names[1:]


# Which key counts which stack


def test_a_patch_of_a_picture_is_no_head() -> None:
    """Though it has as many rows as there are tokens."""
    specs = {
        "model.embed_tokens.weight": TensorSpec("F32", (5, 4)),
        "model.vision_tower.patch.weight": TensorSpec("F32", (5, 4)),
        "lm_head.weight": TensorSpec("F32", (5, 4)),
    }
    layout = infer_layout(specs, {"vocab_size": 5})
    assert layout.embeddings == ("model.embed_tokens.weight",)
    assert layout.heads == ("lm_head.weight",)


def test_a_bias_of_a_tower_has_no_tokens() -> None:
    """Though it is as long as there are tokens."""
    specs = {
        "model.embed_tokens.weight": TensorSpec("F32", (5, 4)),
        "visual.merger.mlp.0.bias": TensorSpec("F32", (5,)),
        "lm_head.bias": TensorSpec("F32", (5,)),
    }
    assert infer_layout(specs, {"vocab_size": 5}).vocab_biases == ("lm_head.bias",)


def test_mamba_has_two_keys_for_its_depth() -> None:
    """Both are rewritten when the depth changes."""
    shapes = {
        "backbone.embeddings.weight": (VOCAB, HIDDEN),
        **layers("backbone.layers", 4, "mixer.A_log", "mixer.in_proj.weight", "norm.weight"),
    }
    layout = infer(shapes, {"n_layer": 4, "num_hidden_layers": 4, "vocab_size": VOCAB})
    assert key_paths(layout.stacks["backbone.layers"]) == ["n_layer", "num_hidden_layers"]


def test_two_keys_for_the_text_beside_a_vision_tower() -> None:
    """GLM-4V writes the depth of its text twice; its vision tower has a config of its own."""
    shapes = {
        "transformer.embedding.word_embeddings.weight": (VOCAB, HIDDEN),
        **layers("transformer.encoder.layers", 4, "mix.weight"),
        **layers("transformer.vision.transformer.layers", 3, "mix.weight"),
    }
    config = {
        "num_hidden_layers": 4,
        "num_layers": 4,
        "vocab_size": VOCAB,
        "vision_config": {"num_hidden_layers": 3},
    }
    layout = infer(shapes, config)
    text, vision = "transformer.encoder.layers", "transformer.vision.transformer.layers"
    assert key_paths(layout.stacks[text]) == ["num_hidden_layers", "num_layers"]
    assert key_paths(layout.stacks[vision]) == ["vision_config.num_hidden_layers"]


EQUAL_DEPTHS = [
    (
        {"encoder.block": "num_layers", "decoder.block": "num_decoder_layers"},
        {"num_layers": 3, "num_decoder_layers": 3},
    ),
    (
        {"model.encoder.layers": "encoder_layers", "model.decoder.layers": "decoder_layers"},
        {"encoder_layers": 3, "decoder_layers": 3, "num_hidden_layers": 3},
    ),
    (
        {
            "language_model.model.layers": "text_config.num_hidden_layers",
            "vision_tower.encoder.layers": "vision_config.num_hidden_layers",
        },
        {"text_config": {"num_hidden_layers": 3}, "vision_config": {"num_hidden_layers": 3}},
    ),
    (
        {"model.layers": "num_hidden_layers", "visual.blocks": "vision_config.depth"},
        {"num_hidden_layers": 3, "vision_config": {"depth": 3}},
    ),
]


@pytest.mark.parametrize(
    ("keys", "config"), EQUAL_DEPTHS, ids=["t5", "whisper", "llava", "qwen2-vl"]
)
def test_equal_depths_get_the_key_of_their_side(
    keys: dict[str, str], config: dict[str, Any]
) -> None:
    """Where the numbers do not tell, the words of the names do."""
    shapes = {
        name: shape for prefix in keys for name, shape in layers(prefix, 3, "mix.weight").items()
    }
    layout = infer(shapes, config)
    assert {p: ".".join(stack.keys[0]) for p, stack in layout.stacks.items()} == keys


def test_a_model_of_vision_alone_has_its_key() -> None:
    """ViT: there is no text that the count at the top could be about."""
    layout = infer(layers("vit.encoder.layer", 3, "mix.weight"), {"num_hidden_layers": 3})
    assert stack_rows(layout) == [("vit.encoder.layer", 3, "num_hidden_layers")]


def test_a_vision_tower_never_takes_a_key_of_the_text() -> None:
    """A tower as deep as the text, whose own key has an unknown name, has no key at all."""
    shapes = {**layers("model.layers", 4, "mix.weight"), **layers("vision.blocks", 4, "mix.weight")}
    config = {"num_hidden_layers": 4, "num_layers": 4, "vision_config": {"layers": 4}}
    assert infer(shapes, config).stacks["vision.blocks"].keys == ()


# Layers that differ


def kinds_of_layers(layout: Layout, stack: str, marks: Mapping[str, str]) -> list[str]:
    """For each layer the mark whose template it has."""
    return [
        "".join(
            mark
            for mark, template in marks.items()
            if any(r.layer == i and r.template == template for r in layout.roles.values())
        )
        for i in range(layout.stacks[stack].depth)
    ]


@pytest.mark.parametrize(
    ("name", "marks", "wanted"),
    [
        (
            "GraniteMoeHybridForCausalLM",
            {
                "m": "model.layers.{}.mamba.A_log",
                "a": "model.layers.{}.self_attn.q_proj.weight",
            },
            ["m", "a", "m"],
        ),
        (
            "Glm4MoeForCausalLM",
            {
                "d": "model.layers.{}.mlp.up_proj.weight",
                "e": "model.layers.{}.mlp.experts.0.up_proj.weight",
                "E": "model.layers.{}.mlp.experts.3.up_proj.weight",
            },
            ["d", "eE", "eE"],
        ),
        (
            "T5ForConditionalGeneration",
            {
                "b": "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight",
                "q": "encoder.block.{}.layer.0.SelfAttention.q.weight",
            },
            ["bq", "q", "q"],
        ),
    ],
)
def test_layers_of_several_kinds(
    name: str, marks: dict[str, str], wanted: list[str], layout_of: Layouts
) -> None:
    """One stack whose layers differ; only the first number of a name counts layers."""
    stack = next(iter(marks.values())).partition(".{}")[0]
    assert kinds_of_layers(layout_of(name), stack, marks) == wanted


def test_every_layer_kind_by_a_pattern() -> None:
    """Nemotron-H: mamba, MLP and attention layers share a name and not one template."""
    pattern = "M-M*-M-"
    parts = {"M": ("A_log", "in_proj"), "-": ("up_proj", "down_proj"), "*": ("q_proj", "o_proj")}
    shapes: dict[str, tuple[int, ...]] = {"backbone.embeddings.weight": (VOCAB, HIDDEN)}
    for i, kind in enumerate(pattern):
        for part in parts[kind]:
            shapes[f"backbone.layers.{i}.mixer.{part}.weight"] = (HIDDEN, HIDDEN)
    config = {
        "hybrid_override_pattern": pattern,
        "num_hidden_layers": len(pattern),
        "vocab_size": VOCAB,
    }
    layout = infer(shapes, config)
    assert stack_rows(layout) == [("backbone.layers", 7, "num_hidden_layers")]
    marks = {kind: f"backbone.layers.{{}}.mixer.{part[0]}.weight" for kind, part in parts.items()}
    assert "".join(kinds_of_layers(layout, "backbone.layers", marks)) == pattern


# Buffers

BUFFERS = [
    ("F32", (8,), "model.layers.0.self_attn.rotary_emb.inv_freq", True),
    ("BF16", (8,), "model.rotary_emb.inv_freq", True),
    ("F32", (1, 1, 64, 64), "transformer.h.0.attn.bias", True),
    ("U8", (1, 1, 64, 64), "h.0.attn.bias", True),
    ("BOOL", (1, 1, 64, 64), "gpt_neox.layers.0.attention.bias", True),
    ("F16", (1, 1, 64, 64), "gpt_neox.layers.0.attention.bias", True),
    ("F32", (), "transformer.h.0.attn.masked_bias", True),
    ("F32", (), "gpt_neox.layers.0.attention.masked_bias", True),
    ("I64", (1, 64), "bert.embeddings.position_ids", True),
    ("I64", (), "norm.num_batches_tracked", True),
    ("U32", (4, 4), "model.layers.0.mlp.up_proj.weight", True),
    ("F32", (96,), "transformer.h.0.attn.c_attn.bias", False),
    ("F32", (32,), "model.layers.0.attention.bias", False),
    ("F32", (1, 1, 3, 3), "conv.weight", False),
    ("F32", (1, 1, 3, 4), "transformer.h.0.attn.bias", False),
    ("F32", (64, 32), "transformer.wpe.weight", False),
    ("F32", (4,), "model.layers.0.mlp.gate.e_score_correction_bias", False),
    ("F8_E4M3", (4, 4), "model.layers.0.mlp.up_proj.weight", False),
]


@pytest.mark.parametrize(("dtype", "shape", "name", "wanted"), BUFFERS)
def test_buffers(dtype: str, shape: tuple[int, ...], name: str, wanted: bool) -> None:
    """Masks, positions, rotary tables and all that is not floating are computed, not trained."""
    spec = TensorSpec(dtype, shape)
    assert is_buffer(name, spec) is wanted
    assert infer_layout({name: spec}, {}).roles[name].buffer is wanted


@pytest.mark.parametrize("depth", [3, 4])
def test_parts_are_told_by_their_maps(depth: int) -> None:
    """A map with a `model_type` describes a part whatever its key; where it is called as the part is, its count is that
    part's, whatever else stands in names and however deep the others are."""
    tensors = layers("decoder.bert.encoder.layer", 4, "output.dense.weight")
    tensors |= layers("encoder.encoder.layer", depth, "output.dense.weight")
    parts = {"decoder": 4, "encoder": depth}
    layout = infer(
        tensors,
        {key: {"model_type": "bert", "num_hidden_layers": n} for key, n in parts.items()},
    )
    assert layout.modules == ("decoder", "encoder")
    for part in parts:
        stack = layout.main_stack(part)
        assert stack is not None and stack.prefix.startswith(f"{part}.")
        assert (key_paths(stack), stack.doubtful) == ([f"{part}.num_hidden_layers"], ())


def test_a_usual_count_makes_the_main_stack() -> None:
    """A short encoder of speech is that of its transformer, however many convolutions come before."""
    tensors = layers("decoder.layers", 5, "fc1.weight") | layers("encoder.layers", 3, "fc1.weight")
    tensors |= layers("encoder.conv_layers", 7, "conv.weight")
    layout = infer(tensors, {"decoder_layers": 5, "encoder_layers": 3, "num_conv_layers": 7})
    stack = layout.main_stack("encoder")
    assert stack is not None and stack.prefix == "encoder.layers"


@pytest.mark.parametrize(
    ("config", "listed"),
    [
        ({"layers_block_type": ["mamba", "moe", "attention"]}, True),
        ({"layer_types": ["a", "b", "c"]}, True),
        ({"layer_types": ["a", "b", "c"], "num_hidden_layers": 3}, False),  # a count counts
        ({"layer_types": ["a", "b"]}, False),
        ({"mtp_layers_block_type": ["a", "b", "c"]}, False),
    ],
)
def test_a_list_of_kinds_counts_layers_that_have_nothing_in_common(
    config: dict[str, Any], listed: bool
) -> None:
    """Each layer is of a kind of its own, so that names alone do not show a stack."""
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (VOCAB, HIDDEN)}
    for i, names in enumerate((("A", "D", "conv.w"), ("up.w", "down.w"), ("q.w", "k.w", "v.w"))):
        shapes |= {f"layers.{i}.mixer.{name}": (8, 8) for name in names}
    layout = infer(shapes, config)
    counted = listed or "num_hidden_layers" in config
    assert [stack.depth for stack in layout.stacks.values()] == [3] * counted
    assert [stack.listed for stack in layout.stacks.values()] == [listed] * counted
    assert (layout.main_stack("default") is not None) == counted


def test_a_key_that_names_another_list_counts_no_deeper_one() -> None:
    """Mask2Former has a layer of the decoder less than its key says, which may be as many as another list has."""
    decoder = layers("model.decoder.layers", 4, "fc1.weight")
    inner = layers("model.decoder.mask_predictor.mask_embedder", 5, "0.weight")
    layout = infer(decoder | inner, {"decoder_layers": 5})
    assert [key_paths(stack) for stack in layout.stacks.values()] == [[], []]
    layout = infer(decoder | inner, {"decoder_layers": 4})
    assert key_paths(layout.stacks["model.decoder.layers"]) == ["decoder_layers"]
    layout = infer(inner, {"decoder_layers": 5})
    assert key_paths(layout.stacks["model.decoder.mask_predictor.mask_embedder"])
    # a name of one word is of any list
    layout = infer(decoder | inner, {"num_layers": 5})
    assert key_paths(layout.stacks["model.decoder.mask_predictor.mask_embedder"])


@pytest.mark.parametrize(
    ("prefix", "key", "counted"),
    [
        ("memory_encoder.memory_fuser.layers", "memory_fuser_num_layers", True),
        ("net.predictor.layer", "pred_num_hidden_layers", True),
        ("net.conformer", "conf_num_hidden_layers", True),
        ("net.decoder.blocks", "decoder_n_blocks", True),
        ("net.bbox_embed.layers", "c2f_num_blocks", False),
        ("net.decoder_bbox_head", "decoder_num_layers", False),
        ("net.backbone.convnext", "decoder_num_layers", False),
    ],
)
def test_a_key_that_names_a_part_before_its_count(prefix: str, key: str, counted: bool) -> None:
    """It counts the layers of that part, and no list that only has as many entries."""
    layout = infer(layers(prefix, 3, "fc.weight"), {key: 3})
    assert key_paths(layout.stacks[prefix]) == [key] * counted


def test_a_part_with_a_key_of_its_own_takes_no_other() -> None:
    """SAM 3's memory has as many layers as the head of another part is deep."""
    tensors = layers("mask_decoder.layers", 4, "a.weight")
    tensors |= layers("memory_fuser.layers", 2, "b.weight")
    config = {
        "memory_fuser_num_layers": 2,
        "mask_decoder_config": {"num_hidden_layers": 4, "iou_head_depth": 2},
    }
    found = {stack.prefix: key_paths(stack) for stack in infer(tensors, config).stacks.values()}
    assert found == {
        "mask_decoder.layers": ["mask_decoder_config.num_hidden_layers"],
        "memory_fuser.layers": ["memory_fuser_num_layers"],
    }
