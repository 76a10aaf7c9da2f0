"""Files on the executor's disk by their digest, within a bound."""

import os
from pathlib import Path

import pytest

from sandbox.gateway.registries.cache import DiskCache

KEYS = [f"sha256-{digit * 64}" for digit in "abcd"]


def keep(cache: DiskCache, key: str, data: bytes) -> None:
    file = cache.unfinished()
    with file:
        file.write(data)
        cache.keep(key, file)
        cache.discard(file)


def held(cache: DiskCache) -> list[str]:
    return [key for key in KEYS if read(cache, key) is not None]


def read(cache: DiskCache, key: str) -> bytes | None:
    file = cache.open(key)
    if file is None:
        return None
    with file:
        return file.read()


def test_at_the_bound_nothing_goes_and_beyond_it_what_was_not_used_for_longest(tmp_path: Path):
    """Reading counts as use."""
    cache = DiskCache(tmp_path / "c", 30)
    for key in KEYS[:3]:
        keep(cache, key, b"x" * 10)
    assert cache.size_bytes == 30
    assert read(cache, KEYS[0]) == b"x" * 10

    keep(cache, KEYS[3], b"x" * 10)

    assert (held(cache), cache.size_bytes) == ([KEYS[0], KEYS[2], KEYS[3]], 30)
    assert len(list((tmp_path / "c").iterdir())) == 3


def test_one_that_is_too_large_alone_is_not_kept_and_evicts_nothing(tmp_path: Path):
    """It is still given to whoever asked for it."""
    cache = DiskCache(tmp_path / "c", 30)
    keep(cache, KEYS[0], b"x")
    large = cache.unfinished()
    large.write(b"y" * 31)

    cache.keep(KEYS[1], large)

    large.seek(0)
    assert large.read() == b"y" * 31
    large.close()
    assert held(cache) == [KEYS[0]]


def test_a_file_that_is_evicted_while_it_is_read_is_read_to_its_end(tmp_path: Path):
    """An open file has no need of its name."""
    cache = DiskCache(tmp_path / "c", 10)
    keep(cache, KEYS[0], b"first")
    reading = cache.open(KEYS[0])
    assert reading is not None

    keep(cache, KEYS[1], b"x" * 10)

    with reading:
        assert reading.read() == b"first"
    assert held(cache) == [KEYS[1]]


def test_a_new_process_finds_what_was_kept_and_removes_what_was_not_finished(tmp_path: Path):
    """In the order of use; a smaller bound evicts at once; a stranger's file is left alone."""
    cache = DiskCache(tmp_path / "c", 100)
    for age, key in enumerate(KEYS[:3]):
        keep(cache, key, b"x" * 10)
        os.utime(tmp_path / "c" / key, (1_000 - age, 1_000 - age))
    (tmp_path / "c" / "unfinished-1").write_bytes(b"half")
    (tmp_path / "c" / "notes").write_bytes(b"a person's")

    again = DiskCache(tmp_path / "c", 20)

    assert held(again) == [KEYS[0], KEYS[1]]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == sorted([KEYS[0], KEYS[1], "notes"])


@pytest.mark.parametrize("key", ["../x", "sha256-zz", "", "sha256-" + "a" * 31])
def test_a_key_is_a_digest(tmp_path: Path, key: str):
    """Nothing else becomes the name of a file."""
    cache = DiskCache(tmp_path / "c", 10)

    assert cache.open(key) is None
    with pytest.raises(ValueError, match="digest"):
        keep(cache, key, b"x")
