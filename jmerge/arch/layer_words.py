"""What names of fields in config.json say of layers: which count them, number them, list them, or tell how they repeat."""

from __future__ import annotations

import re

LAYER = r"(layers?|blocks?)"
COUNT = re.compile(rf"(\w+_)?(layers|blocks|depth)|(n|num)_(\w+_)?{LAYER}|{LAYER}_(count|num)")
# Counts of these are of other things, which only sound like layers.
NOT_COUNT = re.compile(
    r".*(random|topk|local|per_|max_|min_|drop|freeze|_id).*(layers?|blocks?|depth)|.*per_\w+"
)
NUMBER = re.compile(
    rf"(\w+_)?{LAYER}(_(id|idx|index|num|number|start|end))*|(\w+_)?{LAYER}_(\w+_)?(id|idx|index|start|end)"
)
NUMBERS = re.compile(
    rf"(\w+_)?(idx|idxs|indexes|indices|indexs)|(\w+_)?{LAYER}|{LAYER}_\w+|\w*{LAYER}_?(ids?|nums?|numbers?)|return_idx"
)
# Counts of what is called so by a word are of other things, unless the word is of a kind of layers (`num_dense_blocks`)
# or of a side (`t2u_decoder_layers`).
OF_ANOTHER = re.compile(
    r"(?!.*(attn|attention|moe|expert|dense|sparse|mlp|mamba|ssm|linear|recurrent|window|local|global|sliding|full"
    r"|hybrid|shared?|kv|cross|self|encoder|decoder)).+"
)
SPANS = re.compile(rf".*({LAYER}|range|span|group|segment).*")
# Layers of a kind, of which any number may be; other lists of numbers name layers from which something is taken.
MEMBERS = re.compile(
    r".*(attn|attention|window|global|local|rope|moe|dense|sparse|mlp|linear|mamba|conv|residual|sliding|full|hybrid"
    r"|expert|skip|swa|kda|ssm|recurrent|block_ind)\w*"
)
TAPS = re.compile(
    r".*(out|feature|visual|vision|intermediate|extract|target|return|hook|select|hidden|source)\w*"
)
PERIOD = re.compile(
    r".*(every_?n?|interval|period|frequency|freq|step|stride|modulo)(_\w+)?|.*_(every|per)_n(_\w+)?|.*group_size"
    r"|.*layers?_per_\w+"
)
OF_LAYERS = re.compile(
    r".*(layer|block|attn|attention|moe|expert|sparse|dense|global|local|sliding|mamba|hybrid|rope_every|nope).*"
)
NOT_PERIOD = re.compile(
    r".*(time|frame|base|factor|rope_\w*freq|max_period|min_period|frequency_|dim|quant|kernel|conv).*"
)
SHARE = re.compile(
    r"(?!.*(mlp|ffn|drop|expan|hidden|head|mask|intermediate)).*(layer|block|depth|hybrid|linear|mamba|global|local|sliding|full_att\w*)"
    r"\w*(ratio|fraction|share|portion|percent)|.*(ratio|fraction)_of_\w*(layers|blocks)"
)
BY_NUMBER = re.compile(
    r".*by_(\w+_)?layer(_(idx|id|index|number|depth))?|.*layer_(idx|index)_scal\w+"
)
# Of switches: every second layer does it (`stagger_local_blocks`). What is interleaved may be pairs of rope's columns.
ALTERNATING = re.compile(
    r"(?!.*(rope|pair|dim|channel|token|head)).*(stagger|alternat(?!iv)|every_(other|second)|(?<![a-z])(odd|even)_)\w*"
    rf"|(?!.*(rope|pair|dim|channel|token|head)).*interleav\w*_({LAYER}|attn|attention|windows?)"
)
# Of counts: some layers have something added, spread over all of them
ADDED = re.compile(rf"(\w+_)?(add|added|insert|inserted|inject|injected)_{LAYER}")
FIRST = re.compile(r".*(first|initial|prefix|leading|early|bottom).*")
LAST = re.compile(r".*(last|final|suffix|trailing|late|top).*")
KINDS = re.compile(r".*(types?|kinds?|pattern|layout|schedule|layers?|blocks?)")
# Lists as long as the stack that are its layers' whatever else the config counts
PER_LAYER = re.compile(
    r".*(layer|block(?!_sizes)|per_|pattern|types?$|kinds?$|sliding|rope|nope|activation|attn|attention|moe|expert|mamba"
    r"|swiglu|heads|indexer|sparsity|cache|window|ffn|mlp|layout|schedule).*|(\w+_)?intermediate_size|head_dim|hidden_act"
)
# Among what else counts as sizes of a picture or of a kernel
SIZES = re.compile(r".*(layer|block|attn|attention|sliding|per_)\w*(sizes?|kernels?|shapes?)")
ENTRY_KINDS = (str, bool, dict, type(None))
SOURCES = re.compile(r".*(source|share|target|map|parent|ref)\w*")
DEPTH_SCALE = (
    "scale_depth"  # MiniCPM's, which its class divides by the square root of the number of layers
)
LISTED = re.compile(r"[0-9]+([-,:; ]+[0-9]+)*")
NAMED = re.compile(r"(?P<word>[a-z_.]*[a-z_.])(?P<number>[0-9]{1,4})")
LAYER_NAME = re.compile(r"([\w.]*?)\.(0|[1-9][0-9]{0,3})(\.|$)")
DIGITS = re.compile(r"[0-9]{1,4}")
ALPHABET = 5  # kinds of layers that letters tell, at most
