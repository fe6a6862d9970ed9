# SPDX-License-Identifier: Apache-2.0
"""The report: complete in itself, true to its inputs, and clear about what it cannot read."""

import base64
import io
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from absl import flags
from PIL import Image

from contourdiff_jax.commands import report as commands_report
from contourdiff_jax.errors import InputError
from contourdiff_jax.reports import page as module
from contourdiff_jax.reports.page import report
from contourdiff_jax.runtime import ownership
from contourdiff_jax.runtime.ownership import MARK

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """What a browser would find: text, bold text, pictures and addresses; elements are closed."""

    def __init__(self, path):
        super().__init__()
        self.open, self.bold, self.pictures, self.addresses, self.tags = [], [], [], [], set()
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "src" and value.startswith("data:image/png;base64,"):
                self.pictures.append(base64.b64decode(value.partition(",")[2], validate=True))
            elif name in ("src", "href"):
                self.addresses.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data + " "
        if "b" in self.open and "p" not in self.open:
            self.bold.append(data)


def entry(value, n=4):
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "n": n}


def write_json(path, fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(fields))


def write_png(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)


METHODS = {
    "translation": {"ssim_mask": entry(0.61), "mae_mask": entry(0.11), "mae": entry(0.33)},
    "source": {"ssim_mask": entry(0.42), "mae_mask": entry(0.22), "mae": entry(0.09)},
    "truth": {"contour_f1": entry(0.93, n=3)},
}


@pytest.fixture
def scores(tmp_path):
    """An evaluation of two subjects."""
    folder = tmp_path / "scores"
    write_json(
        folder / "metrics.json",
        {
            "schema": 1,
            "command": "contourdiff evaluate --truth='<script>'",
            "versions": {"numpy": "2.0"},
            "data": {"ssim": "7 x 7 & data range 1", "subjects": ["a", "b"], "unknown": None},
            "methods": METHODS,
        },
    )
    lines = ["subject,slice,method,metric,value,seconds"]
    for number, subject in enumerate("ab"):
        for index in range(3):
            for method, shift in (("translation", 0.2), ("source", 0.0)):
                seconds = 0.1 * (number + 1) if method == "translation" else ""
                ssim, psnr = 0.4 + shift + index / 100, 15 + shift * 20 + index
                lines.append(f"{subject},{index},{method},ssim_mask,{ssim},{seconds}")
                lines.append(f"{subject},{index},{method},psnr_mask,{psnr},{seconds}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    for name in ("a", "b"):
        write_png(folder / "panels" / f"{name}.png")
    return folder


@pytest.fixture
def run(tmp_path):
    """A run of ten lines, the last one cut short."""
    folder = tmp_path / "runs" / "mr"
    write_json(folder / "config.json", {"schema": 1, "config": {"train": {"batch": 16}}})
    lines = []
    for i in range(1, 10):
        scalars = {"loss": 1 / i, "learning_rate": 1e-3 / i, "images_per_second": 50.0}
        lines.append({"step": i, "images": 16 * i, "seconds": i} | scalars)
        if i % 3 == 0:
            held_out = {
                "heldout_loss": 2 / i,
                "heldout_loss_t": [0.1 * k / i for k in range(1, 11)],
            }
            lines.append({"step": i, "images": 16 * i} | held_out)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "stats.jsonl").write_text(text + '{"step": 10, "im')
    for images in range(1, 6):
        write_png(folder / "samples" / f"{images:09d}.png")
    return folder


def test_the_page_holds_all_it_shows(scores, run, tmp_path):
    page = Page(report(tmp_path / "report.html", [scores, run]))
    assert not page.addresses and "script" not in page.tags and "link" not in page.tags
    for picture in page.pictures:
        Image.open(io.BytesIO(picture)).verify()
    # strips, scatter, two panels; curves and the last three samples
    assert len(page.pictures) == 4 + 4
    assert module.NOTICE in page.text
    for shown in (
        "Evaluation: scores",
        "Training run: mr",
        "144 images seen, 50 a second",
        "numpy",
    ):
        assert shown in page.text


def test_figures_lie_beside_the_page_as_they_are_in_it(scores, run, tmp_path):
    page = Page(report(tmp_path / "report.html", [scores, run]))
    folder = tmp_path / "report_figures"
    names = ["01_slices.png", "01_subjects.png", "02_training.png"]
    assert sorted(path.name for path in folder.iterdir()) == [ownership.MARK, *names]
    assert all((folder / name).read_bytes() in page.pictures for name in names)
    for path in folder.glob("*.png"):
        colours = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
        assert len(np.unique(colours, axis=0)) > 20  # something is drawn


