"""Configurations: declared with their limits, checked when made, kept as JSON, compared and changed.

    @config
    class StageConfig:
        size: int = option(64, least=1)             # side of its pictures, pixels
        schedule: str = option("cosine", among=SCHEDULES)

A config is a frozen, keyword-only dataclass. Its class is known by name from where it is defined,
so that one of your own is saved and loaded like ours.
"""

import ast
import difflib
import math
import numbers
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, dataclass_transform, get_args, get_origin, get_type_hints

__all__ = [
    "config",
    "option",
    "config_to_dict",
    "config_from_dict",
    "with_defaults",
    "config_diff",
    "change",
    "counted",
    "did_you_mean",
    "shown",
]

KINDS: dict[str, type] = {}  # every config class by its name


# ---------------------------------------------------------------- declaring


def option(
    default: Any = MISSING,  # value of the field; none: it must be given
    *,
    least: float | None = None,  # smallest value
    most: float | None = None,  # largest value
    above: float | None = None,  # every value is larger
    among: Collection | None = None,  # allowed values, or a dictionary that has them as keys
    learns: bool = True,  # does it change what is learned? if not, it may change when a run goes on
) -> Any:
    "A field of a config with what is allowed there; in a tuple each entry is held to it."
    limits = dict(least=least, most=most, above=above, among=among, learns=learns)
    return field(default=default, metadata=limits)


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(
    cls: type | None = None,  # class with annotated fields
    *,
    retired: dict | None = None,  # fields of older files, and the one value that means nothing
) -> Any:
    "Make a class a config: frozen, keyword-only, checked, and found by its name when files are read."
    if cls is None:
        return lambda cls: config(cls, retired=retired)
    own: Callable | None = getattr(cls, "__post_init__", None)  # perhaps of the class it refines

    def check(self):
        for f in fields(self):
            object.__setattr__(self, f.name, _checked(self, f))
        if own is not None:
            own(self)

    cls.__post_init__ = check  # type: ignore[attr-defined]
    made: Any = dataclass(frozen=True, kw_only=True)(cls)
    made.retired = {**getattr(cls, "retired", {}), **(retired or {})}
    _register(made)
    return made


def _register(made: type):
    "Know a class by its name; a cell or a script may define it again, two modules may not."
    name, known = made.__name__, KINDS.get(made.__name__)
    modules = {made.__module__, known.__module__ if known else made.__module__}
    if len(modules - {"__main__"}) > 1:
        raise ValueError(
            f"config: {name}, got it from two modules, {sorted(modules)}, expected one"
        )
    KINDS[name] = made


@cache
def _hints(kind) -> dict:
    "Types of a config's fields."
    return get_type_hints(kind)


def _checked(given, f) -> Any:
    "A field's value as its type, or what is wrong with it."
    value, hint = getattr(given, f.name), _hints(given.__class__)[f.name]
    fit = _fit(value, hint)
    parts = fit if isinstance(fit, tuple) else (fit,)
    if fit is MISSING or not all(_is_allowed(v, f.metadata) for v in parts):
        name, expected = type(given).__name__, _expected(hint, f.metadata)
        near = did_you_mean(value, f.metadata.get("among") or ())
        raise ValueError(f"{name}: {f.name}, got {shown(value)}, expected {expected}{near}")
    return fit


def _is_allowed(value, limits) -> bool:
    "Does one value keep the field's limits?"
    if limits.get("among") is not None and value not in limits["among"]:
        return False
    if value is None or isinstance(value, (bool, str)):
        return True
    return not (
        (limits.get("least") is not None and value < limits["least"])
        or (limits.get("most") is not None and value > limits["most"])
        or (limits.get("above") is not None and value <= limits["above"])
    )


def _expected(hint, limits) -> str:
    "A field's type and limits in words."
    low, high, above = (limits.get(k) for k in ("least", "most", "above"))
    if limits.get("among") is not None:
        return f"one of {tuple(limits['among'])}"
    words = _words(hint)
    if low is not None and high is not None:
        return f"{words}, {low:g} to {high:g}"
    if above is not None:
        words += f" above {above:g}"
    if low is not None:
        words += f", {low:g} or more"
    return words + (f", at most {high:g}" if high is not None else "")


def _words(hint) -> str:
    "A type in words."
    names = {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}
    names[NoneType] = "None"
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        many = "any number of entries" if kinds[-1] is Ellipsis else f"{len(kinds)} entries"
        return f"a tuple of {many}, each {_words(kinds[0])}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_words, get_args(hint)))
    return names.get(hint) or f"a {getattr(hint, '__name__', hint)} made by `@config`"


