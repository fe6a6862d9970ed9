# SPDX-License-Identifier: Apache-2.0
"""The command line: help that helps, and one line for everything that can be wrong."""

import csv
import errno
import gzip
import importlib
import inspect
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
from absl import flags

import contourdiff_jax
from contourdiff_jax import cli, config, methods
from contourdiff_jax.methods import train
from contourdiff_jax.training.run import load

COMMAND = [sys.executable, "-m", "contourdiff_jax"]


@pytest.fixture(autouse=True)
def own_argv(monkeypatch):
    """A command sets sys.argv, where ml_collections looks for overrides."""
    monkeypatch.setattr(sys, "argv", ["contourdiff"])


@pytest.fixture
def refused(capfd):
    """Run a command that must fail: exit status 2 and nothing but one line on stderr, returned."""

    def run(*arguments):
        status = cli.main(["contourdiff", *map(str, arguments)])
        written = capfd.readouterr()
        assert status == 2, written
        assert written.out == ""
        assert written.err.count("\n") == 1 and written.err.endswith("\n"), written.err
        assert written.err.startswith("contourdiff: ")
        return written.err

    return run


# ----------------------------------------------------------------------------------------------
# Help
# ----------------------------------------------------------------------------------------------


def test_help_is_instant_and_lists_all_commands():
    """Half a second of one processor, which is JAX not imported; the best of three."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        out = subprocess.run([*COMMAND, "--help"], check=True, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(sum(after[:2]) - sum(before[:2]))
    assert min(seconds) < 0.5
    assert out.stderr == ""
    for name in cli.COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].+\.$", out.stdout, re.MULTILINE), name


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_is_given_for_the_asking(arguments, capsys):
    assert cli.main(["contourdiff", *arguments]) == 0
    assert "usage: contourdiff <command>" in capsys.readouterr().out


def test_what_is_compiled_is_kept_in_the_user_s_cache(monkeypatch, tmp_path):
    """Unless that cannot be written, or another place is given, which may be none."""
    name = "JAX_COMPILATION_CACHE_DIR"
    for given in ("", "elsewhere"):
        monkeypatch.setenv(name, given)
        cli._keep_compiled()
        assert os.environ[name] == given
    (tmp_path / "file").touch()
    for home, place in (
        (tmp_path, tmp_path / "contourdiff_jax" / "xla"),
        (tmp_path / "file", None),
    ):
        monkeypatch.delenv(name)
        monkeypatch.setenv("XDG_CACHE_HOME", str(home))
        cli._keep_compiled()
        assert os.environ.get(name) == (place and str(place))
    monkeypatch.setenv(name, "")  # so that it is undone


@pytest.mark.parametrize(
    ("environment", "arguments", "made"),
    [
        ({}, ["train"], True),
        ({"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}, ["train"], True),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, ["train"], False),
        ({"JAX_NUM_CPU_DEVICES": "1"}, ["train"], False),
        ({}, ["train", "--coordinator=host:1"], False),
    ],
)
def test_cores_are_devices_unless_told_otherwise(monkeypatch, environment, arguments, made):
    monkeypatch.setattr(os, "environ", dict(environment))
    cli._use_cores(arguments)
    expected = str(len(os.sched_getaffinity(0))) if made else environment.get("JAX_NUM_CPU_DEVICES")
    assert os.environ.get("JAX_NUM_CPU_DEVICES") == expected


def test_a_command_has_the_cores_as_devices(tmp_path):
    """As a user starts it, without what the tests set; JAX takes its settings from there."""
    plain = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    code = (
        "import sys; from contourdiff_jax import cli; status = cli.main(sys.argv); "
        "import jax; print(jax.device_count())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, "train", "--help"],
        check=True,
        capture_output=True,
        text=True,
        env=plain,
    )
    assert out.stdout.splitlines()[-1] == str(len(os.sched_getaffinity(0)))


def test_the_version_is_the_package_s(capsys):
    assert cli.main(["contourdiff", "--version"]) == 0
    assert capsys.readouterr().out == f"contourdiff {contourdiff_jax.__version__}\n"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_shows_an_example_that_its_flags_allow(name, capsys):
    assert cli.main(["contourdiff", name, "--help"]) == 0
    text = capsys.readouterr().out
    module = importlib.import_module(cli.COMMANDS[name])
    values = flags.FlagValues()
    module.define_flags(values)
    for flag in values:
        assert re.search(rf"^  --{flag}: [<\w]", text, re.MULTILINE), flag
    example = text[text.index("Example:") : text.index("flags of contourdiff")]
    lines = re.findall(r"^ +(contourdiff .*(?:\\\n.*)*)", example, re.MULTILINE)
    assert lines
    for line in lines:
        assert line.split()[1] == name
        used = re.findall(r"--(?:no)?([a-z_]+)", line)
        assert used and set(used) <= set(values), line


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_many_flags_are_shown_in_groups_each_once(name, capsys):
    """What is required stands first, and every flag has a group of the module's GROUPS."""
    module, values = importlib.import_module(cli.COMMANDS[name]), flags.FlagValues()
    module.define_flags(values)
    groups = getattr(module, "GROUPS", None)
    if groups is None:
        assert len(list(values)) <= 10
        return
    assert sorted(flag for names in groups.values() for flag in names) == sorted(values)
    assert list(groups).index("required") == 0 if "required" in groups else name == "inspect"
    assert cli.main(["contourdiff", name, "--help"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^(\S.*):$", text[text.index("flags of") :], re.MULTILINE)[1:] == list(
        groups
    )
    assert max(map(len, text[text.index("flags of") :].splitlines())) <= cli.WIDTH


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_modules_keep_the_contract_of_commands(name):
    """The first line of the docstring is the summary in the list of commands."""
    module = importlib.import_module(cli.COMMANDS[name])
    assert cli._summary(cli.COMMANDS[name]) == inspect.getdoc(module).splitlines()[0]
    assert len(inspect.signature(module.main).parameters) in (1, 2)


# ----------------------------------------------------------------------------------------------
# Usage
# ----------------------------------------------------------------------------------------------

TRAIN = ("train", "--store=absent", "--workdir=absent")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["trian"], "no command 'trian'.*train"),
        (["--store=x"], "no command '--store=x'"),
        (["translate", "--sede=1"], "'sede'. Did you mean: seed"),
        (["prepare", "--preset=pet"], "--preset=pet: value should be one of <ct|mr>"),
        (["translate", "--seed=many"], "--seed=many"),
        (["translate", "--seed=-1"], "--seed=-1"),
        (["train", "--store"], "Missing value for flag --store"),
        (["train", "extra"], "unexpected 'extra'.*--flag=value"),
        (["quickstart"], "quickstart: --workdir is required"),
        (["phantoms"], "--out is required"),
        (["prepare", "--source=x"], "prepare: --out is required"),
        (["train", "--store=x"], "train: --workdir is required"),
        (["translate", "--run=x", "--source=y"], "translate: --preset is required"),
        (["evaluate"], "--translated is required"),
        (["report", "x"], "--out is required"),
        ([*TRAIN, "--config.train.bach=8"], "--config: 'bach' Did you mean \"batch\""),
        ([*TRAIN, "--config.train.batch=abc"], "--config.train.batch=abc: invalid literal for int"),
        ([*TRAIN, "--config.train.batch=2.5"], "--config.train.batch=2.5"),
        ([*TRAIN, "--config.train=5"], "--config.train=5"),
        ([*TRAIN, "--config=absent.py"], "--config=absent.py: no such file"),
        ([*TRAIN, "--config=absent.json", "--config.seed=1"], "--config=absent.json: no such file"),
        ([*TRAIN, "--config=headz"], "--config=headz: .*heads, latent_small"),
    ],
)
def test_wrong_usage_is_one_line(refused, arguments, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(named, refused(*arguments))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x = (", "never closed.*mine.py, line 1"),
        ("import no_such_module", "no_such_module"),
        ("1 / 0", "division by zero"),
        ("x = 1", "get_config"),
        ("def get_config():\n    return 5", "mine.py: get_config must return a ConfigDict"),
        (
            "from ml_collections import ConfigDict\n\n\n"
            "def get_config():\n    return ConfigDict({'seed': 0, 'colour': 'red'})",
            "colour",
        ),
    ],
)
def test_configuration_files_that_fail_are_one_line(refused, tmp_path, text, named):
    path = tmp_path / "mine.py"
    path.write_text(text + "\n")
    assert re.search(named, refused(*TRAIN, f"--config={path}"))