def test_the_best_mean_is_bold_and_the_ceiling_does_not_compete(scores, tmp_path):
    methods = METHODS | {
        "source": METHODS["source"] | {"contour_f1": entry(0.7)},
        "translation": METHODS["translation"] | {"contour_f1": entry(0.8)},
    }
    metrics = json.loads((scores / "metrics.json").read_text())
    write_json(scores / "metrics.json", metrics | {"methods": methods})
    page = Page(report(tmp_path / "report.html", [scores]))
    # headline: ssim up, mae down, contours up; then again among all, with mae, which source wins
    assert page.bold[:3] == ["0.610", "0.110", "0.800"]
    assert sorted(page.bold[3:]) == ["0.090", "0.110", "0.610", "0.800"]
    assert "does not compete" in page.text


def test_the_table_shows_values_and_intervals(scores, tmp_path):
    page = Page(report(tmp_path / "report.html", [scores]))
    words = " ".join(page.text.split())
    assert "translation 0.610 [0.600, 0.620]" in words
    assert "0.930 [0.920, 0.940] n = 3" in words  # fewer subjects than the rest is said
    assert "SSIM in the body ↑ MAE in the body ↓ contour F1 ↑" in words
    assert "unknown" not in words


def test_all_text_is_escaped(scores, run, tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    metrics = json.loads((scores / "metrics.json").read_text())
    metrics["methods"][evil] = {evil: entry(0.5)}
    metrics["data"] |= {evil: evil, "list": [evil], "dict": {evil: evil}}
    metrics["versions"][evil] = evil
    write_json(scores / "metrics.json", metrics)
    write_json(run / "config.json", {evil: evil})
    write_png(run / "samples" / "a<b>.png")
    page = Page(report(tmp_path / "report.html", [scores, run]))
    assert not page.addresses
    assert page.text.count(evil) >= 8 and "a<b>" in page.text


def test_what_is_missing_is_left_out(tmp_path):
    write_json(tmp_path / "scores" / "metrics.json", {"schema": 1, "methods": METHODS})
    write_json(tmp_path / "run" / "config.json", {})
    page = Page(report(tmp_path / "report.html", [tmp_path / "scores", tmp_path / "run"]))
    assert page.pictures == []
    for absent in ("Panels", "Versions", "Samples", "images seen"):
        assert absent not in page.text
    assert not list((tmp_path / "report_figures").glob("*.png"))


def test_curves_are_drawn_as_far_as_they_were_recorded(run, tmp_path):
    def width(name):
        report(tmp_path / f"{name}.html", [run])
        with Image.open(tmp_path / f"{name}_figures" / "01_training.png") as picture:
            return picture.width

    three = width("three")
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()[:-1]]
    only = [{k: v for k, v in line.items() if k in ("images", "loss")} for line in lines]
    (run / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in only))
    assert width("one") == pytest.approx(three / 3, rel=0.01)


def test_a_copy_of_metrics_stands_for_itself(scores, tmp_path):
    # beside a copy may lie the rows of something else
    copy = scores / "published.json"
    copy.write_bytes((scores / "metrics.json").read_bytes())
    page = Page(report(tmp_path / "copy.html", [copy]))
    assert "Evaluation: published" in page.text and page.pictures == []
    whole = Page(report(tmp_path / "whole.html", [scores / "metrics.json"]))
    assert "Evaluation: scores" in whole.text and len(whole.pictures) == 4


def test_equal_inputs_make_equal_pages(scores, run, tmp_path):
    pages = [report(tmp_path / f"{name}.html", [scores, run]).read_bytes() for name in "ab"]
    assert pages[0] == pages[1]


def test_the_headline_comes_first_and_inputs_keep_their_order(scores, run, tmp_path):
    write_json(tmp_path / "other" / "metrics.json", {"schema": 1, "methods": METHODS})
    text = Page(report(tmp_path / "report.html", [run, tmp_path / "other", scores])).text
    places = [
        text.index(name) for name in ("Evaluation: other", "Evaluation: scores", "Training run: mr")
    ]
    assert places == sorted(places)


