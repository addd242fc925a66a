"""The options of a verb: fields of dataclasses, read from the command line into what was given; and its help.

An option, a name in a YAML file and a key of `imbdiff.config.override` are one thing, converted by one rule. What is
not given comes from a file, a preset or a run folder, which are known later: reading gives what was named, and no more.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from imbdiff.runtime.convert import convert
from imbdiff.runtime.errors import ConfigError, nearest

#: groups of options that depend on what is named: --method.tau, --sample.guidance.scale
CONSTANTS = ("method.", "sample.guidance.")
#: metadata of a field that is given by its place
POSITIONAL = {"positional": True}


#: of the help: its width, and where explanations begin
WIDTH, COLUMN = 120, 30


@dataclass(frozen=True)
class Option:
    """One option: its dotted name, type, default and explanation."""

    name: str
    hint: Any
    default: Any
    text: str
    positional: bool = False

    @property
    def many(self) -> int | None:
        """How many values it takes; 0: any number; None: it is no tuple."""
        inner = get_args(self.hint)
        return None if get_origin(self.hint) is not tuple else 0 if inner[-1] is Ellipsis else len(inner)

    @property
    def written(self) -> str:
        """The option with what stands for its value."""
        if self.positional:
            return self.name.upper()
        name = f"--{self.name if '.' in self.name else self.name.replace('_', '-')}"
        kinds, numbers = (self.hint, *get_args(self.hint)), {int: "N", float: "X"}
        value = next((numbers[kind] for kind in kinds if kind in numbers), "TEXT")
        if int in kinds and str in kinds:
            value = "N|HxW"  # a size
        value += " ..." if self.many == 0 else ""
        return name if self.hint is bool or self.choices else f"{name} {value}"

    @property
    def choices(self) -> str:
        kinds = (self.hint, *get_args(self.hint))
        return next(("|".join(get_args(kind)) for kind in kinds if get_origin(kind) is Literal), "")

    def describe(self, value: Any) -> str:
        """Its explanation, with the value that holds where nothing is given."""
        text = f"{self.choices}. {self.text}" if self.choices else self.text
        if value is MISSING or value is False or ("Default:" in text and value in (None, (), [])):
            return text
        shown = " ".join(map(str, value)) if isinstance(value, list | tuple) else value
        return f"{text} Default: {'none' if shown in (None, '') else shown}."


def options_of(kind: Any, prefix: str = "") -> dict[str, Option]:
    """The options that the fields of a dataclass are, those of its groups among them; its own before inherited ones."""
    hints, texts = get_type_hints(kind), _texts(kind)
    found: dict[str, Option] = {}
    for f in sorted(fields(kind), key=lambda f: f.name not in kind.__annotations__):
        hint, name = hints[f.name], prefix + f.name
        if is_dataclass(hint):
            found |= options_of(hint, f"{name}.")
        elif get_origin(hint) is not Mapping:
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            name = name.rstrip("_")  # of a field that would be a keyword
            found[name] = Option(name, hint, default, texts.get(f.name, ""), "positional" in f.metadata)
    return found


@cache
def _texts(kind: type) -> dict[str, str]:
    """The text behind each field of a dataclass and its bases, from their source."""
    found: dict[str, str] = {}
    for base in filter(is_dataclass, kind.__mro__):
        body: Any = ast.parse(inspect.getsource(base)).body[0].body  # type: ignore[attr-defined]
        for one, text in pairwise(body):
            if isinstance(one, ast.AnnAssign) and isinstance(text, ast.Expr):
                found.setdefault(one.target.id, " ".join(text.value.value.split()))  # type: ignore[attr-defined,union-attr]
    return found


def given(verb: str, words: Sequence[str], *kinds: Any) -> tuple[dict[str, Any], str]:
    """The options of dataclasses that `words` name, converted, and the help that they ask for.

    Returns:
        ({dotted name: value}, "", "help" or "help-all"); constants of a method or guidance are read as YAML.

    Raises:
        ConfigError: an unknown option (with the nearest), a missing argument, or a value of the wrong type.
    """
    known = {name: option for kind in kinds for name, option in options_of(kind).items()}
    values: dict[str, Any] = {}
    loose: list[str] = []
    asked, left = "", list(words)
    while left:
        word = left.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not name.startswith(CONSTANTS):  # names of guidances have hyphens
            name = name.replace("-", "_")
        name = meant(verb, name, known)
        group, _, last = name.rpartition(".")
        positive = meant(verb, f"{group}.{last[3:]}" if group else last[3:], known)
        if word in ("-h", "--help", "--help-all", "--help_all"):
            asked = "help-all" if "all" in word else "help"
        elif not word.startswith("--"):
            loose.append(word)
        elif name.startswith(CONSTANTS):
            values[name] = _constant(text if equals else _taken(word, left))
        elif last.startswith("no_") and positive in known and known[positive].hint is bool:
            values[positive] = False
        elif name not in known or known[name].positional:
            hint = nearest(name, known, f"imbdiff {verb} --help shows all", "--")
            raise ConfigError(f"imbdiff {verb} has no option --{name}", hint)
        elif known[name].hint is bool:
            follows = bool(left) and left[0].lower() in ("true", "false")
            values[name] = convert(text if equals else left.pop(0) if follows else "true", bool, word)
        elif known[name].many is None:
            values[name] = convert(text if equals else _taken(word, left), known[name].hint, f"--{name}")
        else:
            listed = [text] if equals else list(_taken_all(left, known[name].many))
            values[name] = convert(listed, known[name].hint, f"--{name}")
    for place in [option for option in known.values() if option.positional]:
        if place.many is not None and loose:
            values[place.name], loose = tuple(loose), []
        elif loose:
            values[place.name] = loose.pop(0)
    if loose:
        raise ConfigError(f"imbdiff {verb}: {loose[0]!r} is one argument too many", f"see imbdiff {verb} --help")
    missing = [o.written for o in known.values() if o.default is MISSING and o.name not in values]
    if missing and not asked:
        raise ConfigError(f"imbdiff {verb}: {missing[0]} is required", f"see imbdiff {verb} --help")
    return values, asked


def meant(verb: str, name: str, known: Collection[str]) -> str:
    """The option that a name stands for: its group may be left out where one alone has it, or the verb's own, and
    `data.` may stand before the name where the verb has no groups.

    Raises:
        ConfigError: several groups have it.
    """
    if name in known or name.startswith(CONSTANTS):
        return name
    group, _, last = name.rpartition(".")
    if group:
        return last if group == "data" and last in known else name
    found = [one for one in known if one.rpartition(".")[2] == name]
    found = [one for one in found if one.startswith(f"{verb}.")] or found
    if len(found) > 1:
        raise ConfigError(f"--{name} may mean {' or '.join(f'--{one}' for one in found)}", "name one of them")
    return found[0] if found else name


def _taken(word: str, left: list[str]) -> str:
    if not left or left[0].startswith("--"):
        raise ConfigError(f"{word} has no value", f"give it as {word} VALUE")
    return left.pop(0)


def _taken_all(left: list[str], many: int | None) -> Iterator[str]:
    n = 0
    while left and not left[0].startswith("--") and (not many or n < many):
        n += 1
        yield left.pop(0)


def _constant(text: str) -> Any:
    import yaml

    if text == "None":  # as other options take it
        return None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def help_text(
    verb: str,
    kinds: Sequence[Any],
    values: Mapping[str, Any] | None = None,
    groups: Collection[str] | None = None,
    hidden: Collection[str] = (),
    first: Sequence[str] = (),
) -> str:
    """The help of a verb.

    Args:
        kinds: the dataclasses of its options; the first one's docstring says what the verb does.
        values: that hold where nothing is given, in place of the dataclasses' own, by dotted name.
        groups: those that the verb uses; None: all.
        hidden: options that it does not take.
        first: options of groups that are wanted most: they come first.
    """
    known = [option for kind in kinds for option in options_of(kind).values()]
    places = [o.written if o.default is MISSING else f"[{o.written}]" for o in known if o.positional]
    lines = [f"usage: imbdiff {verb} {' '.join(places)} [OPTIONS]", ""]
    lines += textwrap.wrap(" ".join((inspect.getdoc(kinds[0]) or "").split()), WIDTH)
    last = None
    places_of = {name: i for i, name in enumerate(first)}
    common = sorted((o for o in known if o.name in places_of), key=lambda o: places_of[o.name])
    plain = [o for o in known if "." not in o.name]
    grouped = [o for o in known if "." in o.name and o.name not in places_of]
    for option in (*sorted(plain, key=lambda o: not o.positional), *common, *grouped):
        group = option.name.rpartition(".")[0]
        if option.name in places_of:
            group = "used most"
        if option.name in hidden or (groups is not None and group not in ("", "used most", *groups)):
            continue
        if group != last:
            lines += ["", f"{group}:"] if group else [""]
            last = group
        value = (values or {}).get(option.name, option.default)
        text = textwrap.wrap(option.describe(value), WIDTH - COLUMN)
        if len(option.written) > COLUMN - 4:
            text.insert(0, "")
        lines += [f"  {option.written if i == 0 else '':<{COLUMN - 2}}{line}".rstrip() for i, line in enumerate(text)]
    left = [o for o in grouped if o.name not in hidden and o.name.rpartition(".")[0] not in (groups or ())]
    if groups is not None and left:
        lines += ["", f"imbdiff {verb} --help-all shows the {len(left)} other options."]
    return "\n".join(lines)


COMPLETION = """\
_imbdiff() {
  local words= cur=${COMP_WORDS[COMP_CWORD]}
  if [ "$COMP_CWORD" -eq 1 ]; then words="VERBS"
  else case "$cur" in
    -*) case "${COMP_WORDS[1]}" in
