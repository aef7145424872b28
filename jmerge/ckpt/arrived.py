"""Whether the weights of a model are all there, as far as that shows without reading them."""

from __future__ import annotations

from collections.abc import Sequence

from jmerge.ckpt.source import LocalSource, Source
from jmerge.errors import CheckpointError, Fault

HELD_BACK = ".aria2"  # beside a file that this downloader made at full size and did not fill yet


def check_arrived(source: Source, files: Sequence[str]) -> None:
    """CheckpointError when weight files are pointers of git-LFS, or their download has not come to its end."""
    sizes = source.map(source.size, files)
    there = [name for name, size in zip(files, sizes, strict=True) if size is not None]
    pointers = [name for name in there if source.is_pointer(name)]
    if pointers:
        if len(files) == 1:
            what = f"{pointers[0]} is a git-LFS pointer, not the weights"
        else:
            what = (
                f"{len(pointers)} of {len(files)} weight files are git-LFS pointers ({pointers[0]})"
            )
        raise CheckpointError(Fault(f"{what}; run: git lfs pull", file=source.label, code="JM113"))
    if not isinstance(source, LocalSource):
        return
    for name in there:
        if source.size(name + HELD_BACK) is not None:
            message = (
                f"its download was interrupted ({name}{HELD_BACK} is beside it); download it again"
            )
            raise source.broken(name, message, code="JM114")