def test_several_evaluations_are_compared_first(scores, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(scores, other)
    rows = (other / "rows.csv").read_text().replace(",ssim_mask,0.6", ",ssim_mask,0.5")
    (other / "rows.csv").write_text(rows)
    page = Page(report(tmp_path / "several.html", [run, other, scores])).text
    assert page.index("Comparison") < page.index("Evaluation: other")
    assert page.index("less scores") > page.index("Comparison")
    (tmp_path / "copy.json").write_text((scores / "metrics.json").read_text())
    for number, alone in enumerate(([run, scores], [scores, scores], [scores, "copy.json"])):
        inputs = [tmp_path / path for path in alone]
        assert "Comparison" not in Page(report(tmp_path / f"{number}.html", inputs)).text


def test_the_page_says_how_to_read_its_rows(scores, tmp_path):
    """Contours agree by chance: without the rows to compare with, their score misleads."""
    metrics = json.loads((scores / "metrics.json").read_text())
    text = Page(report(tmp_path / "partly.html", [scores])).text
    assert "the source itself" in text and "histogram of real" not in text
    assert "against the rows mean and truth" in text
    assert "evaluate with --real for mean." in text  # truth is there, mean is not
    whole = METHODS | {"mean": {"contour_f1": entry(0.8)}}
    write_json(scores / "metrics.json", metrics | {"methods": whole})
    assert "evaluate with" not in Page(report(tmp_path / "whole.html", [scores])).text
    images = {"translation": METHODS["translation"]}
    write_json(scores / "metrics.json", metrics | {"methods": images})
    assert "contour F1" not in Page(report(tmp_path / "images.html", [scores])).text


def volumetric(scores):
    """The evaluation with what is measured of whole volumes, and its pictures."""
    metrics = json.loads((scores / "metrics.json").read_text())
    ours = {
        "ssim_mask_sagittal": entry(0.44),
        "flicker": entry(0.09),
        "flicker_excess": entry(0.02),
        "error_flicker": entry(0.05),
        "mae_body": entry(0.1),
        "mae_label_1": entry(0.05),
        "mae_label_5": entry(0.3),
        "psnr_label_5": entry(9.5),
        "bias_label_5": entry(-0.29),
        "contrast_label_5": entry(0.02),
        "uncertainty_spearman": entry(0.47),
        "ause": entry(0.21),
    }
    others = {
        "source": {"error_flicker": entry(0.08), "flicker": entry(0.01)},
        "truth": {"flicker": entry(0.07), "contrast_label_5": entry(0.33)},
        "real": {"flicker": entry(0.075, n=9)},
    }
    for method, values in {"translation": ours, **others}.items():
        metrics["methods"][method] = metrics["methods"].get(method, {}) | values
    write_json(scores / "metrics.json", metrics)
    for name in ("views/a", "views/b", "sparsification"):
        write_png(scores / f"{name}.png")
    return scores


def test_whole_volumes_have_sections_of_their_own(scores, tmp_path):
    before = Page(report(tmp_path / "before.html", [scores]))
    for absent in ("Coherence along", "do not carry", "rank the errors"):
        assert absent not in before.text
    page = Page(report(tmp_path / "report.html", [volumetric(scores)]))
    words = " ".join(page.text.split())
    headline, rest = words.split("Coherence along the slice axis")
    assert "label 5" not in headline and "AUSE" not in headline
    # 9 real volumes are not 4 subjects; own values do not compete, errors do
    assert "4 subjects SSIM, sagittal ↑ flicker of the error ↓ flicker translation" in rest
    assert "real – – 0.075 [0.065, 0.085] n = 9" in rest
    assert page.bold[5:] == ["0.050"]
    # the label stands beside the body: error, share, PSNR, signed error, contrasts
    assert "label 5 0.300 [0.290, 0.310] 3.00 9.500" in rest
    assert "-0.290 [-0.300, -0.280] 0.020 [0.010, 0.030] 0.330 [0.320, 0.340]" in rest
    assert "AUSE ↓ translation 0.470" in rest
    assert len(page.pictures) == 4 + 3


def test_labels_are_left_out_where_there_is_no_body_to_compare_with(scores, tmp_path):
    metrics = json.loads((volumetric(scores) / "metrics.json").read_text())
    del metrics["methods"]["translation"]["mae_body"]
    write_json(scores / "metrics.json", metrics)
    text = Page(report(tmp_path / "report.html", [scores])).text
    assert "Coherence along" in text and "do not carry" not in text


# ----------------------------------------------------------------------------------------------
# Bad input
# ----------------------------------------------------------------------------------------------


def damaged(value="1", n="1", data="{}", cost="{}"):
    """Metrics with such JSON in the places."""
    entry = f'{{"value": {value}, "low": null, "high": null, "n": {n}}}'
    others = f'"methods": {{"a": {{"ssim": {entry}}}}}, "data": {data}, "cost": {cost}'
    return f'{{"schema": 1, {others}}}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "not of schema 1"),
        ('{"schema": 2, "methods": {}}', "not of schema 1"),
        ('{"schema": 1}', "methods: missing"),
        ('{"schema": 1, "methods": {}}', "no method has a metric"),
        ('{"schema": 1, "methods": {"a": {"ssim": 0.5}}}', "methods.a.ssim: 0.5, where an object"),
        (damaged(value="NaN"), "methods.a.ssim.value: nan, where a finite number"),
        (damaged(value="true"), "methods.a.ssim.value: True, where a finite number"),
        (damaged(n="1.5"), "methods.a.ssim.n: 1.5, where a whole number"),
        (damaged(data="[]"), "data: .., where an object"),
        (damaged(cost='{"seconds a slice": 1}'), "cost.seconds a volume: missing"),
    ],
)
def test_damaged_metrics_are_one_line(tmp_path, content, message):
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(InputError, match=f"metrics.json: .*{message}") as caught:
        report(tmp_path / "report.html", [path])
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ('{"images": 1, "lo', "empty"),
        ('{"images": 1}\n{"step": 2}\n{"images": 3}\n', "line 2"),
        ('[1]\n{"images": 3}\n', "line 1"),
    ],
)
def test_damaged_statistics_are_one_line(run, tmp_path, content, message):
    (run / "stats.jsonl").write_text(content)
    with pytest.raises(InputError, match=rf"stats\.jsonl: {message}"):
        report(tmp_path / "report.html", [run])


