"""Which part of a model a tensor belongs to, for sums and charts: attention, mlp, norm, embedding, head, ..."""

from __future__ import annotations

import re

from jmerge.arch.infer import NUMBER, Layout, Role

EMBEDDING, HEAD, BUFFER, OTHER = "embedding", "head", "buffer", "other"

# The first row with a pattern that is found in the words of a name decides.
PARTS = (
    ("norm", re.compile(r"norm(?!aliz)|(^|[._])ln(_?\w)?[._]", re.IGNORECASE)),
    ("router", re.compile(r"(^|\.)(router|gate|shared_expert_gate|wg)(\.(?!\d)|$)")),
    ("experts", re.compile(r"(^|[._])(shared_)?experts?([._]|$)")),
    (
        "recurrent",  # state spaces, linear attention, short convolutions
        re.compile(r"(^|\.)(mamba|mixer|ssm|linear_attn|recurrent\w*|rglru|rwkv|conv)(\.|$)"),
    ),
    (
        "attention",
        re.compile(
            r"attn|attention|(^|[._])(sa|qkv|[qkvo]_proj|query|key|value)([._]|$)", re.IGNORECASE
        ),
    ),
    (
        "mlp",
        re.compile(
            r"(^|[._])(mlp|ffn?|feed_forward|fc\d?|fc_in|fc_out|intermediate|dense\w*|lin\d|wi\w*|wo|w[123]"
            r"|(gate|up|down|gate_up)_proj)([._]|$)",
            re.IGNORECASE,
        ),
    ),
)
# How parts follow each other where there is room for all.
ROW_ORDER = ("attention", "recurrent", "router", "experts", "mlp", "norm", OTHER, BUFFER)
EMBEDDINGS = re.compile(
    r"embed|(^|\.)(wte|wpe|shared|conv1|patch_\w*|class_embedding)(\.|$)", re.IGNORECASE
)
HEADS = re.compile(r"(^|\.)(lm_head|score|classifier|pooler|cls|qa_outputs|proj_out)(\.|$)")


def parts_of(layout: Layout) -> dict[str, str]:
    """The part of every tensor: `embedding`, `head`, `buffer`, a name in `PARTS`, or `other`."""
    tables = dict.fromkeys((*layout.heads, *layout.vocab_biases), HEAD)
    tables |= dict.fromkeys(layout.embeddings, EMBEDDING)
    return {
        name: BUFFER if role.buffer else tables.get(name) or _part(role)
        for name, role in layout.roles.items()
    }


def _part(role: Role) -> str:
    inner = _inside(role)
    if PARTS[0][1].search(inner):
        return PARTS[0][0]
    if role.stack is None:
        if EMBEDDINGS.search(inner):
            return EMBEDDING
        if HEADS.search(inner):
            return HEAD
    return next((part for part, pattern in PARTS if pattern.search(inner)), OTHER)


def row_of(role: Role) -> str:
    """What a tensor is called among those of its layer, or of no layer: without the layer's number and `.weight`, and
    with `*` for all experts."""
    inner = _inside(role).removesuffix(".weight")
    return NUMBER.sub("*", inner) if role.stack is not None else inner


def _inside(role: Role) -> str:
    """Its name after the layer's number; whole outside layers."""
    return role.template.partition("{}")[2].lstrip(".") if role.stack is not None else role.template
