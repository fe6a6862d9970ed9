# SPDX-License-Identifier: Apache-2.0
"""Forms: what is read from JSON is checked once, before anything is made of it.

A form says what a value must be, in the words of type hints:

    float, int, str, bool   finite numbers, whole ones of 64 bits; true and false are no numbers
    X | None, object        or null; anything
    tuple[X, Y], tuple[X, ...], dict[str, X]
    {"a": X, "b?": Y}       an object with these fields, and perhaps others; b may be missing
    a dataclass             an object with the fields of the class and no others

What digests cannot vouch for, since it holds them, has a digest of its own among its fields:
`sealed` adds it, and `read` compares it.
"""

import contextlib
import dataclasses
import hashlib
import json
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk

SEAL = "digest"  # the field with the SHA-256 of the others
DEEPEST = 32  # lists and objects within one another, at most
WORDS = {float: "a finite number", int: "a whole number", str: "a text", bool: "true or false"}


def read(path: Path, form, remedy: str, schema: int | None = None):
    """The content of a JSON file: lists are tuples and objects dataclasses where the form says so.

    Args:
      remedy: what to do where the file cannot be used.
      schema: what its field "schema" must be.

    Raises:
      InputError: unreadable, not of that form or schema, or changed since it was sealed.
    """
    with naming(path, remedy):
        try:
            if path.exists() and not path.is_file():
                raise InputError("no regular file")
            value = parsed(path.read_bytes())
        except OSError as error:
            raise InputError(f"cannot be read: {disk.reason(error)}") from error
        found = value.get("schema") if isinstance(value, dict) else None
        if schema not in (None, found):
            raise InputError(f"of schema {found!r:.20}, not of schema {schema}")
        content = checked(value, form)
    if isinstance(value, dict) and SEAL in value and value != sealed(value):
        raise InputError(
            f"{path}: changed since it was written; if on purpose, remove its field {SEAL!r}, "
            f"otherwise {remedy}"
        )
    return content


def parsed(text: str | bytes):
    """The value of a JSON text; InputError for none, and for one that is nested too deep."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot be read as JSON: {disk.reason(error)}") from None
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _within(outer)]
    if level:
        raise InputError(f"cannot be read as JSON: nested deeper than {DEEPEST} levels")
    return value


def _within(value):
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def sealed(fields: dict) -> dict:
    """The fields with the digest of them all."""
    others = {name: value for name, value in fields.items() if name != SEAL}
    text = json.dumps(others, sort_keys=True)
    return others | {SEAL: hashlib.sha256(text.encode()).hexdigest()}


@contextlib.contextmanager
def naming(path: Path, remedy: str = "") -> Iterator[None]:
    """Tells an InputError within with the file that it is about, and with what to do."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}{remedy and f'; {remedy}'}") from None


def checked(value, form, name: str = ""):
    """A value as its form has it; raises InputError with the name of the field that is wrong."""
    kind, inner = typing.get_origin(form) or form, typing.get_args(form)
    if kind is types.UnionType:
        for other in inner[1:]:
            with contextlib.suppress(InputError):
                return checked(value, other, name)
        return checked(value, inner[0], name)
    if kind is object:
        return value
    if kind is tuple:
        _require(isinstance(value, list | tuple), name, value, "a list")
        inner = inner[:1] * len(value) if ... in inner else inner
        _require(len(value) == len(inner), name, value, f"a list of {len(inner)}")
        numbers = range(len(value))
        return tuple(checked(value[n], inner[n], f"{name}[{n}]") for n in numbers)
    if kind is dict:
        _require(isinstance(value, Mapping), name, value, "an object")
        return {field: checked(v, inner[1], _dotted(name, field)) for field, v in value.items()}
    if kind in (*WORDS, types.NoneType):
        _require(_is(value, kind), name, value, WORDS.get(kind, "null"))
        return value
    return _object(value, form, name)


def _is(value, kind: type) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is float:
        largest = sys.float_info.max
        return isinstance(value, float | int) and -largest <= value <= largest
    return isinstance(value, kind) and (kind is not int or abs(value) < 2**63)


def _object(value, form, name: str):
    """An object of the fields of `form`: those that a dict lists, or a dataclass has."""
    _require(isinstance(value, Mapping), name, value, "an object")
    if is_class := not isinstance(form, dict):
        kind, hints, none = form, typing.get_type_hints(form), dataclasses.MISSING
        form = {
            f.name + "?" * (f.default is not none): hints[f.name] for f in dataclasses.fields(kind)
        }
    known = {field.removesuffix("?"): inner for field, inner in form.items()}
    missing = [field for field in form if field not in value and not field.endswith("?")]
    if missing:
        raise InputError(f"{_dotted(name, missing[0])}: missing")
    unknown = sorted(value.keys() - known.keys())
    if is_class and unknown:
        raise InputError(f"{_dotted(name, unknown[0])}: unknown; known are {', '.join(known)}")
    found = {
        field: checked(value[field], inner, _dotted(name, field))
        for field, inner in known.items()
        if field in value
    }
    return kind(**found) if is_class else {**value, **found}


def _require(holds: bool, name: str, value, words: str) -> None:
    if not holds:
        raise InputError(f"{name or 'content'}: {value!r:.60}, where {words} belongs")


def _dotted(name: str, field: str) -> str:
    return f"{name}.{field}" if name else str(field)
