"""Train the three small models that `configs/quickstart.yml` merges: a base and two specialists.

The base is a Llama-shaped language model of 0.9 M parameters, trained for a short time on two kinds
of text that every Python installation carries: the topics of its documentation (prose) and the
source of its standard library (code). Each specialist is trained on from the base with one kind,
gets better at it and forgets some of the other. The base plus half of both changes is better over
both kinds than any of the three, which is what the merge is there to show.

Model, loss and step are pure functions of arrays (flax.nnx, optax). The same seed on the same
machine and Python gives the same weights. A few minutes on two idle cores:

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import numpy.typing as npt
import optax  # type: ignore[import-untyped]
import optax.contrib  # type: ignore[import-untyped]
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jmerge.testing.tiny import write_checkpoint

CONTEXT = 128  # tokens, in training and in evaluation
BATCH = 8
WIDTH, INNER, LAYERS, HEADS, GROUPS, HEAD = 128, 352, 4, 4, 2, 32
VOCABULARY = 1536
EPSILON = 1e-5
THETA = 10000.0
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": HEAD,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": EPSILON,
    "rope_theta": THETA,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}
END = "<|endoftext|>"  # stands between documents; its id is 0
DOMAINS = ("prose", "code")
HELD_OUT = 45_000  # characters of each domain: documents are taken until there are so many
HELD_OUT_SIZES = range(2_000, 8_000)  # characters of one held-out document
# Tests, tables and programs, which are not what the rest of the library is like.
SKIP = {"test", "idlelib", "lib2to3", "encodings", "pydoc_data", "turtledemo", "ensurepip"}
PARAGRAPH = re.compile(r"\n\s*?\n")
WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7)  # of the specialists' changes, tried at the end

Tensors = dict[str, jax.Array]
Tokens = npt.NDArray[np.int32]
Logits = Callable[[Tensors, jax.Array], jax.Array]


# The model. Attributes have transformers' names and weights its layout (outputs first), so that a
# parameter's path is its name in the checkpoint.


class Linear(nnx.Module):
    """A matrix without a bias; also the embedding, whose rows are looked up."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, scale: float = 1.0) -> None:
        first = jax.random.normal(rngs.params(), (outputs, inputs))
        self.weight = nnx.Param(scale / math.sqrt(inputs) * first)

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.einsum("...i,oi->...o", x, self.weight[...])


class Norm(nnx.Module):
    """RMSNorm: scaled to a root mean square of one, then by the weight."""

    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.ones(WIDTH))

    def __call__(self, x: jax.Array) -> jax.Array:
        mean = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(mean + EPSILON) * self.weight[...][None, None]


