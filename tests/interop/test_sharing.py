# SPDX-License-Identifier: Apache-2.0
"""Shared runs: one file each, here or at a URL, with which others translate by one command."""

import dataclasses
import functools
import http.server
import threading
import warnings
import zipfile

import jax
import nibabel
import numpy as np
import pytest
import setups

import contourdiff_jax as cd
from contourdiff_jax import cli, config, methods
from contourdiff_jax.data.store import open_store
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import sharing
from contourdiff_jax.runtime import disk
from contourdiff_jax.training import checkpoint, run


@pytest.fixture(scope="module")
def folder(two_convolutions, store_path, tmp_path_factory):
    """A run of a network that draws something."""
    settings = config.default()
    settings.sampler.update(steps=2, batch=4)
    place = tmp_path_factory.mktemp("runs") / "mr"
    place.mkdir()
    ours = run.begin(settings, open_store(store_path))
    ours.save(place)
    params = methods.build(ours).players["network"].init(jax.random.key(1))
    checkpoint.save_averages(place, {"network": setups.perturbed(params)})
    return place


@pytest.fixture(scope="module")
def scan(phantom_data):
    return sorted((phantom_data / "test_ct").glob("*.nii.gz"))[0]


@pytest.fixture(scope="module")
def shared(folder, tmp_path_factory):
    """(The file, its digest)."""
    file = tmp_path_factory.mktemp("shared") / "mr.zip"
    assert cli.main(["contourdiff", "export", f"--run={folder}", f"--out={file}"]) == 0
    return file, disk.sha256(file)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/contourdiff_jax/runs"


