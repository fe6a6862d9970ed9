# SPDX-License-Identifier: Apache-2.0
"""Checkpoints from and for diffusers: there and back bit for bit, and all that can be wrong."""

import json
import re
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import setups
from safetensors.numpy import load_file, save_file
from setups import translate

from contourdiff_jax import cli, config, models
from contourdiff_jax.contours import settings as contour_settings
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop.exporting import export
from contourdiff_jax.interop.importing import import_checkpoint
from contourdiff_jax.interop.weight_files import INDEX, WEIGHTS
from contourdiff_jax.runtime import mesh as meshes
from contourdiff_jax.training import checkpoint, run
from contourdiff_jax.volumes import intensity
from contourdiff_jax.volumes.grid import Grid
from contourdiff_jax.volumes.intensity import Window

IMAGES = {"preset": "mr", "spacing": 7.2}  # what a foreign checkpoint does not say
SCHEDULER = "scheduler/scheduler_config.json"
MIDDLE = "mid_block.attentions.0"


def new_run(folder, **model):
    """A run with a random network that diffusers can express."""
    settings = config.default()
    settings.model.update(channels=(8, 16), attention=(False, True), head_width=8, groups=4)
    settings.model.update(resample_convolution=True, null="empty")
    settings.model.update(model)
    settings.sampler.update(steps=2, batch=4)
    init = models.build(settings.model).init
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: rng.normal(0, 0.1, p.shape).astype(np.float32),
        jax.eval_shape(init, jax.random.key(0)),
    )
    made = run.Run(
        settings,
        intensity.preset("mr"),
        Window(0.0, 900.0),
        Grid("axial", 7.2, 32),
        contour_settings.preset("default", "mr"),
        ("0" * 64,),
    )
    folder.mkdir()
    made.save(folder)
    checkpoint.save_averages(folder, {"network": params})
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return new_run(tmp_path_factory.mktemp("runs") / "ours")


@pytest.fixture(scope="module")
def exported(ours, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "out"
    export(ours, out)
    return out


@pytest.fixture
def foreign(exported, tmp_path):
    """The same, without what only we know: as diffusers saves it."""
    folder = tmp_path / "foreign"
    shutil.copytree(exported, folder, ignore=shutil.ignore_patterns(run.EXPORTED))
    return folder


def params_of(folder):
    settings = run.load(folder).config
    init = models.build(settings.model).init
    one = meshes.make(config.default().mesh)
    return checkpoint.averages(folder, setups.players(init), one)[1]["network"]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, params_of(a), params_of(b))


def rewrite(path, change):
    fields = json.loads(path.read_text())
    fields.pop("digest", None)  # it would be noticed
    change(fields)
    path.write_text(json.dumps(fields))


def rewrite_tensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def shard(folder, index=None):
    """Cut a model's one file in two, as diffusers does with large ones."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, files = sorted(tensors), [WEIGHTS.replace(".", f"-0000{i}-of-00002.") for i in (1, 2)]
    for i, file in enumerate(files):
        save_file({name: tensors[name] for name in names[i::2]}, folder / file)
    fields = {"weight_map": {name: files[i % 2] for i, name in enumerate(names)}}
    (folder / INDEX).write_text(json.dumps(fields))


# ----------------------------------------------------------------------------------------------
# There and back
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"null": "flag"},
        {"time_scale_shift": True, "middle_norm": False, "middle_attention": True},
        {"attention": (False, False), "decoder_attention": (True, False), "head_width": 0},
    ],
)
def test_an_exported_run_is_imported_bit_for_bit(model, tmp_path):
    made = new_run(tmp_path / "run", **model)
    export(made, tmp_path / "out")
    import_checkpoint(tmp_path / "out", tmp_path / "again")
    assert_same(made, tmp_path / "again")
    assert run.load(made) == run.load(tmp_path / "again")


def test_a_foreign_checkpoint_is_told_what_it_was_trained_on(ours, foreign, tmp_path):
    given = IMAGES | {"window": (0.0, 255.0), "axis": "coronal", "contours_file": "united"}
    import_checkpoint(foreign, tmp_path / "run", **given)
    assert_same(ours, tmp_path / "run")
    made = run.load(tmp_path / "run")
    assert made.grid == Grid("coronal", 7.2, 32)
    assert made.window == Window(0.0, 255.0)
    assert made.contours == contour_settings.preset("united", "mr")
    assert made.subjects == ()
    assert tuple(made.config.model.conditions) == ("contour",)
    assert made.config.model.null == "empty"
    assert made.config.diffusion.schedule == run.load(ours).config.diffusion.schedule


def test_what_it_is_told_has_defaults(foreign, tmp_path):
    """Axial slices of its own size, the original's contours, black and white of the preset."""
    import_checkpoint(foreign, tmp_path / "run", **IMAGES)
    made = run.load(tmp_path / "run")
    assert made.grid == Grid("axial", 7.2, 32)
    assert made.window == intensity.IDENTITY
    assert made.contours == contour_settings.preset("original", "mr")


