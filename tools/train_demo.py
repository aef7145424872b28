"""Train the three small models that `configs/quickstart.yml` merges: a base and two specialists.

The base is a Llama-shaped language model of 0.9 M parameters, trained for a short time on two kinds
of text that every Python installation carries: the topics of its documentation (prose) and the
source of its standard library (code). Each specialist is trained on from the base with one kind,
gets better at it and forgets some of the other. The base plus half of both changes is better over
both kinds than any of the three, which is what the merge is there to show.

Model, loss and step are pure functions of arrays (flax.nnx, optax). The same seed on the same machine
and Python gives the same weights. Less than five minutes on two idle cores:

    python tools/train_demo.py --out configs/quickstart --steps 800 --seed 0
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import pydoc_data.topics
import re
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax  # type: ignore[import-untyped]
import optax.contrib  # type: ignore[import-untyped]
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jmerge.testing.tiny import write_checkpoint

DOMAINS = ("prose", "code")
END = "<|endoftext|>"  # stands between documents; its id is 0
HELD_OUT = (
    45_000  # characters of held-out text a domain: documents are taken until there are so many
)
HELD_OUT_SIZES = range(2_000, 8_000)  # characters of one held-out document
PARAGRAPH = re.compile(r"\n\s*?\n")
SKIP = {"test", "idlelib", "lib2to3", "encodings", "pydoc_data", "turtledemo", "ensurepip"}
BATCH = 8
WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7, 1.0)  # of the specialists' changes, tried at the end

Tensors = dict[str, jax.Array]
Logits = Callable[[Tensors, jax.Array], jax.Array]


@dataclass(frozen=True)
class Sizes:
    """The shape of the model, in the words of Llama's config.json."""

    vocab_size: int = 1536
    hidden_size: int = 128
    intermediate_size: int = 352
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    max_position_embeddings: int = 128  # the context, in training and in evaluation
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0


# The model. Attributes are named as transformers names them and weights are laid out as it lays them
# out (outputs first), so that a parameter's path is its name in the checkpoint.


class Linear(nnx.Module):
    """A matrix without a bias; also the embedding, whose rows are looked up."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, scale: float = 1.0) -> None:
        first = jax.random.normal(rngs.params(), (outputs, inputs))
        self.weight = nnx.Param(scale / math.sqrt(inputs) * first)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.einsum("...i,oi->...o", x, self.weight[...])


class Norm(nnx.Module):
    """RMSNorm: scaled to a root mean square of one, then by the weight."""

    def __init__(self, sizes: Sizes) -> None:
        self.epsilon = sizes.rms_norm_eps
        self.weight = nnx.Param(jnp.ones(sizes.hidden_size))

    def __call__(self, x: jax.Array) -> jax.Array:
        mean = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(mean + self.epsilon) * self.weight[...][None, None]


class Attention(nnx.Module):
    """Causal attention with rotary positions; each key-value head serves a group of heads."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        width, self.groups, self.dim = sizes.hidden_size, sizes.num_key_value_heads, sizes.head_dim
        self.theta = sizes.rope_theta
        self.q_proj = Linear(width, width, rngs)
        self.k_proj = Linear(width, self.groups * self.dim, rngs)
        self.v_proj = Linear(width, self.groups * self.dim, rngs)
        self.o_proj = Linear(width, width, rngs, 0.0)  # a block begins as the identity

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, length, width = x.shape
        shape = (batch, length, self.groups, -1, self.dim)
        q = rotate(self.q_proj(x).reshape(shape), self.theta)
        k = rotate(self.k_proj(x).reshape(shape), self.theta)[:, :, :, 0]
        v = self.v_proj(x).reshape(shape)[:, :, :, 0]
        scores = jnp.einsum("bqghd,bkgd->bghqk", q, k) / math.sqrt(self.dim)
        causal = jnp.tril(jnp.ones((length, length), bool))[None, None, None]
        weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf), axis=-1)
        return self.o_proj(
            jnp.einsum("bghqk,bkgd->bqghd", weights, v).reshape(batch, length, width)
        )


def rotate(x: jax.Array, theta: float) -> jax.Array:
    """Rotary positions of (batch, length, group, head, dim), in halves as transformers pairs them."""
    half = x.shape[-1] // 2
    rates = theta ** (-np.arange(half, dtype=np.float32) / half)
    angles = np.arange(x.shape[1], dtype=np.float32)[:, None] * rates[None]
    cos, sin = (f(angles).astype(np.float32)[None, :, None, None] for f in (np.cos, np.sin))
    left, right = x[..., :half], x[..., half:]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


class MLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        self.gate_proj = Linear(sizes.hidden_size, sizes.intermediate_size, rngs)
        self.up_proj = Linear(sizes.hidden_size, sizes.intermediate_size, rngs)
        self.down_proj = Linear(sizes.intermediate_size, sizes.hidden_size, rngs, 0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    """Attention, then the MLP, each over a normed input and added to it."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        self.input_layernorm = Norm(sizes)
        self.self_attn = Attention(sizes, rngs)
        self.post_attention_layernorm = Norm(sizes)
        self.mlp = MLP(sizes, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nnx.Module):
    """The part of the names that begins with `model.`; the embedding is the head as well (tied)."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        self.embed_tokens = Linear(sizes.hidden_size, sizes.vocab_size, rngs)
        self.layers = nnx.List([Block(sizes, rngs) for _ in range(sizes.num_hidden_layers)])
        self.norm = Norm(sizes)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed_tokens.weight[...][tokens]
        for layer in self.layers:
            x = layer(x)
        return self.embed_tokens(self.norm(x))


class Llama(nnx.Module):
    """LlamaForCausalLM: logits (batch, length, vocabulary) of tokens (batch, length)."""

    def __init__(self, sizes: Sizes, rngs: nnx.Rngs) -> None:
        self.model = Body(sizes, rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        logits: jax.Array = self.model(tokens)
        return logits


def build(sizes: Sizes, seed: int) -> tuple[Logits, Tensors]:
    """The model as a pure function of tensors and tokens, and its first tensors, by HF name."""
    graph, state = nnx.split(Llama(sizes, nnx.Rngs(params=seed)))
    first = {".".join(map(str, path)): x[...] for path, x in state.flat_state()}
    paths = dict(zip(first, (path for path, _ in state.flat_state()), strict=True))

    def logits(tensors: Tensors, tokens: jax.Array) -> jax.Array:
        values = {path: nnx.Param(tensors[name]) for name, path in paths.items()}
        out: jax.Array = nnx.merge(graph, nnx.State.from_flat_path(values))(tokens)
        return out

    return logits, first


# The text.


def documents(domain: str) -> Iterator[tuple[str, str]]:
    """Each document of a domain with its name: a topic, or a module of the standard library."""
    if domain == "prose":
        yield from sorted(pydoc_data.topics.topics.items())
        return
    library = Path(sysconfig.get_path("stdlib"))
    for module in sorted(sys.stdlib_module_names - SKIP):
        for file in sorted((*library.glob(f"{module}.py"), *library.glob(f"{module}/**/*.py"))):
            name = file.relative_to(library)
            if not {"test", "tests"} & set(name.parts):
                yield name.as_posix(), file.read_text(encoding="utf-8")


def split(domain: str) -> tuple[dict[str, str], list[str]]:
    """The held-out documents by name, and the texts to train on.

    Which are held out follows from their names alone, so it moves neither with the seed nor, where
    a document stays, with Python's version. Topics quote each other and modules share notices, so a
    paragraph of the held-out documents, or one seen before, is taken out of the text to train on.
    """
    everything = dict(documents(domain))
    held: dict[str, str] = {}
    for name in sorted(everything, key=lambda name: sha256(name.encode()).digest()):
        if sum(map(len, held.values())) < HELD_OUT and len(everything[name]) in HELD_OUT_SIZES:
            held[name] = everything[name]
    seen = {part for text in held.values() for part in PARAGRAPH.split(text)}
    train = []
    for name, text in everything.items():
        if name not in held:
            parts = [p for p in PARAGRAPH.split(text) if len(p) < 40 or p not in seen]
            seen.update(parts)
            train.append("\n\n".join(parts))
    return held, train


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Byte-level BPE, as GPT-2's: any text has tokens, and the tokens give it back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """One stream of tokens, with `END` between the texts."""
    return np.array([i for e in tokenizer.encode_batch(texts) for i in (*e.ids, 0)][:-1], np.int32)


def rows_at(stream: np.ndarray, starts: np.ndarray, context: int) -> np.ndarray:
    """Rows of context + 1 tokens, so that every place of the context has a token to predict."""
    rows: np.ndarray = stream[starts[:, None] + np.arange(context + 1)[None]]
    return rows


def all_rows(stream: np.ndarray, context: int) -> jax.Array:
    """The whole stream in rows, each beginning with the last token of the one before."""
    return jnp.asarray(rows_at(stream, np.arange(0, len(stream) - context, context), context))


# The training.


def cross_entropy(logits: Logits, tensors: Tensors, rows: jax.Array) -> jax.Array:
    """The mean loss in nats of predicting every token of the rows but the first of each."""
    found = logits(tensors, rows[:, :-1])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(found, rows[:, 1:]))


def train(
    name: str,
    logits: Logits,
    tensors: Tensors,
    streams: Sequence[np.ndarray],
    rate: Callable[[int], float],
    *,
    steps: int,
    seed: int,
    context: int,
) -> tuple[Tensors, dict[str, Any]]:
    """Train on random rows, as many from each stream in every batch; with a record of the losses.

    Muon turns the matrices (a third of the steps of Adam here), Adam the embedding and the norms.
    """
    started = time.perf_counter()
    kinds = {n: "muon" if x.ndim == 2 and "embed" not in n else "adam" for n, x in tensors.items()}
    rules = {
        "muon": optax.contrib.muon(rate),
        "adam": optax.adam(lambda count: rate(count) / 2, b2=0.95),
    }
    optimizer = optax.multi_transform(rules, kinds)

    @jax.jit
    def step(tensors: Tensors, state: Any, rows: jax.Array) -> tuple[Tensors, Any, jax.Array]:
        loss, slopes = jax.value_and_grad(partial(cross_entropy, logits))(tensors, rows)
        changes, state = optimizer.update(slopes, state, tensors)
        return optax.apply_updates(tensors, changes), state, loss

    rng = np.random.default_rng([seed, *name.encode()])
    state = optimizer.init(tensors)
    recent: list[jax.Array] = []
    losses = {}
    for i in range(1, steps + 1):
        rows = []
        for stream in streams:
            starts = rng.integers(0, len(stream) - context, BATCH // len(streams))
            rows.append(rows_at(stream, starts, context))
        tensors, state, loss = step(tensors, state, jnp.asarray(np.concatenate(rows)))
        recent.append(loss)
        if i % 50 == 0 or i == steps:
            losses[i] = round(float(np.mean(recent)), 4)
            took = round(time.perf_counter() - started, 1)
            print(f"{name}: step {i} of {steps}, loss {losses[i]:.3f}, {took:.0f} s", flush=True)
            recent.clear()
    return tensors, {"steps": steps, "seconds": took, "loss": losses}


def rounded(tensors: Mapping[str, jax.Array]) -> Tensors:
    """The float32 values of what a bf16 checkpoint of these tensors holds."""
    return {name: x.astype(jnp.bfloat16).astype(jnp.float32) for name, x in tensors.items()}


def merge(base: Tensors, specialists: Sequence[Tensors], weight: float) -> Tensors:
    """Task arithmetic in three lines, to see which weight serves; jmerge does it for the recipe."""
    return rounded({n: x + weight * sum(s[n] - x for s in specialists) for n, x in base.items()})


# The files.


def write_model(folder: Path, tensors: Tensors, tokenizer: Tokenizer, sizes: Sizes) -> None:
    """A checkpoint in bf16 that transformers loads, tokenizer included."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **asdict(sizes),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "bfloat16",
    }
    special = {"bos_token": END, "eos_token": END}
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": sizes.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
    arrays = {name: np.asarray(x).astype(ml_dtypes.bfloat16) for name, x in tensors.items()}
    write_checkpoint(folder, arrays, config)
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", special | about)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("configs/quickstart"), metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=800, help="the base's; specialists take 3/10")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out, steps, seed = options.out, options.steps, options.seed
    jax.config.update("jax_platforms", "cpu")  # whatever else is there: the numbers are the CPU's
    started = time.perf_counter()

    sizes = Sizes()
    context = sizes.max_position_embeddings
    held, texts = {}, {}
    for domain in DOMAINS:
        held[domain], texts[domain] = split(domain)
    tokenizer = train_tokenizer(texts["prose"] + texts["code"][::20], sizes.vocab_size)
    streams = {domain: encode(tokenizer, texts[domain]) for domain in DOMAINS}
    (out / "heldout").mkdir(parents=True, exist_ok=True)
    rows = {}
    for domain, parts in held.items():
        text = END.join(parts.values())
        (out / "heldout" / f"{domain}.txt").write_text(text, encoding="utf-8", newline="")
        rows[domain] = all_rows(encode(tokenizer, [text]), context)
        print(f"{domain}: {len(streams[domain])} tokens, {rows[domain].size} held out", flush=True)

    logits, first = build(sizes, seed)
    run = partial(train, seed=seed, context=context)
    # The base stops while its rate is high, so there is something left for both specialists to find.
    rate = optax.linear_schedule(0.0, 1.5e-2, 20)
    trained, record = run("base", logits, first, list(streams.values()), rate, steps=steps)
    found, records = {"base": rounded(trained)}, {"base": record}
    after = max(3 * steps // 10, 1)
    rate = optax.linear_schedule(5e-3, 0.0, after)
    for domain in DOMAINS:
        args = (domain, logits, found["base"], [streams[domain]], rate)
        trained, records[domain] = run(*args, steps=after)
        found[domain] = rounded(trained)

    loss = jax.jit(partial(cross_entropy, logits))
    candidates = dict(found)
    for weight in WEIGHTS:
        parts = [found[domain] for domain in DOMAINS]
        candidates[f"merged, weights {weight}"] = merge(found["base"], parts, weight)
    table = {}
    for name, tensors in candidates.items():
        each = {domain: round(float(loss(tensors, rows[domain])), 4) for domain in DOMAINS}
        table[name] = each | {"mean": round(sum(each.values()) / len(each), 4)}
        print(f"{name:20}", *(f"{key} {value:.4f}" for key, value in table[name].items()))
    for name, tensors in found.items():
        write_model(out / name, tensors, tokenizer, sizes)
    libraries = ("jax", "flax", "optax", "tokenizers", "numpy")
    record = {
        "seed": seed,
        "parameters": sum(x.size for x in first.values()),
        "batch": BATCH,
        "context": context,
        "seconds": round(time.perf_counter() - started, 1),
        "training": records,
        "heldout_loss": table,
        "heldout_documents": {domain: list(held[domain]) for domain in DOMAINS},
        "versions": {"python": platform.python_version()} | {n: version(n) for n in libraries},
    }
    write_json(out / "training.json", record)


if __name__ == "__main__":
    main()