def test_damaged_rows_are_one_line(scores, tmp_path):
    for content in ("subject,slice\na,1\n", (scores / "rows.csv").read_text() + "a,0,x,mae,?,\n"):
        (scores / "rows.csv").write_text(content)
        with pytest.raises(InputError, match=r"rows\.csv: not the rows of an evaluation"):
            report(tmp_path / "report.html", [scores])


def test_scores_that_were_replaced_in_part_are_one_line(scores, tmp_path):
    (scores / MARK).write_text('{"files": {}, "unfinished": true}')
    with pytest.raises(InputError, match="scores: replaced in part"):
        report(tmp_path / "report.html", [scores])


def test_other_paths_are_refused(scores, tmp_path):
    with pytest.raises(InputError, match="missing: no such file or folder"):
        report(tmp_path / "report.html", [tmp_path / "missing"])
    with pytest.raises(InputError, match="neither a run"):
        report(tmp_path / "report.html", [scores / "panels"])
    with pytest.raises(InputError, match="neither a run"):
        report(tmp_path / "report.html", [scores / "rows.csv"])
    with pytest.raises(InputError, match="nothing to report"):
        report(tmp_path / "report.html", [])
    with pytest.raises(InputError, match=r"name the page \.html"):
        report(tmp_path / "report.pdf", [scores])


def test_nothing_is_overwritten_unasked(scores, tmp_path):
    out = tmp_path / "report.html"
    report(out, [scores])
    with pytest.raises(InputError, match="--overwrite"):
        report(out, [scores])
    figures = tmp_path / "report_figures"
    (figures / "mine.png").touch()
    report(out, [scores], overwrite=True)
    assert (figures / "mine.png").exists()
    out.write_text("<p>mine</p>")
    with pytest.raises(InputError, match=r"report\.html: .*not as this tool wrote it"):
        report(out, [scores], overwrite=True)
    out.unlink()
    (figures / ownership.MARK).unlink()
    with pytest.raises(InputError, match="report_figures: exists already and is not figures"):
        report(out, [scores], overwrite=True)
    assert not out.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_command_takes_its_inputs_after_the_flags(scores, tmp_path, capsys):
    values = flags.FlagValues()
    commands_report.define_flags(values)
    arguments = values(["report", f"--out={tmp_path / 'report.html'}", str(scores)])[1:]
    assert commands_report.main(values, arguments) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert "Evaluation: scores" in Page(tmp_path / "report.html").text
    bare = flags.FlagValues()
    commands_report.define_flags(bare)
    bare(["report"])
    with pytest.raises(InputError, match="--out is required"):
        commands_report.main(bare, [str(scores)])