def test_the_window_is_that_of_the_model_s_black_and_white(foreign, tmp_path):
    for number, window in enumerate([None, (-160.0, 240.0)]):
        folder = tmp_path / f"run{number}"
        import_checkpoint(foreign, folder, preset="ct", spacing=1.0, window=window)
        preset, given = intensity.preset("ct"), run.load(folder).window
        ends = preset.native(preset.image.inverse(np.array([-1, 1])), given)
        np.testing.assert_allclose(ends, window or (-1000, 1000), atol=1e-3)


def test_three_channels_are_image_contour_and_neighbour(tmp_path):
    made = new_run(tmp_path / "made", conditions=("contour", "neighbour"))
    export(made, tmp_path / "out")
    (tmp_path / "out" / run.EXPORTED).unlink()
    import_checkpoint(tmp_path / "out", tmp_path / "run", **IMAGES)
    assert run.load(tmp_path / "run").config.model.conditions == ("contour", "neighbour")
    assert_same(made, tmp_path / "run")


def test_the_network_s_own_folder_and_shards_do_as_well(ours, foreign, tmp_path):
    import_checkpoint(foreign / "unet", tmp_path / "own", **IMAGES)
    shard(foreign / "unet")
    import_checkpoint(foreign, tmp_path / "shards", **IMAGES)
    assert_same(ours, tmp_path / "own")
    assert_same(ours, tmp_path / "shards")
    assert run.load(tmp_path / "own") == run.load(tmp_path / "shards")


def test_a_model_without_scheduler_is_sampled_as_published(foreign, tmp_path, capsys):
    shutil.rmtree(foreign / "scheduler")
    import_checkpoint(foreign, tmp_path / "run", **IMAGES)
    settings = run.load(tmp_path / "run").config
    assert (settings.diffusion.schedule, settings.diffusion.prediction) == ("linear", "eps")
    assert (settings.sampler.name, settings.sampler.steps) == ("ddpm", 50)
    assert "note: " in capsys.readouterr().out


def test_what_stands_in_for_a_scheduler_is_said(foreign, tmp_path, capsys):
    rewrite(foreign / SCHEDULER, lambda f: f.update(_class_name="PNDMScheduler"))
    import_checkpoint(foreign, tmp_path / "run", **IMAGES)
    assert run.load(tmp_path / "run").config.sampler.name == "ddim"
    assert "note: PNDMScheduler" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_weights_of_other_precision_are_read_as_float32(dtype, ours, foreign, tmp_path):
    def cast(tensors):
        tensors.update({name: tensor.astype(dtype) for name, tensor in tensors.items()})

    rewrite_tensors(foreign / "unet" / WEIGHTS, cast)
    import_checkpoint(foreign, tmp_path / "run", **IMAGES)

    def compare(read, made):
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, np.asarray(made).astype(dtype).astype(np.float32))

    jax.tree.map(compare, params_of(tmp_path / "run"), params_of(ours))


