# SPDX-License-Identifier: Apache-2.0
"""Nonsense in JSON files and in flags: one line, no traceback, and no voxel that is no number.

What takes long is replaced; what is read and how it is checked is not.
"""

import importlib
import json
import math
import random
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from absl import flags
from named_flags import lacking

from contourdiff_jax import cli
from contourdiff_jax.data.phantoms.heads import Heads

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:overflow encountered in exp"),  # of an axis to 1e308
]
DEEP = "deep"  # stands for lists within lists
NASTY = (
    *(None, True, "", "abc", "nan", -1, 0, 0.5, 2**70, 1e308, -1e308),
    *(math.nan, math.inf, -math.inf, [], {}, [[1]], ["a"], {"a": 1}, DEEP),
)
TRIED = 4  # of these for each field
PLACES = 80  # fields of a file at most


@pytest.fixture
def contourdiff(monkeypatch, capfd):
    """Run a command: its status and what it said on stderr, or a note of what went wrong."""

    def run(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["contourdiff"])
        status = cli.main(["contourdiff", *map(str, arguments)])
        return status, capfd.readouterr().err

    return run


def tried(arguments, run, named="") -> str:
    """What is wrong with how a command ends, in which something must be named; "" if nothing is."""
    try:
        status, said = run(*arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if status == 2 and said and (said.count("\n") > 1 or not said.startswith("contourdiff: ")):
        return f"not one line: {said}"
    if unknown := lacking(arguments[0], said):
        return f"flags that {arguments[0]} lacks, {unknown}: {said}"
    fine = status in (0, 1, 2) and "Traceback" not in said and named in said
    return "" if fine else f"{status}: {said or 'nothing said'}"


# --------------------------------------------------------------------------------------------------
# Fields of files
# --------------------------------------------------------------------------------------------------


def places(fields, place=()):
    """The places of all values in JSON, those that hold others too."""
    inner = fields.items() if isinstance(fields, dict) else enumerate(fields)
    for key, value in inner:
        yield (*place, key)
        if isinstance(value, dict | list):
            yield from places(value, (*place, key))


def replaced(fields, place, value) -> str:
    """JSON with another value in a place."""
    copy = json.loads(json.dumps(fields))
    inside = copy
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    return json.dumps(copy).replace(f'"{DEEP}"', "[" * 50_000 + "]" * 50_000)


def damaged(path: Path, choice: random.Random, most: int = PLACES):
    """Writes the JSON of a file with nonsense in one place after the other; yields what it is."""
    intact = path.read_text()
    fields = json.loads(intact)
    fields.pop("digest", None)
    every = list(places(fields))
    for place in choice.sample(every, min(most, len(every))):
        for value in choice.sample(NASTY, TRIED):
            path.write_text(replaced(fields, place, value))
            yield f"{path.name} {'.'.join(map(str, place))} = {value!r}"
    path.write_text(intact)


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def translated(trained, phantom_data, tmp_path, contourdiff):
    source = phantom_data / "test_ct"
    out = tmp_path / "translated"
    given = (f"--run={trained}", f"--source={source}", "--preset=ct", f"--out={out}")
    assert contourdiff("translate", *given)[0] == 0
    return out


def drawn(translator, sharding, seen, knots, beside=None):
    """In place of sampling: a picture that is no constant."""
    contour = np.float32(seen["contour"][..., 0])
    return 0.5 * contour - 0.25


def test_fields_of_a_run(run, phantom_data, tmp_path, contourdiff, monkeypatch):
    from contourdiff_jax.training import checkpoint
    from contourdiff_jax.translation import sampling

    monkeypatch.setattr(sampling, "draw", drawn)
    monkeypatch.setattr(checkpoint, "digest", lambda averages: "0" * 64)
    (source,) = [path for path in (phantom_data / "test_ct").iterdir()][:1]
    wrong = []
    for number, nonsense in enumerate(damaged(run / "config.json", random.Random(0))):
        out = tmp_path / f"out{number}"
        given = (f"--run={run}", f"--source={source}", "--preset=ct", f"--out={out}")
        if problem := tried(("translate", *given), contourdiff):
            wrong.append(f"{nonsense}: {problem}")
        for path in out.glob("*.nii.gz"):
            if not np.isfinite(np.asarray(nib.load(path).dataobj)).all():
                wrong.append(f"{nonsense}: voxels that are no numbers")
        shutil.rmtree(out, ignore_errors=True)
    assert not wrong, "\n".join(wrong)


def test_fields_of_a_store(store_path, tmp_path, contourdiff, monkeypatch):
    from contourdiff_jax import methods

    monkeypatch.setattr(methods, "continued", lambda *_, **__: True)
    store = shutil.copytree(store_path, tmp_path / "store")
    given = ("train", f"--store={store}", f"--workdir={tmp_path / 'run'}")
    wrong = [
        f"{nonsense}: {problem}"
        for nonsense in damaged(store / "dataset.json", random.Random(0))
        if (problem := tried(given, contourdiff))
    ]
    assert not wrong, "\n".join(wrong)


def test_fields_of_a_sidecar(translated, phantom_data, tmp_path, contourdiff, monkeypatch):
    from contourdiff_jax.evaluation import folder

    monkeypatch.setattr(folder.figures, "png", lambda figure: b"")
    for path in sorted(translated.glob("*"))[2:]:
        path.unlink()
    (sidecar,) = translated.glob("*.json")
    source, out = phantom_data / "test_ct", tmp_path / "scores"
    given = (f"--translated={translated}", f"--source={source}", f"--out={out}", "--overwrite")
    wrong = []
    for nonsense in damaged(sidecar, random.Random(0)):
        if "config." in nonsense or "sampler." in nonsense:  # which evaluate does not read
            continue
        if problem := tried(("evaluate", *given), contourdiff):
            wrong.append(f"{nonsense}: {problem}")
    assert not wrong, "\n".join(wrong)


def test_fields_of_metrics_and_logs(
    translated, run, phantom_data, tmp_path, contourdiff, monkeypatch
):
    from contourdiff_jax.reports import page

    given = (f"--translated={translated}", f"--source={phantom_data / 'test_ct'}")
    assert contourdiff("evaluate", *given, f"--out={tmp_path / 'scores'}")[0] == 0
    monkeypatch.setattr(page.figures, "png", lambda figure: b"")
    stats = run / "stats.jsonl"
    lines = stats.read_text().splitlines()
    (held_out,) = [line for line in lines if "heldout_loss_t" in line][:1]
    wrong = []
    for path in (tmp_path / "scores" / "metrics.json", run / "config.json", tmp_path / "line"):
        if path.name == "line":
            path.write_text(held_out)
        for nonsense in damaged(path, random.Random(0), most=6):
            if path.name == "line":
                stats.write_text("\n".join([path.read_text(), *lines]))
            given = [f"--out={tmp_path / 'report.html'}", "--overwrite", run, tmp_path / "scores"]
            if problem := tried(("report", *given), contourdiff):
                wrong.append(f"report, {nonsense}: {problem}")
            card = [f"--run={run}", f"--out={tmp_path / 'card.md'}", "--overwrite"]
            if problem := tried(("card", *card, tmp_path / "scores"), contourdiff):
                wrong.append(f"card, {nonsense}: {problem}")
    assert not wrong, "\n".join(wrong)


# --------------------------------------------------------------------------------------------------
# Flags
# --------------------------------------------------------------------------------------------------

NO_NUMBERS = ("nan", "inf", "-inf", "1e308", "-1e308", str(2**70), "-1", "abc", "")
NO_TEXTS = ("", "\0", "a" * 5000)
# What lets a command get as far as its flags; RUN is a run.
NEEDED = {
    "quickstart": ["--workdir={nowhere}"],
    "phantoms": ["--out={nowhere}"],
    "inspect": ["{nowhere}"],
    "prepare": ["--source={nowhere}", "--out={out}", "--preset=mr"],
    "contours": ["--store={nowhere}"],
    "train": ["--store={nowhere}", "--workdir={out}"],
    "translate": ["--run={run}", "--source={nowhere}", "--out={out}", "--preset=ct"],
    "evaluate": ["--translated={nowhere}", "--source={nowhere}", "--out={out}"],
    "segment": [
        *("--train_images={nowhere}", "--train_labels={nowhere}", "--test_images={nowhere}"),
        *("--test_labels={nowhere}", "--out={out}", "--preset=mr"),
    ],
    "report": ["--out={out}.html", "{nowhere}"],
    "card": ["--run={nowhere}", "--out={out}.md"],
    "import": ["--checkpoint={nowhere}", "--workdir={out}", "--preset=mr", "--spacing=1"],
    "export": ["--run={nowhere}", "--out={out}"],
    "weights": ["--out={nowhere}/weights"],
    "completion": [],
}
# Values that are none: a number flag that takes them is not bounded.
UNBOUNDED = ("nan", "inf", "-inf", "1e308", "-1e308", str(2**70))


def heads(out, *, overwrite, **options):
    """In place of generating them."""
    Heads(**options)
    return {}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_flags(command, trained, tmp_path, contourdiff, monkeypatch):
    """All are refused in one line; what no number of a flag can be, by the name of the flag."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("contourdiff_jax.commands.quickstart.quickstart", lambda *_, **__: True)
    monkeypatch.setattr("contourdiff_jax.commands.weights.fetch", lambda path: path)
    monkeypatch.setattr("contourdiff_jax.commands.phantoms.phantoms", heads)
    words = {"nowhere": tmp_path / "nowhere", "out": tmp_path / "out", "run": trained}
    needed = [argument.format(**words) for argument in NEEDED[command]]
    values = flags.FlagValues()
    importlib.import_module(cli.COMMANDS[command]).define_flags(values)
    wrong = []
    for name in values:
        number = isinstance(values[name].parser, flags.FloatParser | flags.IntegerParser)
        for value in NO_NUMBERS if number else NO_TEXTS:
            given = [a for a in needed if not a.startswith(f"--{name}=")]
            unbounded = f"--{name}" if number and value in UNBOUNDED else ""
            problem = tried((command, f"--{name}={value}", *given), contourdiff, unbounded)
            wrong += [f"--{name}={value!r:.20}: {problem}"] * bool(problem)
    assert not wrong, "\n".join(wrong)
