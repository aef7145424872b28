"""Methods on pytrees of arrays: `merge_trees`, and a function for each method, under any transformation of JAX.

    a call -> Table (leaves) + Arguments (numbers) -> parts (leaves and layers, in order) -> groups -> results

Outside of a trace every part is a group of its own, and every step one program; inside of one, parts of one shape are
stacked. Both go through `passes`.
"""