OPTIONS
    esac;;
    *) case "${COMP_WORDS[1]} ${COMP_WORDS[COMP_CWORD-1]}" in
VALUES
    esac;;
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o default -F _imbdiff imbdiff
"""
ZSH = "autoload -U compinit bashcompinit; (( $+functions[compdef] )) || compinit; bashcompinit\n"


def completion(shell: str, verbs: Mapping[str, Sequence[Option]], names: Mapping[str, Collection[str]]) -> str:
    """A script for a shell that completes verbs, their options and values; where it knows none, names of files.

    Args:
        shell: bash or zsh.
        verbs: verb -> the options that it takes.
        names: option -> values that are no part of its type.
    """
    if shell not in ("bash", "zsh"):
        raise ConfigError(f"no completion for {shell!r}", "use imbdiff --completion bash, or zsh")
    options, values = [], []
    for verb, known in verbs.items():
        flags = {option.name: option.written.split()[0] for option in known if not option.positional}
        options.append(f'      {verb}) words="--help {" ".join(flags.values())}";;')
        for option in known:
            found = " ".join(names.get(option.name, ())) or option.choices.replace("|", " ")
            if found:
                values.append(f'      "{verb} {flags.get(option.name, verb)}") words="{found}";;')
    text = COMPLETION.replace("VERBS", " ".join(verbs)).replace("VALUES", "\n".join(values))
    return ZSH * (shell == "zsh") + text.replace("OPTIONS", "\n".join(options))
