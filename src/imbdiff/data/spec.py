"""What a source is called on the command line: a name or path, and options behind a question mark.

    photos/                              a folder
    train.csv?root=images&label=dx       a list of files, with the column of the labels
    hf:uoft-cs/cifar100?label=fine_label a set of the Hugging Face hub
    cifar100-lt?root=data                a benchmark, below a folder of one's own
    module:mine.sets:birds?root=data     what a function of one's own returns, called with these options

The whole text is what a run folder remembers, so every verb takes it. A path that exists is a path, also with a
question mark in its name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote

from imbdiff.data.names import is_text
from imbdiff.runtime.errors import ConfigError

PATHS = frozenset({"root", "val", "test", "names", "list"})
"""Options that name files or folders."""
SAFE = "/:,{}[]*+ "
"""Characters that stay as they are in an option's value."""


def user_path(text: str | Path) -> Path:
    """A path, with ``~`` and ``~name`` as the shell reads them.

    Raises:
        ConfigError: there is no such user.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{text}: {error}", "give the path itself, or ./~name for a folder of that name") from error


@dataclass
class Spec:
    """A source as it was written.

    Attributes:
        text: the whole of it; messages call the source so.
        scheme: "hf" and so on, "" for a path or name.
        rest: without scheme and options.
        options: {name: value} of what stands behind the question mark.
        built_in: it is a built-in name.
        strict: it is for training; otherwise one class, or no labels at all, are enough where there are images.
    """

    text: str
    scheme: str = ""
    rest: str = ""
    options: dict[str, str] = field(default_factory=dict)
    built_in: bool = False
    strict: bool = True

    @classmethod
    def parse(cls, text: str, schemes: Collection[str] = (), names: Collection[str] = ()) -> Spec:
        """Reads `text`.

        Args:
            schemes: the prefixes that count as such (a Windows path has a colon too).
            names: built-in names: these are no paths, also where a folder is called so.

        Raises:
            ConfigError: an option without a value, or given twice; a name that is not valid text.
        """
        if "\0" in text or not is_text(text):
            raise ConfigError(f"{text!a} is not valid UTF-8 text", "rename the file or folder")
        rest, mark, query = text, "", ""
        if not os.path.exists(user_path(text)):  # unlike Path.exists, False for names that are too long
            rest, mark, query = text.partition("?")
        scheme, colon, after = rest.partition(":")
        if not colon or scheme not in schemes:
            scheme, after = "", rest
        try:
            # a plus is a plus here: it is common in file names
            pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(mark))
        except ValueError as error:
            raise ConfigError(
                f"the options of {text!r} cannot be read: {error}", "write SOURCE?name=value&name=value"
            ) from error
        if len(dict(pairs)) < len(pairs):
            raise ConfigError(f"an option of {text!r} is given twice", "give each once")
        return cls(text, scheme, after, dict(pairs), not scheme and after in names)

    def absolute(self) -> str:
        """The same source with absolute paths, so that it can be opened from anywhere.

        Changed are the path itself and the options that name files or folders (``val`` and ``test`` not of a hub's set,
        a folder or a zip file: there they name splits), where they exist, or for a pattern where the folder in front of
        it does.
        """

        def place(text: str) -> str:
            path = user_path(text)
            start = re.split(r"[*?\[{]", str(path), maxsplit=1)[0]
            pattern = start != str(path) and os.path.isdir(os.path.dirname(start) or ".")
            return os.path.abspath(path) if os.path.exists(path) or pattern else text

        inside = self.scheme or os.path.isdir(user_path(self.rest)) or self.rest.lower().endswith(".zip")
        known = PATHS - {"val", "test"} if inside else PATHS
        options = {k: place(v) if k in known and v else v for k, v in self.options.items()}
        query = "&".join(f"{k}={quote(v, safe=SAFE)}" for k, v in options.items())
        rest = place(self.rest) if self.scheme in ("", "hf") and not self.built_in else self.rest
        return (f"{self.scheme}:" if self.scheme else "") + rest + (f"?{query}" if query else "")

    @property
    def short(self) -> str:
        """What a run folder is called after: the name of the file or folder without its ending, or of the set."""
        if self.scheme == "module":  # NAME of PACKAGE.MODULE:NAME
            return self.rest.rpartition(":")[2] or "source"
        return Path(self.rest).stem or "source"
