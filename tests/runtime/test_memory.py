"""Memory that is kept between steps on a CPU. What it is worth: ``benchmarks/page_faults.py``."""

from __future__ import annotations

import ctypes
import sys

import pytest

from imbdiff.runtime import memory
from imbdiff.runtime.memory import freed_memory_kept

KEEP, AS_BEFORE = [("mallopt", -4, 0), ("mallopt", -1, -1)], [
    ("mallopt", -4, 65536), ("mallopt", -3, 32 * 2**20), ("mallopt", -1, 64 * 2**20), ("malloc_trim", 0),
]  # fmt: skip


class Library:
    def __init__(self) -> None:
        self.calls: list[tuple[str, ...] | tuple[str, int] | tuple[str, int, int]] = []

    def mallopt(self, what: int, value: int) -> int:
        self.calls.append(("mallopt", what, value))
        return 1

    def malloc_trim(self, pad: int) -> int:
        self.calls.append(("malloc_trim", pad))
        return 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    fake = Library()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: fake)
    return fake


def test_the_outermost_one_gives_memory_back(library: Library) -> None:
    with freed_memory_kept():
        with freed_memory_kept():
            pass
        assert library.calls == KEEP * 2, "the outer one still holds"
    assert library.calls == KEEP * 2 + AS_BEFORE


def test_an_error_passes_and_memory_is_given_back(library: Library) -> None:
    with pytest.raises(KeyError), freed_memory_kept():
        raise KeyError
    assert library.calls == KEEP + AS_BEFORE


def test_nothing_is_done_where_it_is_not_wanted(library: Library) -> None:
    with freed_memory_kept(False):
        pass
    assert library.calls == []


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    with freed_memory_kept():
        pass


class Malloc(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="asks the C library that is there")
def test_blocks_of_a_few_mib_are_not_mapped_anew_afterwards() -> None:
    """A threshold that is set stops glibc from moving the others: from 128 KiB, where they start."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        pytest.skip("not glibc 2.33 or newer")
    library.mallinfo2.restype = Malloc
    with freed_memory_kept():
        pass
    before = library.mallinfo2().hblks
    held = [bytearray(2**22) for _ in range(3)]
    assert library.mallinfo2().hblks == before
    held.append(bytearray(2**26))
    assert library.mallinfo2().hblks == before + 1, "large ones are"


@pytest.mark.skipif(sys.platform != "linux", reason="asks the C library that is there")
def test_glibc_takes_these_numbers() -> None:
    real = memory.ctypes.CDLL(None)
    if not hasattr(real, "malloc_trim"):
        pytest.skip("not glibc")
    taken: list[int] = []

    class Spy:
        malloc_trim = staticmethod(real.malloc_trim)

        @staticmethod
        def mallopt(what: int, value: int) -> int:
            taken.append(real.mallopt(what, value))
            return taken[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory.ctypes, "CDLL", lambda name: Spy)
        with freed_memory_kept():
            pass
    assert taken == [1, 1, 1, 1, 1]
