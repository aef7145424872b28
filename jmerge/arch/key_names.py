"""Which list of layers the name of a key speaks of, by the part of the model that it names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

# Names that a newcomer's config may give a count of layers; believed only where no usual key fits
OTHER_LAYER_KEY = re.compile(r"(\w+_)?(n|num)_(\w+_)?(layers?|blocks?)|(\w+_)?depth")
PART_LAYER_KEY = re.compile(r"(\w+?)_(n|num)_\w+")  # of the part that it names first


def is_of_part(prefix: str, key: str) -> bool:
    """Whether a list is of the part that a key names before its count (`memory_fuser_num_layers`), if it names one."""
    if (found := PART_LAYER_KEY.fullmatch(key)) is None:
        return True
    parts = found[1].split("_")

    def named(name: str) -> list[bool]:
        return [any(word.startswith(part) for part in parts) for word in re.split(r"[._]", name)]

    last = prefix.rpartition(".")[2]
    return any(named(prefix)) and (bool(re.search("layer|block", last)) or all(named(last)))


def names_another(
    prefix: str, depth: int, key: str, lists: Mapping[str, Sequence[tuple[str, int]]]
) -> bool:
    """Whether a key of several words (`decoder_layers`) is all in the name of another list, of another length, beside
    which this one stands deeper: it counts that one in a way of its own (Mask2Former has one layer fewer).

    lists: where they stand -> their names and how long they are.
    """
    words = set(key.split("_")) - {"num", "n", "hidden"}
    if len(words) < 2 or words <= set(prefix.split(".")):
        return False
    home = prefix.rpartition(".")[0]
    while home := home.rpartition(".")[0]:
        for other, length in lists.get(home, ()):
            if words <= set(other.split(".")) and length not in (1, depth):
                return True
    return False