@pytest.fixture
def asked(monkeypatch):
    """Run `train` with these flags; the configuration that training would be given."""

    def ask(*arguments):
        given = []
        monkeypatch.setattr(methods, "train", lambda config, *_, **__: given.append(config))
        cli.main(["contourdiff", *TRAIN, *map(str, arguments)])
        return given[0]

    return ask


def test_files_of_every_kind_are_the_same_configuration(asked, mr_run, tmp_path):
    """And fields on the command line count more, whatever the file."""
    yaml, json_file, python = (tmp_path / f"mine.{suffix}" for suffix in ("yaml", "json", "py"))
    yaml.write_text("train: {batch: 8}\nmodel.channels: [8, 16]\n")
    json_file.write_text(json.dumps({"train.batch": 8, "model": {"channels": [8, 16]}}))
    python.write_text(
        "from contourdiff_jax import config\n\n\ndef get_config():\n"
        "    settings = config.default()\n    settings.train.batch = 8\n"
        "    settings.model.channels = (8, 16)\n    return settings\n"
    )
    for path in (yaml, json_file, python):
        found = asked(f"--config={path}", "--config.train.keep=3", "--config.model.channels=(4,4)")
        changed = {"model.channels": [4, 4], "train.batch": 8, "train.keep": 3}
        assert config.changes(found) == changed
    found = asked(f"--config={mr_run}/config.json", "--config.seed=4")
    own = load(mr_run).config
    assert config.differences(found, own) == ["seed"]
    assert asked("--config=heads").grid.size == 96


