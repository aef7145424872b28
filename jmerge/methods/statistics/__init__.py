"""What a method knows of a whole tensor, or of a whole model, before it makes any element of its result.

A statistic is a fold: `init` a small state, `update` it with the terms of each piece, `finish` it. `sums` has totals,
`topk` the thresholds of largest elements, `rows` sorted rows; `fold` says what all have in common.
"""
