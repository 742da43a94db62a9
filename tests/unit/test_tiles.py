"""Tile paths have one spelling, and bundles end where their last leaf ends."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from muniment.encoding import MAX_SIZE
from muniment.errors import FormatError
from muniment.tiles import (
    MAX_ENTRY,
    MAX_LEVEL,
    Bundle,
    Tile,
    decode_bundle,
    encode_bundle,
    format_bundle,
    format_tile,
    parse_tile_path,
    width_at,
)

GOOD = {
    "0/000": Tile(0, 0),
    "0/999": Tile(0, 999),
    "0/x001/000": Tile(0, 1000),
    "0/x001/x234/067": Tile(0, 1_234_067),
    "1/000.p/1": Tile(1, 0, 1),
    "63/000.p/255": Tile(63, 0, 255),
    "10/x010/000.p/10": Tile(10, 10_000, 10),
    "entries/000": Bundle(0),
    "entries/x001/x234/067.p/112": Bundle(1_234_067, 112),
    "0/x009/x223/x372/x036/x854/x775/807": Tile(0, MAX_SIZE),
    "entries/x009/x223/x372/x036/x854/x775/807.p/255": Bundle(MAX_SIZE, 255),
}
BAD = [
    "", "/", "0", "0/", "/0/000", "0/000/", "0//000", "0/0", "0/00", "0/67", "0/067/", "0/0067", "0/0000", "0/x000/067",
    "0/x000/000", "0/x001", "0/x001/", "0/x001/x000", "0/001/000", "0/1000", "0/x1000/000", "0/x01/000", "0/X001/000",
    "00/000", "01/000", "64/000", "99/000", "100/000", "-1/000", "+1/000", " 0/000", "0/000 ", "0/000\n", "0/\uff10\uff10\uff10",
    "0/\u0661\u0662\u0663", "\u0661/000", "0/000.p", "0/000.p/", "0/000.p/0", "0/000.p/00", "0/000.p/01", "0/000.p/010",
    "0/000.p/256", "0/000.p/257", "0/000.p/999", "0/000.p/1000", "0/000.p/-1", "0/000.p/+1", "0/000.p/1.p/1", "0/000.p/1/",
    "0/000.P/1", "0/000p/1", "0/000..p/1", "0/000.p//1", "entries", "entries/", "entries/0", "entries/x000/000",
    "Entries/000", "ENTRIES/000", "entry/000", "data/000", "entries/000.p/0", "entries/000.p/256", "0/../000", "0/%30%30%30",
    "0/00%30", "../0/000", "0/000\x00", "0\\000", "0/x009/x223/x372/x036/x854/x775/808", "0/x010/x000/x000/x000/x000/x000/000",
    "0/" + "x001/" * 12 + "000", "0/" + "x001/" * 5000 + "000", "a" * 100_000, "tile/0/000", "0/000?x", "0/000#", "0/0x0", "x/000",
]  # fmt: skip


@pytest.mark.parametrize(("path", "parsed"), GOOD.items())
def test_known_paths(path: str, parsed: Tile | Bundle) -> None:
    assert parse_tile_path(path) == parsed
    assert type(parse_tile_path(path)) is type(parsed)
    assert (format_tile(parsed) if isinstance(parsed, Tile) else format_bundle(parsed)) == path


@pytest.mark.parametrize("path", BAD, ids=lambda path: ascii(path[:40]))
def test_other_spellings_are_refused(path: str) -> None:
    with pytest.raises(FormatError):
        parse_tile_path(path)


@given(st.integers(0, MAX_LEVEL), st.integers(0, MAX_SIZE), st.integers(1, 256))
@example(63, MAX_SIZE, 255)
def test_paths_round_trip(level: int, index: int, width: int) -> None:
    tile, bundle = Tile(level, index, width), Bundle(index, width)
    assert parse_tile_path(format_tile(tile)) == tile
    assert parse_tile_path(format_bundle(bundle)) == bundle
    assert format_tile(tile).removeprefix(f"{level}/") == format_bundle(bundle).removeprefix("entries/")


@given(st.from_regex(r"\A([0-9]{1,3}|entries)/(x?[0-9]{1,4}/){0,3}[0-9]{1,4}(\.p/[0-9]{1,4})?\Z"))
def test_what_parses_is_its_own_spelling(path: str) -> None:
    try:
        parsed = parse_tile_path(path)
    except FormatError:
        return
    assert (format_tile(parsed) if isinstance(parsed, Tile) else format_bundle(parsed)) == path
    assert 1 <= parsed.width <= 256
    assert 0 <= parsed.index <= MAX_SIZE


def test_every_path_of_the_first_sizes_is_different() -> None:
    tiles = [Tile(level, index, width) for level in range(64) for index in (0, 1, 999, 1000) for width in (1, 10, 256)]
    paths = {format_tile(tile) for tile in tiles}
    assert len(paths) == len(tiles)
    assert {parse_tile_path(path) for path in paths} == set(tiles)


def test_every_one_character_change_names_another_tile_or_nothing() -> None:
    path = "1/x234/067.p/112"
    seen = {parse_tile_path(path)}
    for at in range(len(path)):
        for code in range(128):
            changed = path[:at] + chr(code) + path[at + 1 :]
            if changed == path:
                continue
            try:
                parsed = parse_tile_path(changed)
            except FormatError:
                continue
            assert parsed not in seen, changed
            seen.add(parsed)


@given(st.integers(0, 2**63 - 1), st.integers(0, MAX_LEVEL), st.integers(0, 2**40))
def test_width_counts_complete_hashes(size: int, level: int, index: int) -> None:
    width = width_at(level, index, size)
    assert 0 <= width <= 256
    first = index * 256
    # Hash i of level l exists when its 256**l leaves do.
    if width < 256:
        assert (first + width + 1) * 256**level > size
    if width:
        assert (first + width) * 256**level <= size


# --- bundles ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=40), max_size=20))
@example([b""])
@example([b"", b"", b"\x00\x00"])
def test_bundles_round_trip(leaves: list[bytes]) -> None:
    data = encode_bundle(leaves)
    assert data == b"".join(len(leaf).to_bytes(2, "big") + leaf for leaf in leaves)
    assert decode_bundle(data) == leaves


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=6))
def test_truncated_bundles_are_refused(leaves: list[bytes]) -> None:
    data = encode_bundle(leaves)
    ends = {len(encode_bundle(leaves[:count])) for count in range(len(leaves) + 1)}
    for length in range(len(data)):
        if length in ends:  # cut between two leaves a bundle is a shorter bundle: its width tells, not its bytes
            assert encode_bundle(decode_bundle(data[:length])) == data[:length]
        else:
            with pytest.raises(FormatError, match="cut off"):
                decode_bundle(data[:length])


@given(st.binary(max_size=200))
def test_what_decodes_encodes_to_the_same_bytes(data: bytes) -> None:
    try:
        leaves = decode_bundle(data)
    except FormatError:
        return
    assert encode_bundle(leaves) == data


def test_the_largest_entry_fits_and_no_larger() -> None:
    leaf = bytes(MAX_ENTRY)
    assert decode_bundle(encode_bundle([leaf, leaf])) == [leaf, leaf]
    with pytest.raises(FormatError, match="65536 bytes does not fit"):
        encode_bundle([bytes(MAX_ENTRY + 1)])
