"""Benchmarks by name, ``cifar100-lt?root=FOLDER``: the sets of the literature, split as the literature splits them.

What each is, is a row of :mod:`imbdiff.data.benchmarks.table`; how its files lie on disk is a module per family.
"""

from imbdiff.data.benchmarks.opening import open_source

__all__ = ["open_source"]
