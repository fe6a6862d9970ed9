# SPDX-License-Identifier: Apache-2.0
"""Nothing of the user's is ever replaced or removed, whatever a command is asked to write to.

Every command is told to write where there is something already, with --overwrite where it has that:
it must refuse in one line that names the place, and leave all as it was.
"""

import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest
from absl import flags

from contourdiff_jax import cli, config, methods
from contourdiff_jax.evaluation.folder import Request, evaluate
from contourdiff_jax.runtime import disk

BEFORE = Path(__file__).parent / "fixtures" / "before"
TRANSLATE = ("--run=run", "--source=scans/ct", "--preset=ct", "--out={}")
NETWORK = [
    f"--config.model.{field}"
    for field in ("channels=(8,)", "attention=(False,)", "head_width=8", "groups=4")
]
# By command: the flags, with {} for the place, and the flags of what is only read; of commands that
# write one file, its name too, which a file of the user's has.
ASKED = {
    "quickstart": [(("--workdir={}",), ())],
    "phantoms": [(("--out={}", "--size=32", "--slices=2", "--subjects=2"), ())],
    "inspect": [
        (("--out={}", "scans/ct"), ("scans/ct",)),
        (("--json={}/inspect.json", "scans/ct"), None),
    ],
    "prepare": [(("--source=scans/ct", "--preset=ct", "--out={}"), ("scans/ct",))],
    "contours": [(("--store=store", "--out={}"), ("store",))],
    "train": [
        (("--store=store", "--workdir={}", "--config.seed=1"), ("store",)),
        (("--store=store", "--workdir={}", "--init=run", *NETWORK), ("run",)),
    ],
    "translate": [
        (TRANSLATE, ("run", "scans/ct")),
        ((*TRANSLATE, "--format=dicom"), ("scans/ct",)),
        ((*TRANSLATE, "--format=bids", "--kind=T1w"), ("scans/ct",)),
        ((*TRANSLATE, "--format=nnunet", "--labels=scans/labels"), ("scans/labels",)),
    ],
    "evaluate": [
        (
            ("--translated=translated", "--source=scans/ct", "--out={}", "--memorisation=store"),
            ("translated", "scans/ct", "store"),
        )
    ],
    "segment": [
        (
            (
                *("--train_images=translated", "--train_labels=scans/labels", "--out={}"),
                *("--test_images=scans/mr", "--test_labels=scans/labels"),
            ),
            ("translated", "scans/mr", "scans/labels"),
        )
    ],
    "report": [(("--out={}/report.html", "scores", "run"), None)],
    "card": [(("--out={}/card.md", "--run=run", "--store=store", "scores"), None)],
    "import": [(("--checkpoint=exported", "--workdir={}"), ("exported",))],
    "export": [(("--run=run", "--out={}"), ("run",))],
    "weights": [(("--out={}/weights.pth",), None)],
}
PRINTS = ("completion", "demo")  # write nothing where one says: see tests/demo for its own folder
ADDS = ("inspect", "translate")  # to a folder, whatever it holds, but for the names they give
REPLACES = {"prepare": "store", "evaluate": "scores"}  # its own, which it does not read
# What a user may have, by names that the commands give as well.
THEIRS = (
    *("notes.md", "weights/best.pt", "config.json", "checkpoints/best.pt", "stats.jsonl"),
    *("metrics.json", "rows.csv", "panels/p1.png", "statistics.json", "contact_sheet.png"),
    *("dataset.json", "index.csv", "slices.npy", "dataset_description.json", "inspect.json"),
    *("train_mr/p1.nii.gz", "model_index.json", "unet/config.json", "report.html", "card.md"),
    *("sheet.png", "report_figures/mine.png", "weights.pth", "imagesTr/phantom005_0000.nii.gz"),
    *("phantom005_ct.nii.gz", "phantom005_ct.json", "phantom005/report.txt"),
    *("phantom005/0001.dcm", "phantom005.json"),
    "sub-phantom005/anat/sub-phantom005_desc-contourdiff_T1w.nii.gz",
)


@pytest.fixture(scope="module")
def made(two_convolutions, phantom_data, store_path, tmp_path_factory):
    """Scans, and what the commands made of them."""
    root = tmp_path_factory.mktemp("owned")
    for name, source in (("ct", "test_ct"), ("mr", "test_mr"), ("labels", "test_labels")):
        shutil.copytree(phantom_data / source, root / "scans" / name)
        next((root / "scans" / name).glob("*6_*")).unlink()
    shutil.copytree(store_path, root / "store")
    settings = config.default()
    settings.model.update(channels=(8,), attention=(False,), head_width=8, groups=4)
    settings.train.update(images=4, batch=4, log=0, evaluate=0, sample=0, checkpoint=0)
    settings.sampler.update(steps=1, batch=4)
    settings.mesh.data = 1
    assert methods.train(settings, root / "store", root / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        contourdiff("translate", *TRANSLATE, place="translated")
        evaluate(Request("translated", "scores", source="scans/ct"))
    for name in THEIRS:
        disk.write(root / "home" / name, "{}" if name.endswith(".json") else "mine")
        if not name.endswith(".json"):
            disk.write(root / "bare" / name, "mine")
    (root / "link").symlink_to("home")
    disk.write(root / "exported" / "unet" / "config.json", "{}")
    # Of the version before, which made no marks.
    shutil.copytree(BEFORE / "store", root / "before")
    return root


def contourdiff(command, *asked, place):
    return cli.main(["contourdiff", command, *(flag.format(place) for flag in asked)])


def contents(root):
    """All files, with what is in them, and links."""
    return {
        path: os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def places(command, reads):
    """Where commands are told to write."""
    yield from ("home", "link", "home/notes.md")
    if command == "translate":
        yield "bare"
    if reads is None:
        return
    if command not in ADDS:
        yield from {"before", "scores", "run", "store", "exported", "."} - {REPLACES.get(command)}
    for name in reads:
        yield from (name, f"{name}/new", f"home/../{name}", ".")


def test_every_command_is_asked():
    assert {*ASKED, *PRINTS} == {*cli.COMMANDS}


@pytest.mark.parametrize("command", ASKED)
def test_nothing_of_the_user_s_is_touched(made, command, monkeypatch, capsys):
    monkeypatch.chdir(made)
    monkeypatch.setattr(sys, "argv", ["contourdiff"])
    values = flags.FlagValues()
    importlib.import_module(cli.COMMANDS[command]).define_flags(values)
    before = contents(made)
    for asked, reads in ASKED[command]:
        for place in places(command, reads):
            for flag in ((), ("--overwrite",)) if "overwrite" in values else ((),):
                status = contourdiff(command, *flag, *asked, place=place)
                told = capsys.readouterr().err.splitlines()[-1]
                assert (status, contents(made)) == (2, before), (asked, place, told)
                assert place in told and "--overwrite" not in told, (asked, place, told)
