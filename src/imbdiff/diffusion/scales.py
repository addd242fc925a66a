"""Guidance scales: as users write them, by class and group, and as guidances use them, one per label."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from imbdiff.data.stats import Groups
from imbdiff.runtime.errors import ConfigError, listing, nearest


def scale_table(scale: float | Sequence[float], classes: int, least: float = 0.0, null: bool = False) -> list[float]:
    """(C + 1,) the scale of each label, the null label's last.

    Args:
        scale: one number, or one per class, (C,).
        least: the least that is allowed.
        null: the null label takes a single number too, and `scale` may name its own as the last of (C + 1,);
            otherwise it has 0.

    Raises:
        ConfigError: a number is below `least` or not finite, or their number is wrong.
    """
    single = isinstance(scale, int | float)
    values = [float(scale)] * classes if isinstance(scale, int | float) else [float(w) for w in scale]
    if any(not least <= value < float("inf") for value in values):
        raise ConfigError(
            f"guidance scale {scale} must be at least {least:g} and finite", "0 is no guidance; most use 0.3 to 2"
        )
    if len(values) == classes:
        return [*values, values[0] if null and single else 0.0]
    if not null or len(values) != classes + 1:
        raise ConfigError(f"{len(values)} guidance scales for {classes} classes", "give one number, or one per class")
    return values


def per_class(
    text: str | float, names: Sequence[str], groups: Groups | None, default: float = 0.0
) -> float | tuple[float, ...]:
    """Guidance scales as they are written: one number, or numbers for groups and classes.

        "1.6"                   1.6 for all
        "few=0.5,many=1.6"      by group; `default` for all others
        "1.2,few=0"             a number first is for all others
        "melanoma=0.3,few=1"    a class goes before its group, and a class's name before a group of the same name

    Args:
        text: see above; a number stands for itself.
        names: (C,) class names, in label order. Those with a comma or "=" in them may be written as they are.
        groups: of the classes; None: classes alone can be named.
        default: of classes that nothing is said of.

    Returns:
        One number if no name is given, otherwise (C,) of them.

    Raises:
        ConfigError: an unknown name (with the nearest), no number, a number below -1, a name given twice, or no text.
    """
    how = 'write one number, or such as "1.2,few=0.5"'
    if not isinstance(text, str):
        return _scale(text, str(text), how)
    rest, entries = default, text
    first, _, after = text.partition(",")
    if _is_number(first):
        rest, entries = _scale(first, text, how), after
        if not entries:
            return rest
    among = groups.names if groups else ()
    known = sorted({*names, *among}, key=len, reverse=True)  # by name: there may be a comma or "=" in one
    entry = re.compile(rf"\s*({'|'.join(map(re.escape, known))})\s*=([^,]*)(?:,|$)")
    found: dict[str, float] = {}
    while entries.strip():
        match = entry.match(entries)
        if match is None:
            piece = entries.partition(",")[0].strip()
            name = piece.rpartition("=")[0].strip()
            if not name:
                raise ConfigError(f"guidance scale {text!r}: {piece!r} names no class or group", how)
            listed = f"groups: {', '.join(among) or 'none'}; classes:\n{listing(names, 10)}"
            remedy = nearest(name, [*names, *among], f"name one of them; {listed}")
            raise ConfigError(f"guidance scale {text!r}: there is no class or group {name!r}", remedy)
        if match[1] in found:
            raise ConfigError(f"guidance scale {text!r}: {match[1]!r} is given twice", "give it once")
        found[match[1]] = _scale(match[2].strip(), text, how)
        entries = entries[match.end() :]
    if not found:
        raise ConfigError("the guidance scale is empty", how)
    group = {k: among[g] for k, g in enumerate(groups.of_class)} if groups else {}
    by_group = {name: value for name, value in found.items() if name not in names}
    return tuple(found.get(name, by_group.get(group.get(k, ""), rest)) for k, name in enumerate(names))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _scale(value: str | float, text: str, how: str) -> float:
    if isinstance(value, bool) or not _is_number(value):  # type: ignore[arg-type]
        raise ConfigError(f"guidance scale {text!r}: {value!r} is not a number", how)
    number = float(value)
    if not math.isfinite(number) or number < -1:
        raise ConfigError(
            f"guidance scale {text!r}: {value} must be at least -1 and finite", "0 is no guidance, -1 drops the class"
        )
    return number