def test_early_names_of_attention_are_read(ours, foreign, tmp_path):
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(tensors):
        for name in list(tensors):
            early = name
            for new, old in names.items():
                early = early.replace(f".{new}.", f".{old}.")
            tensors[early] = tensors.pop(name)

    rewrite_tensors(foreign / "unet" / WEIGHTS, rename)
    import_checkpoint(foreign, tmp_path / "run", **IMAGES)
    assert_same(ours, tmp_path / "run")


def test_translate_uses_an_imported_run(phantom_data, tmp_path):
    """With a neighbour too: slices are then drawn without it."""
    made = new_run(tmp_path / "made", conditions=("contour", "neighbour"))
    export(made, tmp_path / "out")
    (tmp_path / "out" / run.EXPORTED).unlink()
    import_checkpoint(tmp_path / "out", tmp_path / "run", **IMAGES)
    source = sorted((phantom_data / "test_ct").glob("*.nii.gz"))[0]
    ours, out, steps = tmp_path / "run", tmp_path / "translated", {"steps": 2}
    done = translate(ours, source, out, preset="ct", sampler=steps).done
    assert [path.name for path in done] == [source.name]


# ----------------------------------------------------------------------------------------------
# What is wrong with a checkpoint
# ----------------------------------------------------------------------------------------------


@pytest.fixture
def refused(foreign, tmp_path, capfd):
    """Import the checkpoint, which must fail with one line and leave nothing behind."""

    def attempt(named, *arguments, checkpoint=foreign):
        before = sorted(tmp_path.rglob("*"))
        images = () if arguments else ("--preset=mr", "--spacing=7.2")
        command = ["contourdiff", "import", f"--checkpoint={checkpoint}", *images, *arguments]
        assert cli.main([*command, f"--workdir={tmp_path / 'run'}"]) == 2
        written = capfd.readouterr()
        assert written.err.count("\n") == 1, written.err
        assert re.search(named, written.err), written.err
        assert sorted(tmp_path.rglob("*")) == before

    return attempt


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(refused, foreign, keep):
    path = foreign / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    refused(f"{path}: damaged")


def test_a_file_of_something_else_is_named(refused, foreign):
    path = foreign / "unet" / WEIGHTS
    path.write_bytes(b"\xff" * 1000)
    refused(f"{path}: damaged")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("conv_in.weight"), "conv_in.weight is missing"),
        (lambda t: t.update(extra=np.zeros(1)), "extra is unexpected"),
        (lambda t: t.update({"a\nb": np.zeros(1)}), r"a\?b is unexpected"),
        (
            lambda t: t.update({f"{MIDDLE}.query.bias": t[f"{MIDDLE}.to_q.bias"]}),
            "query.bias is un",
        ),
        (lambda t: t.update({"conv_in.bias": np.zeros(9, np.float32)}), r"conv_in.bias.*\(9,\)"),
        (lambda t: t.update({"conv_in.bias": np.zeros(8, np.int32)}), "conv_in.bias is I32"),
        (
            lambda t: t.update({"conv_in.bias": np.full(8, np.nan, np.float32)}),
            "conv_in.bias holds values that are not finite",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(refused, foreign, change, named):
    rewrite_tensors(foreign / "unet" / WEIGHTS, change)
    refused(f"{foreign / 'unet'}.*{named}")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: f.update(down_block_types=["DownBlock2D", "KDownBlock2D"]), "KDownBlock2D"),
        (lambda f: f.update(block_out_channels=[8, 24]), "shape"),
        (lambda f: f.update(block_out_channels=[8, 18]), "groups"),
        (lambda f: f.update(norm_num_groups=0), "groups"),
        (lambda f: f.update(layers_per_block=2), "is missing"),
        (lambda f: f.update(layers_per_block=0), "layers"),
        (lambda f: f.update(out_channels=3), "out_channels"),
        (lambda f: f.update(in_channels=5), "in_channels"),
        (lambda f: f.update(sample_size=None), "sample_size.*--size"),
        (lambda f: f.update(sample_size=[32, 16]), "sample_size.*--size"),
        (lambda f: f.update(sample_size=31), "31 px.*--size=32"),
        (lambda f: f.update(downsample_padding=2), "downsample_padding"),
        (lambda f: f.update(_class_name="VQModel"), "VQModel"),
    ],
)
def test_networks_that_are_not_ours_are_named(refused, foreign, change, named):
    rewrite(foreign / "unet/config.json", change)
    refused(named)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "\x00", "[" * 100_000])