def _fit(value, hint):
    "The value as this type; `MISSING` if it does not fit."
    if get_origin(hint) in (Union, UnionType):
        found = (_fit(value, kind) for kind in get_args(hint))
        return next((v for v in found if v is not MISSING), MISSING)
    if get_origin(hint) is tuple:
        return _fit_tuple(value, get_args(hint))
    if hint is Any:
        return value
    if (fit := _SIMPLE.get(hint)) is not None:
        return fit(value)
    is_config = type(value).__name__ in KINDS  # an instance: what else could be saved?
    return value if is_config and isinstance(value, hint) else MISSING


def _fit_tuple(value, kinds: tuple):
    "A tuple from a tuple or list whose entries fit."
    if not isinstance(value, (tuple, list)):
        return MISSING
    kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
    fits = tuple(_fit(v, k) for v, k in zip(value, kinds))
    return fits if len(value) == len(kinds) and MISSING not in fits else MISSING


def _float(value):
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return MISSING
    with suppress(OverflowError):
        return float(value) if math.isfinite(value) else MISSING
    return MISSING


def _int(value):
    is_whole = isinstance(value, numbers.Integral) and _float(value) is not MISSING
    return int(value) if is_whole else MISSING


def _bool(value):
    is_flag = isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")  # numpy's
    return bool(value) if is_flag else MISSING


def _str(value):
    return str(os.fspath(value)) if isinstance(value, (str, os.PathLike)) else MISSING


_SIMPLE: dict[Any, Callable] = {
    int: _int,
    float: _float,
    bool: _bool,
    str: _str,
    NoneType: lambda value: None if value is None else MISSING,
}


# ---------------------------------------------------------------- JSON


def _plain(value):
    "A value as JSON can hold it."
    if is_dataclass(value):
        return config_to_dict(value)
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def config_to_dict(
    config,  # a config
) -> dict:  # plain values; nested configs likewise, each with its class under "type"
    "A config as JSON can hold it."
    values = {f.name: _plain(getattr(config, f.name)) for f in fields(config)}
    return dict(type=type(config).__name__, **values)


def config_from_dict(
    values: dict,  # what `config_to_dict` gave, also after a trip through JSON
) -> Any:  # the config
    "Rebuild a config; a class or a key that nobody knows is an error."
    return _build(values)


def _build(value):
    if isinstance(value, list):
        return tuple(_build(v) for v in value)
    if not isinstance(value, dict):
        return value
    if (name := value.get("type")) not in KINDS:
        raise ValueError(
            f"config_from_dict: type, got {name!r}, expected one of {tuple(KINDS)};"
            " a class of your own is known once the module that defines it is imported"
        )
    kind: Any = KINDS[name]
    names = {f.name for f in fields(kind)}
    needed = {f.name for f in fields(kind) if f.default is MISSING}
    meaningless = {k for k, v in kind.retired.items() if k in value and _plain(v) == value[k]}
    if extra := sorted(set(value) - names - meaningless - {"type"}):
        raise ValueError(
            f"config_from_dict: {name}, got unknown {extra}, expected among {sorted(names)}"
        )
    if missing := sorted(needed - set(value)):
        raise ValueError(
            f"config_from_dict: {name}, got no {missing}, expected all of {sorted(needed)}"
        )
    return kind(**{k: _build(v) for k, v in value.items() if k in names})


def with_defaults(
    values,  # what `config_to_dict` gave, perhaps long ago
):  # the same as it would be written today: new fields have their defaults
    "A config on disk, brought up to date."
    if isinstance(values, list):
        return [with_defaults(v) for v in values]
    if not isinstance(values, dict):
        return values
    kind: Any = KINDS.get(values.get("type", ""))
    defaults, retired = {}, {}
    if kind is not None:
        defaults = {f.name: _plain(f.default) for f in fields(kind) if f.default is not MISSING}
        retired = {k for k, v in kind.retired.items() if values.get(k) == _plain(v)}
    return defaults | {k: with_defaults(v) for k, v in values.items() if k not in retired}


# ---------------------------------------------------------------- what differs


ABSENT = "nothing"  # how a part is shown that one side lacks


