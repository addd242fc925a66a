"""The arguments of each verb, as dataclasses, and their reading: once, into what was given; the rest are defaults.

An option of the command line, a name in a YAML file and a key of `imbdiff.config.override` are one thing, converted by
one rule. What is not given is taken from the file, the preset or the run folder, which are known only when the command
line is read: so a parser here gives the options that were named, and nothing else.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from imbdiff.config import convert
from imbdiff.runtime.errors import ConfigError

#: options whose names depend on what is named: --method.tau, --sample.guidance.scale
OPEN = ("method", "sample.guidance")
#: of a field: it is given by its place; a group of options without a prefix
POSITIONAL, INLINE = {"positional": True}, {"inline": True}


@dataclass(frozen=True)
class Option:
    """One option: its dotted name, type, default and explanation."""

    name: str
    hint: Any
    default: Any
    text: str
    positional: bool = False
    also: tuple[str, ...] = ()

    @property
    def many(self) -> str | int | None:
        """How many values it takes, as argparse says it."""
        kinds = [kind for kind in (self.hint, *get_args(self.hint)) if get_origin(kind) is tuple]
        if not kinds:
            return None
        inner = get_args(kinds[0])
        return "*" if inner[-1] is Ellipsis else len(inner)

    @property
    def flag(self) -> bool:
        return self.hint is bool or bool in get_args(self.hint)

    @property
    def metavar(self) -> str:
        """What is written for its value in the help."""
        if self.positional:
            return self.name.upper()
        kinds = get_args(self.hint) if get_args(self.hint) and get_origin(self.hint) is not Literal else (self.hint,)
        kinds = tuple(k for k in kinds if k not in (type(None), Ellipsis))
        words = [w for k in kinds for w in (map(str, get_args(k)) if get_origin(k) is Literal else [_word(k)])]
        return "|".join(dict.fromkeys(words))

    def shown(self, value: Any) -> str:
        """Its text and `value`, for the help."""
        if "Default:" in self.text and value in (None, (), ""):
            return self.text
        if isinstance(value, tuple | list):
            value = " ".join(map(str, value)) or "none"
        return self.text if value is MISSING else f"{self.text} Default: {'none' if value is None else value}."


def _word(kind: Any) -> str:
    return {int: "N", float: "X", bool: "True|False", str: "TEXT"}.get(kind, "TEXT")


@cache
def field_docs(kind: type) -> dict[str, str]:
    """The text behind each field of a dataclass and its bases, from their source."""
    bases = (base for base in reversed(kind.__mro__) if is_dataclass(base))
    return {name: text for base in bases for name, text in _own_docs(base).items()}


def _own_docs(kind: type) -> dict[str, str]:
    body: Any = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
    found: dict[str, str] = {}
    for one, text in pairwise(body):
        value: Any = text.value if isinstance(text, ast.Expr) else None
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(value, ast.Constant):
            found[one.target.id] = " ".join(str(value.value).split())
    return found


def options_of(kind: Any, prefix: str = "") -> dict[str, Option]:
    """The options that the fields of a dataclass are, those of its groups among them."""
    hints, texts = get_type_hints(kind), field_docs(kind)
    found: dict[str, Option] = {}
    for f in fields(kind):
        hint = hints[f.name]
        if is_dataclass(hint):
            found |= options_of(hint, prefix if f.metadata.get("inline") else f"{prefix}{f.name}.")
        elif get_origin(hint) is not Mapping:
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            name, also = prefix + f.name, tuple(f.metadata.get("also", ()))
            found[name] = Option(name, hint, default, texts.get(f.name, ""), f.metadata.get("positional", False), also)
    return found


def given(kind: Any, verb: str, arguments: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """The options of the dataclass `kind` that `arguments` name, converted, and the help that they ask for.

    Returns:
        ({dotted name: value}, None, "help" or "help-all").

    Raises:
        ConfigError: an unknown option (with the nearest), a missing argument, or a value of the wrong type.
    """
    known = options_of(kind)
    parser = _Parser(prog=f"imbdiff {verb}", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.known, parser.verb = known, verb
    parser.add_argument("-h", "--help", dest="help", action="store_const", const="help")
    parser.add_argument("--help-all", "--help_all", dest="help", action="store_const", const="help-all")
    for option in known.values():
        if option.positional:
            parser.add_argument(option.name, nargs=option.many or "?")
        else:
            parser.add_argument(f"--{option.name}", *option.also, dest=option.name, nargs=option.many)
    found = vars(parser.parse_args(_normal(arguments, known)))
    asked = found.pop("help", None)
    values = {name: _converted(text, known[name]) for name, text in found.items()}
    missing = [o.name for o in known.values() if o.default is MISSING and o.name not in values]
    if missing and asked is None:
        names = ", ".join(n.upper() if known[n].positional else f"--{n}" for n in missing)
        raise ConfigError(f"imbdiff {verb}: {names} is required", f"see imbdiff {verb} --help")
    return values, asked


class _Parser(argparse.ArgumentParser):
    known: Mapping[str, Option]
    verb: str

    def error(self, message: str) -> Any:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        if message.startswith("unrecognized") and unknown.startswith("-"):
            name = unknown.lstrip("-").split("=")[0]
            near = difflib.get_close_matches(name, self.known, n=1)
            hint = f"did you mean --{near[0]}?" if near else f"imbdiff {self.verb} --help-all shows all"
            raise ConfigError(f"imbdiff {self.verb} has no option --{name}", hint)
        raise ConfigError(f"imbdiff {self.verb}: {message}", f"imbdiff {self.verb} --help-all shows all options")


def _normal(arguments: Sequence[str], known: Mapping[str, Option]) -> list[str]:
    """Names with underscores, and flags with a value: --dry-run is --dry_run=True, --evaluate.no-cas ...cas=False."""
    made: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--") or name == "--":
            made.append(word)
            continue
        name = name.replace("-", "_").replace("__", "--", 1)
        head, dot, last = name[2:].rpartition(".")
        positive = head + dot + last.removeprefix("no_")
        option = known.get(name[2:]) or known.get(positive)
        if option is not None and option.flag:
            if not equals:
                takes = rest and rest[0].lower() in ("true", "false", "none") and name[2:] == option.name
                value = rest.pop(0) if takes else str(name[2:] == option.name)
            made.append(f"--{option.name}={value}")
        else:
            made.append(name + equals + value)
    return made


def _converted(text: Any, option: Option) -> Any:
    none = type(None) in get_args(option.hint)
    if none and text == "None":
        return None
    hint = option.hint
    kinds = [k for k in get_args(hint) if k is not type(None)]
    if none and len(kinds) == 1:
        hint = kinds[0]
    return convert(text, hint, option.name if option.positional else f"--{option.name}")


def made(kind: Any, verb: str, arguments: Sequence[str]) -> Any:
    """An instance of `kind`, as the arguments of a verb say; help is printed, and the program ends."""
    values, asked = given(kind, verb, arguments)
    if asked:
        print_help(kind, verb, {}, shown=None)
    return _filled(kind, values)


def _filled(kind: Any, values: Mapping[str, Any], prefix: str = "") -> Any:
    hints, found = get_type_hints(kind), {}
    for f in fields(kind):
        if is_dataclass(hints[f.name]) and f.metadata.get("inline"):
            found[f.name] = _filled(hints[f.name], values)
        elif prefix + f.name in values:
            found[f.name] = values[prefix + f.name]
    return kind(**found)


def print_help(kind: Any, verb: str, values: Mapping[str, Any], shown: Sequence[str] | None) -> None:
    """Prints the options of a verb with the `values` that will hold, and ends the program.

    Args:
        shown: names of the options; None: all.
    """
    known = options_of(kind)
    places = " ".join(
        f"[{o.metavar}]" if o.default is not MISSING else o.metavar for o in known.values() if o.positional
    )
    more = "" if shown is None else f"\n\nimbdiff {verb} --help-all shows all {len(known)} options."
    about = " ".join((inspect.getdoc(kind) or "").split())
    parser = argparse.ArgumentParser(
        prog=f"imbdiff {verb}", add_help=False, usage=f"imbdiff {verb} {places} [OPTIONS]", description=about,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=118),
    )  # fmt: skip
    groups: dict[str, Any] = {}
    for option in known.values():
        if shown is not None and option.name not in shown and not option.positional:
            continue
        head = option.name.rpartition(".")[0] or ("arguments" if option.positional else "options")
        if head not in groups:
            groups[head] = parser.add_argument_group(head)
        value = values.get(option.name, option.default)
        text = option.shown(MISSING if value is False else value).replace("%", "%%")
        name = f"--{option.name if '.' in option.name else option.name.replace('_', '-')}"
        if option.positional:
            groups[head].add_argument(option.name, metavar=option.metavar, help=text, nargs=option.many)
        elif option.hint is bool and value is False:
            groups[head].add_argument(name, action="store_true", help=text)
        else:
            groups[head].add_argument(name, metavar=option.metavar, help=text)
    print(parser.format_help() + more.lstrip("\n"))
    sys.exit(0)


def split_constants(arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments without those of `OPEN` groups, and these by name, their values read as YAML.

    Raises:
        ConfigError: one of them has no value.
    """
    import yaml

    left: list[str] = []
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if not any(name.startswith(f"--{group}.") for group in OPEN):
            left.append(argument)
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{name} has no value", f"give it as {name} VALUE")
            value = rest.pop(0)
        # names of guidances have hyphens
        key = name[2:].replace("-", "_") if name.startswith("--method.") else name[2:]
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[key] = value
    return left, found