@pytest.mark.parametrize("name", ["unet/config.json", SCHEDULER, f"unet/{INDEX}"])
def test_broken_configurations_are_named(refused, foreign, name, text):
    if name == f"unet/{INDEX}":
        (foreign / "unet" / WEIGHTS).unlink()
    (foreign / name).write_text(text)
    refused(f"^contourdiff: import: {foreign / name}: [^/]*$")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: f.update(_class_name="EulerDiscreteScheduler"), "EulerDiscreteScheduler"),
        (lambda f: f.update(beta_schedule="sigmoid"), "sigmoid"),
        (lambda f: f.update(timestep_spacing="even"), "even"),
        (lambda f: f.update(num_train_timesteps=0), "steps"),
        (lambda f: f.update(set_alpha_to_one="no"), "ends_clean"),
        (
            lambda f: f.update(
                _class_name="DPMSolverMultistepScheduler", final_sigmas_type="sigma_min"
            ),
            "final_sigmas_type",
        ),
        (
            lambda f: f.update(prediction_type="epsilon", rescale_betas_zero_snr=True),
            "zero_terminal_snr",
        ),
    ],
)
def test_schedulers_that_are_not_ours_are_named(refused, foreign, change, named):
    rewrite(foreign / SCHEDULER, change)
    refused(named)


@pytest.mark.parametrize(
    "name",
    [
        *("../{}", "/tmp/{}", "a/{}", "./{}", "..", ".", "", "..\\{}", "C:\\{}", "C:{}"),
        *("absent", "\0", "a" * 5000, 5, None, [], {}),
    ],
)
def test_an_index_names_files_of_its_own_folder_only(refused, foreign, name):
    """What lies elsewhere is not opened, though it is a good file."""
    unet = foreign / "unet"
    shutil.copy(unet / WEIGHTS, foreign / WEIGHTS)
    shard(unet)
    name = name.format(WEIGHTS) if isinstance(name, str) else name
    rewrite(unet / INDEX, lambda f: f["weight_map"].update({"conv_in.bias": name}))
    why = "a file of its own folder" if isinstance(name, str) else "where a text belongs"
    refused(f"{re.escape(str(unet / INDEX))}: .*{why}")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: f.clear(), "weight_map"),
        (lambda f: f.update(weight_map=[1]), "weight_map: .1., where an object"),
        (lambda f: f["weight_map"].pop("conv_in.bias"), "conv_in.bias"),
        (lambda f: f["weight_map"].update(extra=f["weight_map"]["conv_in.bias"]), "extra"),
    ],
)
def test_an_index_that_its_shards_do_not_keep_to_is_named(refused, foreign, change, named):
    shard(foreign / "unet")
    rewrite(foreign / "unet" / INDEX, change)
    refused(named)


def test_a_truncated_shard_is_named(refused, foreign):
    shard(foreign / "unet")
    path = sorted((foreign / "unet").glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-1])
    refused(f"{path}: damaged")


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickles_are_refused_with_the_line_that_converts_them(refused, foreign, name):
    (foreign / "unet" / WEIGHTS).rename(foreign / "unet" / name)
    line = "python -c .*use_safetensors=False.*save_pretrained"
    refused(line)
    refused(line, checkpoint=foreign / "unet" / name)


def test_folders_without_a_model_are_named(refused, foreign, tmp_path):
    refused("absent.*holds no unet/config.json", checkpoint=tmp_path / "absent")
    refused("a file; name the folder", checkpoint=foreign / "model_index.json")
    refused("holds no unet/config.json; name one of foreign in it", checkpoint=tmp_path)
    (foreign / "unet" / WEIGHTS).unlink()
    refused(f"holds no {WEIGHTS}")


