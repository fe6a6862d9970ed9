# SPDX-License-Identifier: Apache-2.0
"""Forms: what fits is taken as it is, what does not is named, and what changed is noticed."""

import dataclasses
import json
import math

import pytest

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk, forms


@dataclasses.dataclass(frozen=True)
class Pair:
    first: float
    second: tuple[int, ...] = ()


FITTING = [
    (float, 1.5, 1.5),
    (float, 2, 2),
    (int, -3, -3),
    (bool, True, True),
    (str, "", ""),
    (float | None, None, None),
    (object, [{}], [{}]),
    (tuple[float, str], [1, "a"], (1, "a")),
    (tuple[int, ...], [], ()),
    (tuple[()] | tuple[int, int], [1, 2], (1, 2)),
    (dict[str, tuple[int, ...]], {"a": [1]}, {"a": (1,)}),
    ({"a": int, "b?": str}, {"a": 1, "c": None}, {"a": 1, "c": None}),
    ({"a": {"b": Pair}}, {"a": {"b": {"first": 1}}}, {"a": {"b": Pair(1)}}),
    (Pair, {"first": 1, "second": [2]}, Pair(1, (2,))),
]
OTHERS = [
    *((float, value) for value in (None, "1", True, math.nan, math.inf, -math.inf, 10**400, [])),
    *((int, value) for value in (1.0, "1", True, 2**63, None)),
    *((bool, value) for value in (0, 1.0, "true", None)),
    *((str, value) for value in (1, None, ["a"])),
    *((float | None, value) for value in ("", True, math.nan)),
    *((tuple[float, float], value) for value in ([1], [1, 2, 3], "12", {"0": 1, "1": 2}, None)),
    *((tuple[str, ...], value) for value in ("abc", ["a", 1], {"a": "b"})),
    *((dict[str, int], value) for value in ([], {"a": "b"}, None)),
    *(({"a": int, "b?": str}, value) for value in ({}, {"a": 1, "b": None}, [], "a")),
    *((Pair, value) for value in ({}, {"first": 1, "third": 2}, {"first": "1"}, [1, [2]])),
]


@pytest.mark.parametrize(("form", "value", "made"), FITTING)
def test_what_fits_is_taken(form, value, made):
    assert forms.checked(value, form) == made
    assert type(forms.checked(value, form)) is type(made)


@pytest.mark.parametrize(("form", "value"), OTHERS)
def test_what_does_not_fit_is_named_in_one_line(form, value):
    with pytest.raises(InputError, match=r"^here\.it\b.*(belongs|missing|unknown)") as error:
        forms.checked({"it": value}, {"it": form}, "here")
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize("text", ["", "{", b"\xff\xfe\x00{", "[" * 100_000, "[" * 40 + "]" * 40])
def test_what_is_no_json_is_refused(text, tmp_path):
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"a\.json: cannot be read as JSON: .*; make it again$"):
        forms.read(tmp_path / "a.json", object, "make it again")


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent", tmp_path / ("a" * 300)):
        with pytest.raises(InputError, match=f"{path}: (no regular file|cannot be read: )"):
            forms.read(path, object, "")


def test_a_changed_digit_is_noticed_and_can_be_accepted(tmp_path):
    """Wherever it is; how the file is laid out does not count."""
    path, fields = tmp_path / "a.json", {"b": (1.25, None), "a": {"z": "ä", "y": 2}}
    disk.write_json(path, forms.sealed(fields))
    intact = json.loads(path.read_text())
    path.write_text(json.dumps(intact, sort_keys=True))
    assert forms.read(path, {"a": {"y": int}}, "")["b"] == [1.25, None]
    for changed in ({"b": [1.26, None]}, {"a": {"z": "ä", "y": 3}}, {"c": 1}, {"digest": "0"}):
        path.write_text(json.dumps(intact | changed))
        with pytest.raises(InputError, match=r"a\.json: changed .*'digest', otherwise copy it"):
            forms.read(path, object, "copy it")
        path.write_text(json.dumps({k: v for k, v in (intact | changed).items() if k != "digest"}))
        forms.read(path, object, "copy it")
