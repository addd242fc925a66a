"""Memory that is kept between steps on a CPU. What it is worth: ``benchmarks/page_faults.py``."""

from __future__ import annotations

import subprocess
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


MAPPED = """
import ctypes, gc
from imbdiff.runtime.memory import freed_memory_kept
NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
class Malloc(ctypes.Structure):  # glibc's struct mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES.split()]
library = ctypes.CDLL(None)
if hasattr(library, "mallinfo2"):
    library.mallinfo2.restype = Malloc
    gc.disable()
    library.mallopt(-3, 128 * 1024)  # where glibc starts
    with freed_memory_kept():
        pass
    found = [library.mallinfo2().hblks]
    held = []
    for size in (2**22, 2**26):
        held.append(bytearray(size))
        found.append(library.mallinfo2().hblks)
    print(found[1] - found[0], found[2] - found[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the C library that is there")
def test_blocks_of_a_few_mib_are_not_mapped_anew_afterwards() -> None:
    """A threshold that is set stops glibc from moving the others. Large blocks are mapped as before."""
    done = subprocess.run([sys.executable, "-c", MAPPED], capture_output=True, text=True, check=True)
    if not done.stdout:
        pytest.skip("not glibc 2.33 or newer")
    assert done.stdout.split() == ["0", "1"]


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
