"""Made of native/html/blocks.cpp where there was a compiler."""

from collections.abc import Callable

from openafm.data.blocks import Block

def read_blocks(
    html: str,
    limit: int,
    block: type[Block],
    hidden: Callable[[str], bool],
    image_formula: Callable[[str], str],
    is_post: Callable[[str], bool],
) -> tuple[list[Block], list[int], list[str], list[str]]:
    """Blocks, and each box's parent, tag and names; `limit` tags are read."""
