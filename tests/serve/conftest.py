"""Each module of the server's tests ends many workers, which collect garbage."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def cheap_ends(small_heap: None) -> None:
    """Use small_heap in all of them."""
