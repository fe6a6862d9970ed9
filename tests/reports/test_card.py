# SPDX-License-Identifier: Apache-2.0
"""The model card: it says what run, store and evaluations say, no names, and one page of it."""

import json

import jax
import pytest

from contourdiff_jax import cli, models
from contourdiff_jax.data.prepare import prepare
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.evaluation import records
from contourdiff_jax.reports.card import card
from contourdiff_jax.training import checkpoint, run


def entry(value, n=3):
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": n}


TRANSLATION = {
    "ssim_mask": entry(0.61),
    "contour_recall": entry(0.875),
    "contour_precision": entry(0.75),
    "flicker": entry(0.09),
    "contrast_label_1": entry(0.19),
    "contrast_label_5": entry(0.05),
    "memory_distance": entry(0.2),
    "memory_closer_ratio": entry(0.52),
}
TRUTH = {
    "contour_recall": entry(0.9),
    "contour_precision": entry(0.8),
    "flicker": entry(0.07),
    "contrast_label_1": entry(0.2),
    "contrast_label_5": entry(-0.2),
}
DATA = {
    "subjects": ["Erika Mustermann"],
    "source preset": "ct",
    "target preset": "mr",
    "failed": ["Mustermann.nii.gz: broken"],
    "weights": "file, SHA-256 0",
}


@pytest.fixture
def trained(tiny, store_path, tmp_path):
    """What a run holds but for its checkpoints."""
    folder = tmp_path / "runs" / "mr"
    folder.mkdir(parents=True)
    run.begin(tiny, open_store(store_path)).save(folder)
    lines = [{"step": i, "images": 16 * i, "seconds": 60.0 * i, "loss": 0.1} for i in (1, 2)]
    lines[0]["heldout_loss"] = 0.25
    (folder / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def scores(tmp_path):
    """An evaluation's metrics.json."""
    return write(tmp_path / "from_ct")


def write(folder, **changes):
    folder.mkdir()
    methods = {"translation": TRANSLATION, "truth": TRUTH, "mean": {"ssim_mask": entry(0.33)}}
    fields = {"schema": 1, "methods": methods, "data": DATA} | changes
    (folder / "metrics.json").write_text(json.dumps(fields))
    return folder


def test_scores_are_of_this_run(trained, tmp_path):
    """By the digest of the weights that translated, where an evaluation has it."""
    model = models.build(run.load(trained).config.model)
    weights = jax.jit(model.init)(jax.random.key(0))
    checkpoint.save_averages(trained, weights)
    own = {records.WEIGHTS: checkpoint.digest(weights)}
    text = card(trained, tmp_path / "card.md", [write(tmp_path / "own", data=DATA | own)])
    assert "0.610" in text.read_text()
    other = write(tmp_path / "other", data=DATA | {records.WEIGHTS: "0" * 64})
    with pytest.raises(InputError, match=f"{other}.*: scores of another model"):
        card(trained, tmp_path / "other.md", [other])
    assert not (tmp_path / "other.md").exists()


def test_it_says_what_the_run_and_its_store_are(trained, store_path, tmp_path):
    text = card(trained, tmp_path / "card.md", store=store_path).read_text()
    store = open_store(store_path)
    init = models.build(run.load(trained).config.model).init
    count = sum(x.size for x in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))))
    assert f"| parameters of the network | {count:,}: " in text
    rows = len(store.rows("train"))
    subjects = len(store.subjects("train"))
    assert f"| train split | {subjects} subjects, {subjects} volumes, {rows} slices |" in text
    assert "| val split | 1 subject, 1 volume, " in text and "test split" not in text
    assert "32 images of 32 in 2.0 minutes" in text and "| held-out loss | 0.25, at best" in text
    assert "axial, 32 x 32 px of 7.2 mm" in text
    assert "no evaluation was given" in text and "was not measured" in text
    for subject in store.subjects():
        assert subject not in text


@pytest.mark.parametrize("method", ["regression", "diffusion"])
def test_who_sees_the_picture_is_not_said_to_see_contours_alone(trained, tmp_path, method):
    ours = run.load(trained)
    ours.config.method = method
    ours.config.model.conditions = ("contour", "picture")
    ours.save(trained)
    text = card(trained, tmp_path / "card.md").read_text()
    assert "from their contours and the grey picture in which these are sought, " in text
    assert "Training saw contours and pictures of MR alone" in text
    assert "beyond that picture is made up" in text
    assert "from their contours alone" not in text and "cannot be in the image" not in text


