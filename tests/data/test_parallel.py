import pytest

from imbdiff.data import parallel
from imbdiff.data.parallel import in_chunks


def test_results_in_order_and_tasks_taken_as_they_are_needed():
    """A stream's tasks hold its bytes: all of them at once would not fit into memory."""
    taken = []

    def tasks():
        for i in range(1000):
            taken.append(i)
            yield (i,)

    results = in_chunks(lambda i: i * i, tasks(), 1000)
    assert next(results) == 0
    assert len(taken) < 40
    assert [1 + i for i in range(999)] == [round(x**0.5) for x in results]


def test_errors_arrive():
    def fail(i):
        raise KeyError(i)

    with pytest.raises(KeyError, match="7"):
        list(in_chunks(fail, [(7,)], 1))


def test_no_more_processes_than_chunks(monkeypatch):
    monkeypatch.setattr(parallel, "PROCESSES_FROM", 1)
    monkeypatch.setattr(parallel.joblib, "Parallel", lambda **_: (_ for _ in ()).throw(AssertionError("processes")))
    assert list(in_chunks(lambda i: i, [(1,)], parallel.CHUNK)) == [1]  # one chunk: not worth a process