class Attention(nnx.Module):
    """Causal attention with rotary positions; each key-value head serves a group of heads."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.q_proj = Linear(WIDTH, HEADS * HEAD, rngs)
        self.k_proj = Linear(WIDTH, GROUPS * HEAD, rngs)
        self.v_proj = Linear(WIDTH, GROUPS * HEAD, rngs)
        self.o_proj = Linear(HEADS * HEAD, WIDTH, rngs, 0.0)  # a block begins as the identity

    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*x.shape[:2], -1, HEAD)
        q, k, v = (f(x).reshape(shape) for f in (self.q_proj, self.k_proj, self.v_proj))
        mixed = jax.nn.dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.o_proj(mixed.reshape(*x.shape[:2], -1))


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions of (batch, place, head, HEAD); transformers pairs x[i] and x[i + HEAD/2]."""
    rates = THETA ** (-np.arange(HEAD // 2, dtype=np.float32) / (HEAD // 2))
    angles = np.arange(x.shape[1], dtype=np.float32)[:, None] * rates[None]
    cos, sin = np.cos(angles)[None, :, None], np.sin(angles)[None, :, None]
    left, right = x[..., : HEAD // 2], x[..., HEAD // 2 :]
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)


class MLP(nnx.Module):
    """SwiGLU."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.gate_proj = Linear(WIDTH, INNER, rngs)
        self.up_proj = Linear(WIDTH, INNER, rngs)
        self.down_proj = Linear(INNER, WIDTH, rngs, 0.0)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    """Attention, then the MLP, each over a normed input and added to it."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.input_layernorm = Norm()
        self.self_attn = Attention(rngs)
        self.post_attention_layernorm = Norm()
        self.mlp = MLP(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nnx.Module):
    """Logits (batch, place, vocabulary) of tokens; the embedding is the head as well (tied)."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed_tokens = Linear(WIDTH, VOCABULARY, rngs)
        self.layers = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.norm = Norm()

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.embed_tokens.weight[...][tokens]
        for layer in self.layers:
            x = layer(x)
        return self.embed_tokens(self.norm(x))


def build(seed: int) -> tuple[Logits, Tensors]:
    """The model as a pure function of tensors and tokens, and its first tensors, by HF name."""
    graph, state = nnx.split(Llama(nnx.Rngs(params=seed)))
    flat = nnx.to_flat_state(state)
    paths = {"model." + ".".join(map(str, path)): path for path, _ in flat}

    def logits(tensors: Tensors, tokens: jax.Array) -> jax.Array:
        values = [(path, nnx.Param(tensors[name])) for name, path in paths.items()]
        out: jax.Array = nnx.merge(graph, nnx.from_flat_state(values))(tokens)
        return out

    return logits, {name: x[...] for name, (_, x) in zip(paths, flat, strict=True)}


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

    Which are held out follows from their names, so it moves neither with the seed nor, for the most
    part, with Python's version. Topics quote each other and modules share notices: a paragraph of
    the held-out documents, or one seen before, is taken out of the texts to train on.
    """
    everything = dict(documents(domain))
    held: dict[str, str] = {}
    for name in sorted(everything, key=lambda name: sha256(name.encode()).digest()):
        if sum(map(len, held.values())) < HELD_OUT and len(everything[name]) in HELD_OUT_SIZES:
            held[name] = everything.pop(name)
    seen = {part for text in held.values() for part in PARAGRAPH.split(text)}
    train = []
    for text in everything.values():
        parts = [part for part in PARAGRAPH.split(text) if len(part) < 40 or part not in seen]
        seen.update(parts)
        train.append("\n\n".join(parts))
    return held, train


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Byte-level BPE, as GPT-2's: any text has tokens, and the tokens give it back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokens:
    """The texts as one stream, `END` between them; each row is a place's CONTEXT + 1 tokens."""
    stream = [token for each in tokenizer.encode_batch(texts) for token in (*each.ids, 0)][:-1]
    return np.lib.stride_tricks.sliding_window_view(np.array(stream, np.int32), CONTEXT + 1)


# The training.


# Muon for the matrices, for it learns in far fewer steps than Adam; Adam for embedding and norms.
# Both move in proportion to their rate, so the rate of a step can be a factor of its changes.
OPTIMIZER = optax.multi_transform(
    {True: optax.contrib.muon(1.0), False: optax.adam(0.5, b2=0.95)},
    lambda tensors: {n: x.ndim == 2 and "embed" not in n for n, x in tensors.items()},
)


def cross_entropy(logits: Logits, tensors: Tensors, rows: jax.Array) -> jax.Array:
    """The mean loss in nats of predicting every token of the rows but the first of each."""
    found = logits(tensors, rows[:, :-1])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(found, rows[:, 1:]))


@partial(jax.jit, static_argnums=0)
def step(
    logits: Logits, tensors: Tensors, state: Any, rows: jax.Array, rate: float
) -> tuple[Tensors, Any, jax.Array]:
    """One step: the tensors and the optimizer's state after it, and the loss before it."""
    loss, slopes = jax.value_and_grad(partial(cross_entropy, logits))(tensors, rows)
    changes, state = OPTIMIZER.update(slopes, state, tensors)
    return {name: x + rate * changes[name] for name, x in tensors.items()}, state, loss


def train(
    name: str,
    logits: Logits,
    tensors: Tensors,
    streams: Sequence[Tokens],
    rates: Sequence[float],
    rng: np.random.Generator,
) -> tuple[Tensors, dict[str, Any]]:
    """Take a step for each rate, on random rows, as many from each stream; and keep a record."""
    started = time.perf_counter()
    state = OPTIMIZER.init(tensors)
    losses, seconds = {}, 0.0
    recent: list[jax.Array] = []
    for i, rate in enumerate(rates, start=1):
        rows = [each[rng.integers(0, len(each), BATCH // len(streams))] for each in streams]
        batch = jnp.asarray(np.concatenate(rows))
        tensors, state, loss = step(logits, tensors, state, batch, rate)
        recent.append(loss)
        if i % 50 == 0 or i == len(rates):
            losses[i] = round(float(np.mean(recent)), 4)
            seconds = round(time.perf_counter() - started, 1)
            print(f"{name}: step {i} of {len(rates)}, loss {losses[i]}, {seconds} s", flush=True)
            recent.clear()
    return rounded(tensors), {"steps": len(rates), "seconds": seconds, "loss": losses}


def rounded(tensors: Tensors) -> Tensors:
    """The float32 values of what a bf16 checkpoint of these tensors holds."""
    return {name: x.astype(jnp.bfloat16).astype(jnp.float32) for name, x in tensors.items()}


# The files.


def write_model(folder: Path, tensors: Tensors, tokenizer: Tokenizer) -> None:
    """A checkpoint in bf16 that transformers loads, tokenizer included."""
    special = {"bos_token": END, "eos_token": END}
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    arrays = {name: np.asarray(x).astype(ml_dtypes.bfloat16) for name, x in tensors.items()}
    write_checkpoint(folder, arrays, CONFIG)
    write_json(folder / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 0})
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "tokenizer_config.json", special | about)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_json(path: Path, value: Any) -> None:
    """JSON as a person reads it, ending in a newline."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train the three models, and write them with their record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("configs/quickstart"), metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=800, help="the base's; specialists take 3/10")
    parser.add_argument("--seed", type=int, default=0)
    out, steps, seed = (vars(parser.parse_args())[key] for key in ("out", "steps", "seed"))
    jax.config.update("jax_platforms", "cpu")
    started = time.perf_counter()

    held, texts = zip(*map(split, DOMAINS), strict=True)
    tokenizer = train_tokenizer([*texts[0], *texts[1][::20]])  # about as much of either
    streams = [encode(tokenizer, each) for each in texts]
    (out / "heldout").mkdir(parents=True, exist_ok=True)
    rows = {}
    for domain, chosen in zip(DOMAINS, held, strict=True):
        text = END.join(chosen.values())
        (out / "heldout" / f"{domain}.txt").write_text(text, encoding="utf-8", newline="")
        rows[domain] = jnp.asarray(encode(tokenizer, [text])[::CONTEXT])

    logits, first = build(seed)
    rng = np.random.default_rng(seed)
    # The base stops while its rate is high, so that both specialists have something left to find.
    rates = [1.5e-2 * min(i / 20, 1.0) for i in range(1, steps + 1)]
    base, record = train("base", logits, first, streams, rates, rng)
    found, records = {"base": base}, {"base": record}
    after = max(3 * steps // 10, 1)
    rates = [5e-3 * (1 - i / after) for i in range(after)]
    for domain, stream in zip(DOMAINS, streams, strict=True):
        found[domain], records[domain] = train(domain, logits, base, [stream], rates, rng)
    for name, tensors in found.items():
        write_model(out / name, tensors, tokenizer)

    both = {name: found["prose"][name] + found["code"][name] - 2 * base[name] for name in base}
    for (
        weight
    ) in WEIGHTS:  # task arithmetic, to see which weight serves; the recipe has jmerge do it
        found[f"merged {weight}"] = rounded({n: x + weight * both[n] for n, x in base.items()})
    loss = jax.jit(partial(cross_entropy, logits))
    table = {}
    for name, tensors in found.items():
        each = {domain: round(float(loss(tensors, rows[domain])), 4) for domain in DOMAINS}
        table[name] = each | {"mean": round(sum(each.values()) / len(each), 4)}
        print(f"{name:10}", *(f"{key} {value:.4f}" for key, value in table[name].items()))
    libraries = ("jax", "flax", "optax", "tokenizers", "numpy")
    summary = {
        "seed": seed,
        "steps": steps,
        "parameters": sum(x.size for x in first.values()),
        "batch": BATCH,
        "context": CONTEXT,
        "seconds": round(time.perf_counter() - started, 1),
        "training": records,
        "heldout_loss": table,
        "heldout_documents": dict(zip(DOMAINS, map(list, held), strict=True)),
        "versions": {"python": platform.python_version()} | {n: version(n) for n in libraries},
    }
    write_json(out / "training.json", summary)


if __name__ == "__main__":
    main()