def test_our_own_mistakes_are_not_hidden(monkeypatch, capfd):
    """A traceback is what a report of a fault needs, and a status of its own."""
    module = importlib.import_module(cli.COMMANDS["phantoms"])

    def mistaken(values):
        raise ZeroDivisionError

    monkeypatch.setattr(module, "main", mistaken)
    assert cli.main(["contourdiff", "phantoms"]) == 3
    first, *_, error, last = capfd.readouterr().err.splitlines()
    assert first.startswith("Traceback") and error == "ZeroDivisionError"
    assert re.match("contourdiff: phantoms: .*fault of contourdiff.*report", last)


def test_a_machine_s_want_is_one_line(monkeypatch, refused):
    module = importlib.import_module(cli.COMMANDS["phantoms"])
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for error, told in ((MemoryError(), "not enough memory"), (full, "No space left")):
        monkeypatch.setattr(module, "main", Mock(side_effect=error))
        assert told in refused("phantoms")


def test_output_may_be_closed_unread_or_ascii(tmp_path):
    """What no one reads or can be shown is no error; a file is never taken for closed output."""
    few = f"phantoms --out={tmp_path}/ä --subjects=2 --test=1 --size=32 --slices=2 --train_ct=0"
    shell = f'"{sys.executable}" -m contourdiff_jax {few}'
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(shell, shell=True, env=ascii_only, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "/\\xe4: 1 train_mr" in done.stdout
    files = {path.name: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    closed = subprocess.run(f"{shell} --overwrite >&- 2>&-", shell=True)
    assert closed.returncode == 0
    assert files == {path.name: path.read_bytes() for path in tmp_path.rglob("*.nii.gz")}
    reading, writing = os.pipe()
    os.close(reading)
    unread = subprocess.run([*COMMAND, "--help"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (unread.returncode, unread.stderr) == (141, b"")


def test_the_process_ends_with_the_status():
    done = subprocess.run([*COMMAND, "trian"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.count("\n") == 1


# ----------------------------------------------------------------------------------------------
# Bad volumes
# ----------------------------------------------------------------------------------------------


def volume(array):
    def make(path):
        nib.save(nib.Nifti1Image(array, np.diag([7.2, 7.2, 24, 1])), path)

    return make


def ramp(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def with_voxel(value):
    array = ramp(8, 8, 3)
    array[4, 4, 1] = value
    return array


def changed(change):
    """A file whose uncompressed content is not that of a good one."""

    def make(path):
        volume(ramp(8, 8, 3))(path)
        path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))

    return make


def truncated(path):
    volume(np.random.default_rng(0).random((16, 16, 16), np.float32))(path)
    path.write_bytes(path.read_bytes()[:2000])


def colour(path):
    rgb = np.zeros((8, 8, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(rgb, np.eye(4)), path)


BAD = {
    "truncated": truncated,
    "wrong magic": changed(lambda content: content[:344] + b"what" + content[348:]),
    "no NIfTI": lambda path: path.write_bytes(b"These are not voxels."),
    "empty": lambda path: path.write_bytes(b""),
    "NaN": volume(with_voxel(np.nan)),
    "infinite": volume(with_voxel(np.inf)),
    "4D": volume(ramp(8, 8, 3, 5)),
    "colour": colour,
    "no voxels": volume(np.zeros((8, 8, 0), np.float32)),
    "constant": volume(np.full((8, 8, 3), 7, np.float32)),
    "singular": changed(
        # srow_x is written over srow_y: both rows of the affine are the same.
        lambda content: content[:296] + content[280:296] + content[312:]
    ),
}


@pytest.fixture(scope="module")
def mr_run(two_convolutions, store_path, tmp_path_factory):
    settings = config.default()
    settings.model.update(channels=(8, 16), attention=(False, True), head_width=8, groups=4)
    settings.train.update(images=4, batch=4, log=0, evaluate=0, sample=0, checkpoint=0, warmup=0)
    settings.sampler.update(steps=2, batch=4)
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert train(settings, store_path, workdir)
    return workdir


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("command", ["prepare", "translate"])
def test_a_bad_volume_is_one_line_with_its_name(refused, mr_run, tmp_path, kind, command):
    path, out = tmp_path / "head01_mr.nii.gz", tmp_path / "out"
    BAD[kind](path)
    arguments = [command, f"--source={path}", f"--out={out}", "--preset=mr"]
    if command == "translate":
        arguments.append(f"--run={mr_run}")
    assert str(path) in refused(*arguments)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_bad_volume_is_one_line_when_scored(refused, phantom_data, tmp_path):
    truth, out = shutil.copytree(phantom_data / "test_mr", tmp_path / "truth"), tmp_path / "out"
    for path in truth.iterdir():
        BAD["truncated"](path)
    line = refused(
        "evaluate", f"--translated={truth}", f"--truth={truth}", "--preset=mr", f"--out={out}"
    )
    assert str(truth) in line
    assert not out.exists()


# ----------------------------------------------------------------------------------------------
# Bad folders and settings
# ----------------------------------------------------------------------------------------------


def edit(path, change):
    fields = json.loads(path.read_text())
    fields.pop("digest", None)  # it would be noticed
    change(fields)
    path.write_text(json.dumps(fields))


def test_an_empty_folder_is_one_line(refused, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in refused(
        "prepare", f"--source={empty}", f"--out={tmp_path}/out", "--preset=ct"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_a_store_without_training_subjects_is_one_line(refused, phantom_data, tmp_path, capfd):
    split, store = tmp_path / "split.csv", tmp_path / "store"
    with split.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([("subject", "split"), *((f"phantom{n:03}", "test") for n in range(4))])
    arguments = [f"--source={phantom_data}/train_mr", f"--out={store}", f"--split={split}"]
    assert cli.main(["contourdiff", "prepare", "--preset=mr", *arguments]) == 0
    capfd.readouterr()
    line = refused("train", f"--store={store}", f"--workdir={tmp_path}/run")
    assert str(store) in line and "no training subjects" in line
    assert not (tmp_path / "run").exists()


def test_a_subject_that_was_trained_on_is_not_scored(
    refused, mr_run, phantom_data, tmp_path, capfd
):
    """Which one is said; training subjects are known to the sidecars by digest only."""
    source = tmp_path / "source"
    source.mkdir()
    for folder, name in (("train_mr", "phantom000_mr"), ("test_mr", "phantom005_mr")):
        shutil.copy(phantom_data / folder / f"{name}.nii.gz", source)
    out = tmp_path / "translated"
    arguments = [f"--run={mr_run}", f"--source={source}", f"--out={out}", "--preset=mr"]
    assert cli.main(["contourdiff", "translate", *arguments]) == 0
    capfd.readouterr()
    line = refused(
        "evaluate", f"--translated={out}", f"--truth={source}", f"--out={tmp_path}/scores"
    )
    assert "phantom000" in line and "used for training" in line
    assert not (tmp_path / "scores").exists()


def test_a_store_of_another_schema_is_one_line(refused, store_path, tmp_path):
    store = shutil.copytree(store_path, tmp_path / "store")
    edit(store / "dataset.json", lambda fields: fields.update(schema=99))
    line = refused("train", f"--store={store}", f"--workdir={tmp_path}/run")
    assert str(store) in line and "schema 99" in line
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_network_is_one_line(refused, mr_run, phantom_data, tmp_path):
    run = shutil.copytree(mr_run, tmp_path / "run")
    edit(run / "config.json", lambda fields: fields["config"]["model"].update(channels=[16, 32]))
    line = refused(
        "translate",
        f"--run={run}",
        f"--source={phantom_data}/test_ct",
        "--preset=ct",
        f"--out={tmp_path}/out",
    )
    assert str(run) in line and "another architecture: network.first.bias is (8,)" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("model.channels=(16,)*7", "halved 6 times.*--size=64"),
        ("train.batch=0", "config.train.batch: 0 must lie between 1"),
        ("train.accumulate=3", "config.train.accumulate"),
        ("mesh.data=3", "config.mesh: data=3"),
        ("grid.size=64", "--size=64"),
        ("contours.blur=4", "contours.blur: 4"),
        ("diffusion.schedule=sqrt", "config.diffusion.schedule: 'sqrt'"),
        ("sampler.name=euler", "config.sampler.name: 'euler'"),
        ("train.images=0", "config.train.images: 0"),
    ],
)
def test_settings_that_cannot_work_are_one_line(
    refused, two_convolutions, store_path, tmp_path, override, named
):
    arguments = [f"--config.{override}"]
    if "channels" in override:
        arguments = [
            "--config.model.channels=(16,16,16,16,16,16,16)",
            "--config.model.head_width=16",
        ]
        arguments.append(f"--config.model.attention=({'False,' * 7})")
    if "contours" in override:
        arguments.append("--config.contours.windows=((0, 1),)")
    line = refused("train", f"--store={store_path}", f"--workdir={tmp_path}/run", *arguments)
    assert re.search(named, line)
    assert not any(tmp_path.iterdir())


def test_a_run_is_not_trained_over_another(refused, mr_run, store_path):
    before = {path.name for path in mr_run.iterdir()}
    line = refused("train", f"--store={store_path}", f"--workdir={mr_run}", "--config.seed=5")
    assert str(mr_run) in line and "another" in line and "seed" in line
    assert {path.name for path in mr_run.iterdir()} == before


def test_a_run_is_changed_in_what_is_said_and_in_nothing_else(refused, mr_run, store_path):
    """Without --config its own configuration counts, whatever the defaults are."""
    begun = f"--workdir={mr_run}", f"--store={store_path}"
    line = refused("train", *begun, "--config.train.batch=9")
    assert "another train.batch;" in line


# ----------------------------------------------------------------------------------------------
# Full disks
# ----------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_when_translating(
    refused, mr_run, phantom_data, tmp_path, monkeypatch
):
    def full(image, path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib, "save", full)
    source, out = phantom_data / "test_ct" / "phantom005_ct.nii.gz", tmp_path / "out"
    line = refused(
        "translate", f"--run={mr_run}", f"--source={source}", f"--out={out}", "--preset=ct"
    )
    assert str(out / source.name) in line and "no space left" in line
    assert not any(tmp_path.iterdir())


def test_a_full_disk_is_one_line_when_preparing(refused, phantom_data, tmp_path):
    """No file may grow beyond a few kilobytes."""
    store = tmp_path / "store"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        line = refused(
            "prepare", f"--source={phantom_data}/train_mr", f"--out={store}", "--preset=mr"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(store) in line and "cannot be written" in line
    assert not any(tmp_path.iterdir())


def test_a_subject_of_many_is_reported_and_the_status_says_so(
    mr_run, phantom_data, tmp_path, capfd
):
    """Exit status 1: the good ones are done."""
    mixed = shutil.copytree(phantom_data / "test_mr", tmp_path / "mixed")
    bad = mixed / "broken_mr.nii.gz"
    truncated(bad)
    for command in (["prepare"], ["translate", f"--run={mr_run}"]):
        out = tmp_path / command[0]
        arguments = [*command, f"--source={mixed}", f"--out={out}", "--preset=mr"]
        assert cli.main(["contourdiff", *arguments]) == 1
        written = capfd.readouterr()
        assert written.err.count("\n") == 1 and str(bad) in written.err
        assert out.exists()
    assert len(list((tmp_path / "translate").glob("*.nii.gz"))) == 2