# ----------------------------------------------------------------------------------------------
# What is wrong with a command
# ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--preset=mr"], "--spacing is required"),
        (["--spacing=1"], "--preset is required"),
        (["--preset=pet", "--spacing=1"], "pet"),
        (["--preset=mr", "--spacing=0"], "spacing"),
        (["--preset=mr", "--spacing=1", "--size=33"], "--size=34"),
        (["--preset=mr", "--spacing=1", "--size=-2"], "size"),
        (["--preset=mr", "--spacing=1", "--axis=oblique"], "oblique"),
        (["--preset=mr", "--spacing=1", "--window=5"], "--window=5"),
        (["--preset=mr", "--spacing=1", "--window=5,5"], "--window=5,5"),
        (["--preset=mr", "--spacing=1", "--window=a,b"], "--window=a,b"),
        (["--preset=mr", "--spacing=1", "--window=0,inf"], "--window=0,inf"),
        (["--preset=mr", "--spacing=1", "--contours=absent.json"], "absent.json"),
    ],
)
def test_images_that_cannot_be_are_named(refused, arguments, named):
    refused(named, *arguments)


def test_an_exported_run_is_not_told_what_it_knows(exported, tmp_path, capfd):
    command = ["contourdiff", "import", f"--checkpoint={exported}", f"--workdir={tmp_path / 'run'}"]
    assert cli.main([*command, "--spacing=1"]) == 2
    assert "--spacing" in capfd.readouterr().err
    assert cli.main(command) == 0


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("unet/config.json", lambda f: f.update(norm_eps=1e-3), "says other than .*unet/config"),
        (SCHEDULER, lambda f: f.update(beta_end=0.01), f"says other than .*{SCHEDULER}"),
        (SCHEDULER, lambda f: f.update(beta_schedule="odd"), f"{SCHEDULER}: .*odd"),
        (run.EXPORTED, lambda f: f["config"]["sampler"].update(name="euler"), "euler"),
        (run.EXPORTED, lambda f: f["config"]["model"].update(groups=3), "groups"),
    ],
)
def test_what_was_changed_after_its_export_is_named(name, change, named, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "out")
    rewrite(tmp_path / "out" / name, change)
    with pytest.raises(InputError, match=f"{tmp_path}.*{named}"):
        import_checkpoint(tmp_path / "out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_exported_model_without_its_scheduler_is_still_known(ours, exported, tmp_path):
    shutil.copytree(exported, tmp_path / "out", ignore=shutil.ignore_patterns("scheduler"))
    import_checkpoint(tmp_path / "out", tmp_path / "run")
    assert run.load(tmp_path / "run") == run.load(ours)


def test_nothing_is_written_over(ours, exported, tmp_path, capfd):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    for command in (
        ["import", f"--checkpoint={exported}", f"--workdir={tmp_path / 'kept'}"],
        ["export", f"--run={ours}", f"--out={tmp_path / 'kept'}"],
    ):
        assert cli.main(["contourdiff", *command]) == 2
        assert "not empty" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("model", "change", "named"),
    [
        ({"resample_convolution": False}, {}, "resample_convolution"),
        ({}, {"sampler": {"name": "ddim", "spacing": "linspace"}}, "fixed_stride.*linspace"),
        ({}, {"sampler": {"name": "euler"}}, "euler"),
        ({}, {"sampler": {"spacing": "even"}}, "even"),
        ({}, {"diffusion": {"schedule": "square"}}, "square"),
        ({}, {"diffusion": {"prediction": "mean"}}, "mean"),
    ],
)
def test_what_diffusers_has_no_equivalent_of_is_not_exported(model, change, named, tmp_path, capfd):
    made, out = new_run(tmp_path / "run", **model), tmp_path / "out"
    for section, fields in change.items():
        rewrite(made / "config.json", lambda f, s=section, c=fields: f["config"][s].update(c))
    assert cli.main(["contourdiff", "export", f"--run={made}", f"--out={out}"]) == 2
    written = capfd.readouterr().err
    assert written.count("\n") == 1
    assert re.search(f"{made}.*{named}", written)
    assert not out.exists()