@pytest.fixture
def served(shared):
    """(A server of the file's folder, the paths that it was asked for)."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(shared[0].parent))
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_what_is_shared_is_enough_and_no_more(folder, shared):
    with zipfile.ZipFile(shared[0]) as packed:
        names = packed.namelist()
        assert b"Not for diagnosis" in packed.read("CARD.md")
    assert {name.partition("/")[0] for name in names} == {"CARD.md", "checkpoints", "config.json"}
    items = {name.split("/")[2] for name in names if name.startswith("checkpoints/0/")}
    assert items == {"ema", checkpoint.ABOUT}


def test_subjects_go_with_it_where_that_is_asked_for(folder, shared, tmp_path):
    named = tmp_path / "named.zip"
    given = [f"--run={folder}", f"--out={named}", "--subjects"]
    assert cli.main(["contourdiff", "export", *given]) == 0
    assert cd.load(named).run.subjects == run.load(folder).subjects != ()
    assert cd.load(shared[0]).run.subjects == ()
    assert cli.main(["contourdiff", "export", *given]) == 2  # it is there


def test_the_same_run_gives_the_same_file(folder, shared, tmp_path):
    with zipfile.ZipFile(shared[0]) as packed:
        packed.extract("CARD.md", tmp_path)
    assert sharing.pack(folder, tmp_path / "again.zip", tmp_path / "CARD.md") == shared[1]


def test_a_url_translates_as_the_run_and_is_fetched_once(folder, shared, served, scan, tmp_path):
    url, asked = served
    address = f"{url}/mr.zip#sha256={shared[1]}"
    given = (f"--source={scan}", "--preset=ct", f"--out={tmp_path / 'out'}")
    assert cli.main(["contourdiff", "translate", f"--run={address}", *given]) == 0
    (file,) = (tmp_path / "out").glob("*.nii.gz")
    ours = cd.load(folder)(nibabel.load(scan), "ct")
    np.testing.assert_array_equal(nibabel.load(file).get_fdata(), ours.get_fdata())
    theirs = cd.load(address)(nibabel.load(scan), "ct")
    np.testing.assert_array_equal(theirs.get_fdata(), ours.get_fdata())
    assert len(asked) == 1


def test_a_file_here_is_a_run_too(folder, shared, cache):
    unnamed = dataclasses.replace(run.load(folder), subjects=())
    assert cd.load(shared[0]).run == unnamed
    assert cd.load(f"{shared[0]}#sha256={shared[1]}").folder == cache / shared[1]
    with pytest.raises(InputError, match=f"has the SHA-256 {shared[1]}, not {'0' * 64}"):
        cd.load(f"{shared[0]}#sha256={'0' * 64}")


def test_it_becomes_a_run_of_ones_own(folder, shared, tmp_path):
    workdir = tmp_path / "mine"
    given = [f"--checkpoint={shared[0]}", f"--workdir={workdir}"]
    assert cli.main(["contourdiff", "import", *given]) == 0
    unnamed = dataclasses.replace(run.load(folder), subjects=())
    assert run.load(workdir) == unnamed and (workdir / "CARD.md").exists()
    assert cli.main(["contourdiff", "import", *given]) == 2  # it is there
    assert cli.main(["contourdiff", "inspect", str(workdir)]) == 0


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("{url}/mr.zip", "say which file it has to be"),
        ("{url}/mr.zip#sha256=12", "say which file it has to be"),
        ("{url}/mr.zip#sha256=" + "0" * 64, "arrived with the SHA-256"),
        ("{url}/none.zip#sha256=" + "0" * 64, "cannot be fetched .*not found"),
        ("http://127.0.0.1:9/mr.zip#sha256=" + "0" * 64, "cannot be fetched .*refused"),
        ("ftp://127.0.0.1/mr.zip#sha256=" + "0" * 64, "only https and http"),
        ("file:///etc/passwd#sha256=" + "0" * 64, "only https and http"),
        ("http://#sha256=" + "0" * 64, "cannot be fetched"),
        ("none.zip", "not a run"),
    ],
)
def test_what_cannot_be_fetched_is_one_line_and_leaves_nothing(served, cache, address, said):
    with pytest.raises(InputError, match=said) as error:
        cd.load(address.format(url=served[0]))
    assert "\n" not in str(error.value)
    assert not cache.exists() or list(cache.iterdir()) == []


def _zip(path, name="config.json", method=zipfile.ZIP_STORED, attributes=0):
    about = zipfile.ZipInfo(name)
    about.external_attr = attributes
    with zipfile.ZipFile(path, "w", method) as packed:
        packed.writestr(about, b"{}" * 100, method)


def _several(path, *names):
    with zipfile.ZipFile(path, "w") as packed, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name that is there
        for name in names:
            packed.writestr(name, b"{}")


def _encrypted(path):
    _zip(path)
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + place] |= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "made",
    [
        lambda path: path.write_bytes(b"no zip"),
        lambda path: _zip(path, "../out"),
        lambda path: _zip(path, "/tmp/out"),
        lambda path: _zip(path, "a/../../out"),
        lambda path: _zip(path, ".hidden"),
        lambda path: _zip(path, method=zipfile.ZIP_DEFLATED),
        lambda path: _zip(path, attributes=0o120777 << 16),
        lambda path: _zip(path, "a/" * 3000 + "b"),
        lambda path: _zip(path, "a" * 300),
        lambda path: _encrypted(path),
        lambda path: _several(path, "x", "x/y"),
        lambda path: _several(path, "x", "x"),
        lambda path: _zip(path, "other.json"),
        lambda path: _zip(path),
    ],
    ids=[
        *("text", "up", "absolute", "inner", "hidden", "deflated", "link", "deep", "long"),
        *("encrypted", "file and folder", "twice", "no run", "empty"),
    ],
)
def test_a_file_that_is_no_shared_run_is_one_line_and_leaves_nothing(made, tmp_path, cache):
    path = tmp_path / "bad.zip"
    made(path)
    with pytest.raises(InputError, match=r"bad\.zip"):
        cd.load(path)
    assert {each.name for each in tmp_path.iterdir()} <= {"bad.zip", "cache"}
    assert not cache.exists() or list(cache.iterdir()) == []


def test_one_without_weights_is_refused(folder, tmp_path, cache):
    with zipfile.ZipFile(tmp_path / "only.ZIP", "w") as packed:
        packed.write(folder / "config.json", "config.json")
    with pytest.raises(InputError, match=r"only\.ZIP: not a shared run, it has no weights"):
        cd.load(tmp_path / "only.ZIP")
    assert list(cache.iterdir()) == []
