"""Sizes as people write them."""

import pytest

from evomerge.errors import InputError
from evomerge.sizes import as_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4_000_000_000), ("500MB", 500_000_000), ("2GiB", 2_147_483_648), ("1.5 kB", 1500),
     ("1", 1), ("123456789", 123_456_789), (" 7 kib ", 7168), ("2TB", 2 * 10**12), ("90b", 90),
     ("0.001MB", 1000), ("1.0000001GB", 1_000_000_100)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, "--shard-size") == size


@pytest.mark.parametrize(
    "text", ["", "0", "0GB", "0.4", "-1GB", "4 gigs", "4G", "GB", "1e9", "inf", "4GBB", "1,5GB"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError) as told:
        parse_size(text, "--shard-size")
    assert str(told.value) == (
        f"expected a size such as 4GB, 500MB, 2GiB or 1000000, got {text!r} "
        "at --shard-size in the command line"
    )


def test_sizes_in_words() -> None:
    found = [as_size(size) for size in (999, 1500, 27_700_000, 16_060_000_000, 2 * 10**12)]
    assert found == ["999 bytes", "1.5 kB", "27.7 MB", "16.1 GB", "2 TB"]
