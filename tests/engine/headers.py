"""Plans of headers alone, nothing they name exists; and checkpoints whose data are holes."""

from __future__ import annotations

import json
from pathlib import Path

from jmerge.ckpt.shards import index_json, plan_files
from jmerge.dtypes import TensorSpec
from jmerge.plan.inputs import Read, Result
from jmerge.plan.steps import InputModel, Plan, Step


def source(model: int, name: str, spec: TensorSpec, start: int = 0) -> Read:
    return Read(model=model, name=name, file="model.safetensors", start=start, spec=spec)


def linear(
    name: str, *inputs: Read | Result, written: bool = True, spec: TensorSpec | None = None
) -> Step:
    return Step(
        name=name,
        spec=spec or inputs[0].spec,
        inputs=inputs,
        base=None,
        method="linear",
        hyperparameters={"weight": (1.0,) * len(inputs), "normalize": True},
        t=0.0,
        written=written,
    )


def plan_of(*steps: Step) -> Plan:
    return Plan(
        version="test",
        recipe="",
        method="linear",
        seed=0,
        models=tuple(InputModel(ref=f"m{i}", path=f"/nowhere/m{i}", files=()) for i in range(3)),
        steps=steps,
        unused=(),
        config={},
        changes=(),
        tied=None,
        warnings=(),
    )


def result(step: Step) -> Result:
    return Result(step=step.name, spec=step.spec)


def pair(name: str, elements: int, dtype: str = "BF16", start: int = 0) -> Step:
    spec = TensorSpec(dtype, (elements,))
    return linear(name, source(0, name, spec, start), source(1, name, spec, start))


def hollow(
    folder: Path, specs: dict[str, TensorSpec], config: dict[str, object] | None = None
) -> Path:
    """A checkpoint whose data are holes: any size, no disk."""
    folder.mkdir(parents=True, exist_ok=True)
    files = plan_files(specs, 5 * 10**9)
    for file in files:
        with (folder / file.name).open("wb") as out:
            out.write(file.header)
            out.truncate(file.size)
    if (index := index_json(files, specs, "test")) is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config or {}))
    return folder


def llama_specs(layers: int, hidden: int, inner: int, vocab: int) -> dict[str, TensorSpec]:
    def spec(*shape: int) -> TensorSpec:
        return TensorSpec("BF16", shape)

    specs = {"model.embed_tokens.weight": spec(vocab, hidden)}
    for i in range(layers):
        prefix = f"model.layers.{i}"
        specs |= {f"{prefix}.self_attn.{name}_proj.weight": spec(hidden, hidden) for name in "qkvo"}
        specs |= {
            f"{prefix}.mlp.gate_proj.weight": spec(inner, hidden),
            f"{prefix}.mlp.up_proj.weight": spec(inner, hidden),
            f"{prefix}.mlp.down_proj.weight": spec(hidden, inner),
            f"{prefix}.input_layernorm.weight": spec(hidden),
            f"{prefix}.post_attention_layernorm.weight": spec(hidden),
        }
    return specs | {"model.norm.weight": spec(hidden), "lm_head.weight": spec(vocab, hidden)}


def hollow_llama(folder: Path, layers: int, hidden: int, inner: int, vocab: int = 32000) -> Path:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "vocab_size": vocab,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    return hollow(folder, llama_specs(layers, hidden, inner, vocab), config)