def config_diff(
    old,  # plain values on disk
    new,  # plain values of this run
    path: str = "",  # name of the part that is compared; empty: the whole
) -> list[str]:  # one line for each difference: "training.0.steps: 1400 on disk, 1500 now"
    "What differs between two nested configs, in all that changes what is learned."
    if isinstance(old, dict) and isinstance(new, dict) and old.get("type") == new.get("type"):
        keys: Any = [k for k in dict.fromkeys([*old, *new]) if _learns(new.get("type"), k)]
        pairs = [(k, old.get(k, ABSENT), new.get(k, ABSENT)) for k in keys]
    elif isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        if len(old) != len(new) or not any(isinstance(v, (dict, list, tuple)) for v in old):
            return [] if list(old) == list(new) else [_line(path, old, new)]
        pairs = [(k, a, b) for k, (a, b) in enumerate(zip(old, new))]
    else:
        return [] if old == new else [_line(path, old, new)]
    below = (config_diff(a, b, f"{path}.{k}" if path else str(k)) for k, a, b in pairs)
    return [line for lines in below for line in lines]


def _learns(kind: str | None, name: str) -> bool:
    "Does this field of a config, known by its class's name, change what is learned?"
    known = getattr(KINDS.get(kind or ""), "__dataclass_fields__", {})
    return name not in known or known[name].metadata.get("learns", True)


def _line(path: str, old, new) -> str:
    "One difference."
    return f"{path}: {shown(old)} on disk, {shown(new)} now"


def shown(
    value,  # anything
) -> str:
    "A value short enough for a line."
    if isinstance(value, dict) and "type" in value:
        return f"{value['type']}(...)"
    text = value if value is ABSENT else " ".join(repr(value).split())
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


# ---------------------------------------------------------------- changes from the command line


def change(
    config,  # a config or a tuple of them
    path: str,  # dotted names and numbers, as in "stages.1.network.blocks"
    value: str,  # what to put there, as one writes it in Python; a bare word is a string
):  # a copy of the config; the given one is unchanged
    "Replace one value, which must have the type of its field."
    return _change(config, path.split("."), value, path)


def _change(config, names: list[str], text: str, path: str):
    "Walk down, replace, and rebuild (and so check) every config on the way back."
    if isinstance(config, tuple):
        return _change_entry(config, names, text, path)
    known = [f.name for f in fields(config)]
    if names[0] not in known:
        hint = did_you_mean(names[0], known)
        raise ValueError(f"--set {path}: got {names[0]!r}, expected one of {_names(config)}{hint}")
    inner = getattr(config, names[0])
    is_config = is_dataclass(inner) or isinstance(inner, tuple) and inner and is_dataclass(inner[0])
    if is_config and len(names) == 1:
        raise ValueError(f"--set {path}: expected a name after it: {_names(inner)}")
    if not is_config and len(names) > 1:
        raise ValueError(f"--set {path}: {names[0]} is a value and has no parts")
    if is_config:
        new = _change(inner, names[1:], text, path)
    else:
        new = _typed(text, _hints(config.__class__)[names[0]], path)
    return replace(config, **{names[0]: new})


def _change_entry(configs: tuple, names: list[str], text: str, path: str) -> tuple:
    "The same for one config of a tuple."
    if not names[0].isdecimal() or int(names[0]) >= len(configs):
        last = len(configs) - 1
        raise ValueError(f"--set {path}: got {names[0]!r}, expected a number from 0 to {last}")
    k = int(names[0])
    if len(names) == 1:
        raise ValueError(f"--set {path}: expected a name after the number: {_names(configs[k])}")
    return (*configs[:k], _change(configs[k], names[1:], text, path), *configs[k + 1 :])


def _names(config) -> str:
    "What may follow in a path."
    if isinstance(config, tuple):
        return f"a number from 0 to {len(config) - 1}"
    return ", ".join(f.name for f in fields(config))


def counted(
    n: int,  # how many
    one: str,  # the noun where it is one, perhaps with its verb: "picture", "picture is"
    many: str | None = None,  # where it is not; None: with an s
) -> str:  # "1 picture", "20,570 pictures"
    "A number and its noun."
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def did_you_mean(
    name,  # as it was written
    known: Collection,  # what there is
) -> str:  # "; did you mean ...?", or nothing
    "A suggestion for a misspelt name."
    names = [k for k in known if isinstance(k, str)]
    near = difflib.get_close_matches(name.lower(), names, 1) if isinstance(name, str) else []
    return f"; did you mean {near[0]}?" if near else ""


def _typed(text: str, hint, path: str):
    "A value from its text, refused unless it fits the type hint."
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):  # the last: a set of lists
        value = {"true": True, "false": False, "none": None}.get(text.lower(), text)
    is_whole = isinstance(value, float) and value.is_integer()  # as in 1e3
    for candidate in (value, int(value) if is_whole else value, text):
        if (fit := _fit(candidate, hint)) is not MISSING:
            return fit
    raise ValueError(f"--set {path}: got {text!r}, expected {_words(hint)}")
