"""A file on a web server, read like a local one: forward in one go, elsewhere by asking for a range of bytes."""

from __future__ import annotations

import http.client
import io
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from imbdiff.data.names import counted
from imbdiff.runtime.errors import DataError

TIMEOUT = 30.0
WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt, where a connection broke that had worked."""
SKIP = 4 * 2**20
"""Bytes that are rather read and thrown away than left out by a new request."""
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_BROKEN = (OSError, http.client.HTTPException, ValueError)  # the last: addresses that are none


State = tuple[int | None, str]
"""Bytes of a file and the server's tag or date of it, as far as the server says."""


class ChangedError(DataError):
    """A file is not the one that was expected."""


class Download(io.RawIOBase):
    """Use with :class:`io.BufferedReader`. A connection that breaks is made again where it broke off.

    Args:
        url: https, http or file.
        expected: the file as it was found before; None takes it as it is.

    Raises:
        ChangedError: another file than expected.
        DataError: cannot be reached.
    """

    def __init__(self, url: str, expected: State | None = None) -> None:
        self.url, self._state = url, expected
        self._response: Any = None
        self._at = self._wanted = 0

    @property
    def state(self) -> State:
        if self._state is None:
            self._again(self._connect)
        return self._state or (None, "")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of a stream is not known")
        self._wanted = offset if whence == io.SEEK_SET else self._wanted + offset
        return self._wanted

    def readinto(self, buffer: Any) -> int:
        n = self._again(lambda: self._read(memoryview(buffer)))
        self._wanted += n
        return n

    def close(self) -> None:
        self._drop()
        super().close()

    def _read(self, buffer: memoryview) -> int:
        length = (self._state or (None, ""))[0]
        if length is not None and self._wanted >= length:
            return 0
        if self._response is None or not 0 <= self._wanted - self._at <= SKIP:
            self._connect()
        while self._at < self._wanted:
            self._take(memoryview(bytearray(min(2**20, self._wanted - self._at))))
        return self._take(buffer)

    def _take(self, buffer: memoryview) -> int:
        n = self._response.readinto(buffer)
        self._at += n
        length = (self._state or (None, ""))[0]
        if n == 0 and ((length is not None and self._at < length) or self._at < self._wanted):
            raise ConnectionError(f"the connection broke off at byte {self._at:,}")
        return n

    def _connect(self) -> None:
        """Asks for the file from the byte wanted on; a server that knows no ranges sends all of it."""
        self._drop()
        headers = {"User-Agent": "imbdiff"} | ({"Range": f"bytes={self._wanted}-"} if self._wanted else {})
        self._response = urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=TIMEOUT)
        self._at, length = 0, self._response.headers.get("Content-Length")
        if getattr(self._response, "status", None) == 206:
            first, _, total = self._response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            start = first.partition("-")[0]
            if not start.isdecimal() or int(start) > self._wanted:
                raise DataError(f"{self.url}: the server sent other bytes than it was asked for", _REMEDY)
            self._at, length = int(start), total
        tag = self._response.headers.get("ETag") or self._response.headers.get("Last-Modified") or ""
        state = (int(length) if length and length.isdecimal() else None, tag)
        if self._state is not None and any(a != b for a, b in zip(self._state, state, strict=True) if a and b):
            raise ChangedError(f"{self.url} has changed: it was {_words(self._state)}, and is {_words(state)}", _NEW)
        self._state = self._state or state

    def _again(self, work: Any) -> Any:
        """``work()``, again where a connection broke or a server was busy; not where none ever came about."""
        for wait in (*WAITS, None):
            reached = self._response is not None
            try:
                return work()
            except urllib.error.HTTPError as error:
                self._drop()
                if wait is None or error.code not in _AGAIN:
                    raise DataError(f"{self.url}: the server answers {error.code} ({error.reason})", _REMEDY) from error
            except _BROKEN as error:
                self._drop()
                if wait is None or not (reached or self._at):
                    raise DataError(f"{self.url} cannot be read: {_reason(error)}", _REMEDY) from error
            time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
        self._response = None


_REMEDY = "check the address and the network, or download the files and give their folder"
_NEW = "start again: it is looked through anew"


def _words(state: State) -> str:
    return f"{counted(state[0], 'byte') if state[0] is not None else 'unknown size'}, {state[1] or 'no tag'}"


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None) or error
    return str(getattr(inner, "strerror", None) or inner) or type(inner).__name__


def host_of(url: str) -> str:
    """The host of an address, with a user's name and password where it has them.

    Raises:
        DataError: it is no address.
    """
    try:
        return urlsplit(url).netloc
    except ValueError as error:
        raise DataError(f"{url} is no address: {error}", "check it") from error
