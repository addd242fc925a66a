"""Two kills while a cache is made: the process group, then the main process alone."""

from __future__ import annotations

from tests.benchmarks.test_harness import load


def test_a_killed_cache_is_made_to_the_bit() -> None:
    program = load("kill_cache")
    found = program.compare(images=600, kills=2, processes_from=10**9, chunk=2**15, span=0.15, seed=1)
    assert found["kills"] == {"group": 1, "main process": 1}
    assert found["equal"]
    assert not found["untrue"]


def test_a_line_of_the_journal_that_is_not_true_is_found(tmp_path) -> None:
    program = load("kill_cache")
    folder = program.make_images(tmp_path / "images", 20)
    child = program.start(folder, tmp_path / "store", 10**9, 2**14)
    assert child.wait() == 0
    assert program.untrue_lines(tmp_path / "store") == []
    before = program.outcome(tmp_path / "store")
    (made,) = (tmp_path / "store").iterdir()
    data = bytearray((made / "images.u8").read_bytes())
    data[7 * program.SIZE**2 * 3] ^= 1
    (made / "images.u8").write_bytes(data)
    assert program.untrue_lines(tmp_path / "store") == [5]
    assert program.outcome(tmp_path / "store")["images"] != before["images"]
