"""Reads the files of CIFAR's python version, which are Python pickles, without unpickling anything.

The opcodes are walked by the standard library's :mod:`pickletools`, which executes nothing, and applied here to plain
values only: dictionaries, lists, tuples, strings, bytes, integers. Four names are known, those by which numpy writes an
array of bytes, and what they stand for is done here. Every other name and opcode is refused.
"""

from __future__ import annotations

import pickletools
import struct
from pathlib import Path
from typing import Any, cast

import numpy as np

from imbdiff.runtime.errors import DataError

LARGEST = 2**30
"""Bytes of a file; those of CIFAR have at most 155 million."""

_ROLES = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "type",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}
_VALUES = frozenset(
    {
        "SHORT_BINSTRING", "BINSTRING", "STRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE",
        "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4",
    }
)  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Refused(Exception):
    """What the file holds that a file of CIFAR does not."""


class _Name:
    def __init__(self, role: str) -> None:
        self.role = role


class _Array:
    """An array whose contents come later."""

    value: np.ndarray | None = None


class _Bytes:
    """numpy's type uint8."""


def read_values(path: Path) -> dict[str, Any]:
    """The dictionary in a file of CIFAR's python version; arrays are uint8.

    Raises:
        DataError: too large, damaged, or holding anything but plain values and arrays of bytes.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise _Refused(f"{path.stat().st_size:,} bytes: too large")
        found = _Walk().through(path.read_bytes())
        if not isinstance(found, dict):
            raise _Refused("damaged: no dictionary")
        if any(isinstance(v, _Name | _Bytes) for v in found.values()):
            raise _Refused("damaged: a name without its value")
        return {name: v.value if isinstance(v, _Array) else v for name, v in found.items()}
    except (_Refused, ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error, OSError) as error:
        why = str(error) if isinstance(error, _Refused | OSError) else f"damaged ({error})"
        raise DataError(
            f"{path} cannot be used: {why}", "unpack the original archive again, or take the 'binary' version of CIFAR"
        ) from error


class _Walk:
    """Plain values on a stack, as the opcodes put them together."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def through(self, data: bytes) -> Any:
        for opcode, given, _ in pickletools.genops(data):
            name, argument = opcode.name, cast(Any, given)
            if name in _VALUES:
                self.stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                self.memo[argument] = self.stack[-1]
            elif name == "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                self.stack.append(self.memo[argument])
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name == "MARK":
                self.marks.append(len(self.stack))
            elif name not in ("PROTO", "FRAME", "STOP"):
                self._apply(name, argument)
        if len(self.stack) != 1 or self.marks:
            raise _Refused("damaged: it does not end with one value")
        return self.stack[0]

    def _apply(self, name: str, argument: Any) -> None:
        push, pop = self.stack.append, self.stack.pop
        if name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            push({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
        elif name in _TUPLES:
            n = _TUPLES[name]
            parts = [pop() for _ in range(n)]
            push(tuple(reversed(parts)))
        elif name in ("TUPLE", "LIST", "DICT"):
            items = self._marked()
            push(tuple(items) if name == "TUPLE" else items if name == "LIST" else _pairs({}, items))
        elif name in ("APPEND", "APPENDS"):
            items = [pop()] if name == "APPEND" else self._marked()
            _of(self.stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [pop(), pop()][::-1] if name == "SETITEM" else self._marked()
            _pairs(_of(self.stack[-1], dict), items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                last = _of(pop(), str)
                argument = f"{_of(pop(), str)} {last}"
            if argument not in _ROLES:
                raise _Refused(f"it asks for {argument!r}, which no file of CIFAR does; nothing was executed")
            push(_Name(_ROLES[argument]))
        elif name == "REDUCE":
            arguments = _of(pop(), tuple)
            push(_made(_of(pop(), _Name).role, arguments))
        elif name == "BUILD":
            state = _of(pop(), tuple)
            if isinstance(self.stack[-1], _Array):
                self.stack[-1].value = _filled(state)
            else:
                _of(self.stack[-1], _Bytes)  # its byte order means nothing
        else:
            raise _Refused(f"it has the opcode {name}, which no file of CIFAR has; nothing was executed")

    def _marked(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _of(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise _Refused(f"damaged: {kind.__name__} expected, {type(value).__name__} found")
    return value


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else _of(value, str)


def _pairs(into: dict[str, Any], items: list[Any]) -> dict[str, Any]:
    for key, value in zip(items[::2], items[1::2], strict=True):
        into[_text(key)] = value
    return into


def _made(role: str, arguments: tuple[Any, ...]) -> Any:
    """What a call of one of the four names gives."""
    if role == "array":
        return _Array()
    if role == "encode" and arguments[1:] == ("latin1",):  # how Python 3 writes bytes for Python 2
        return _of(arguments[0], str).encode("latin-1")
    if role == "dtype" and _text(arguments[0]) == "u1":
        return _Bytes()
    # by their types: the values may be nested through the memo, and their text exponentially long
    kinds = ", ".join(type(argument).__name__ for argument in arguments[:4])
    raise _Refused(f"its arrays are not of bytes: {role} of ({kinds})")


def _filled(state: tuple[Any, ...]) -> np.ndarray:
    _, shape, kind, fortran, data = state
    _of(kind, _Bytes)
    raw = data.encode("latin-1") if isinstance(data, str) else _of(data, bytes)  # Python 2 writes bytes as a string
    sides = tuple(_of(side, int) for side in _of(shape, tuple))
    return np.frombuffer(raw, np.uint8).reshape(sides, order="F" if fortran else "C")