def test_licences_and_use_are_stated_or_said_not_to_be(trained, tmp_path):
    text = card(trained, tmp_path / "card.md").read_text()
    assert "| weights of this run | not stated |" in text
    assert "| licence of the data | not stated |" in text
    assert "Not for diagnosis" in text and "InceptionV3" not in text
    given = {"licence": "CC BY 4.0", "data_licence": "a | <b>", "use": "Teaching."}
    text = card(trained, tmp_path / "card.md", **given, overwrite=True).read_text()
    assert "| weights of this run | CC BY 4.0 |" in text
    assert "| licence of the data | a \\| &lt;b> |" in text
    assert "\nTeaching.\n" in text and "Research" not in text
    assert "not for diagnosis" in text  # whatever the use


def test_what_an_evaluation_is_called_is_no_markup(trained, tmp_path):
    methods = {"translation": TRANSLATION | {"kernel_![a](b)|<i>": entry(0.1)}}
    data = DATA | {"source preset": "<img src=x>"}
    folder = write(tmp_path / "[a](http:b)`c`*d*", data=data, methods=methods)
    text = card(trained, tmp_path / "card.md", [folder]).read_text()
    assert r"### [a\](http:b)\`c\`\*d\*: from &lt;IMG SRC=X>, 3 subjects" in text
    assert "<i" not in text.lower() and "![a](b)" not in text


def test_scores_and_failures_have_their_numbers(trained, scores, tmp_path):
    text = card(trained, tmp_path / "card.md", [scores]).read_text()
    assert "### from_ct: from CT, 3 subjects" in text
    assert "| SSIM in the body ↑ | 0.610 [0.600, 0.620] | 0.330 [0.320, 0.340] |" in text
    assert "12.5% (of the truth: 10.0%) of the source's contours are missing" in text
    assert "25.0% (of the truth: 20.0%) of the translation's were not asked for" in text
    # of label 1 nearly all of the contrast is there; of label 5 it has the wrong sign
    assert "label 5 -25% are left" in text and "label 1" not in text
    assert "slices flicker by 0.090 of the window, the truth's by 0.070" in text
    assert "chance of 0.520 [0.510, 0.530]" in text and "not measured" not in text
    assert "1 of the volumes could not be scored" in text
    assert "InceptionV3" in text and "Mustermann" not in text
    assert len(text.splitlines()) < 80


def test_cost_is_what_was_recorded(trained, tmp_path):
    cost = {f"seconds a {what}": entry(3.0) for what in ("slice", "volume")}
    text = card(trained, tmp_path / "a.md", [write(tmp_path / "a", cost=cost)]).read_text()
    assert "3 s a slice, 3 s a volume." in text
    sizes = {"host_bytes": 2**30, "device_bytes": 5 * 2**30}
    text = card(trained, tmp_path / "b.md", [write(tmp_path / "b", cost=cost | sizes)]).read_text()
    assert "with 5.00 GiB of memory" in text


def test_the_command(trained, scores, tmp_path, capsys):
    out = tmp_path / "card.md"
    argv = ["contourdiff", "card", f"--run={trained}", f"--out={out}", "--licence=MIT"]
    assert cli.main([*argv, str(scores)]) == 0
    assert capsys.readouterr().out == f"{out}\n" and "| MIT |" in out.read_text()
    assert cli.main(argv) == 2 and "--overwrite" in capsys.readouterr().err
    assert cli.main(argv[:3]) == 2 and "--out is required" in capsys.readouterr().err


def test_what_does_not_belong_together_is_refused(trained, phantom_data, scores, tmp_path):
    out = tmp_path / "card.md"
    prepare(phantom_data / "train_mr", tmp_path / "all", "mr", spacing=7.2, size=32, validation=0.0)
    with pytest.raises(InputError, match="not the store that the run was trained on"):
        card(trained, out, store=tmp_path / "all")
    other = write(tmp_path / "other", data=DATA | {"target preset": "ct"})
    with pytest.raises(InputError, match="scores of ct, but the run draws mr"):
        card(trained, out, [other])
    with pytest.raises(InputError, match="not a run"):
        card(scores, out)
    with pytest.raises(InputError, match="nowhere: cannot be read"):
        card(trained, out, [tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"name the card \.md"):
        card(trained, tmp_path / "card.html")
    assert not out.exists()
