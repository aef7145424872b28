"""Make the three small checkpoints that `configs/quickstart.yml` merges, beside this file.

They are Llama-shaped, seeded random numbers in bf16: enough to see a merge from end to end, with nothing to learn.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes

from jmerge.testing.tiny import llama_config, llama_tensors, write_checkpoint

SIZES = {"layers": 4, "hidden": 64, "inner": 160, "vocab": 512}


def main() -> None:
    here = Path(__file__).parent
    base = llama_tensors(0, **SIZES)
    config = {**llama_config(**SIZES), "torch_dtype": "bfloat16"}
    for seed, name in enumerate(("base", "prose", "code")):
        change = llama_tensors(seed, **SIZES)
        tensors = {
            key: (0.02 * value + (0.002 * change[key] if seed else 0)).astype(ml_dtypes.bfloat16)
            for key, value in base.items()
        }
        print(write_checkpoint(here / name, tensors, config))


if __name__ == "__main__":
    main()
