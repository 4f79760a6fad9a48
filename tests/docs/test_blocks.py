"""Every command and code block of the README and the documentation is executed or checked."""

import sys
from pathlib import Path

import pytest

from docs.blocks import PAGES, ROOT, Block, execute, read_blocks

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(900)]

BLOCKS = {page: list(read_blocks(page)) for page in PAGES}
# The number of blocks that carry a reason for not being executed; a new one is a decision of a review.
NOT_RUN = 45


@pytest.mark.parametrize(
    "page", [page for page in PAGES if BLOCKS[page]], ids=lambda page: str(page.relative_to(ROOT))
)
def test_the_blocks_of_a_page_work_in_order(page: Path, checkout: Path) -> None:
    execute(BLOCKS[page], checkout)


def test_blocks_that_are_not_run_say_why() -> None:
    marked: list[Block] = [block for blocks in BLOCKS.values() for block in blocks if block.not_run]
    total = sum(len(blocks) for blocks in BLOCKS.values())
    sys.stdout.write(f"{total} blocks, {len(marked)} of them not run:\n")
    sys.stdout.writelines(f"{block}: {block.not_run}\n" for block in marked)
    assert len(marked) == NOT_RUN
