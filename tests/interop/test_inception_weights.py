# SPDX-License-Identifier: Apache-2.0
"""Where the network's weights come from: verified, or refused with what to do."""

import hashlib
import http.server
import threading

import numpy as np
import pytest

from contourdiff_jax import cli
from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import inception, torchfile

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No real cache, no real address."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(inception.VARIABLE, raising=False)
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/weights.pth")  # nothing answers there


@pytest.fixture
def served(monkeypatch):
    """A server that gives CONTENT."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(inception, "URL", f"http://127.0.0.1:{server.server_port}/w.pth")
        yield
        server.shutdown()


def test_the_address_names_the_file_and_the_file_its_hash():
    assert inception.NAME.endswith(f"-{inception.SHA256[:8]}.pth")


def test_fetched_once_and_verified(tmp_path, monkeypatch, served, capsys):
    monkeypatch.setattr(inception, "SHA256", DIGEST)
    assert cli.main(["contourdiff", "weights"]) == 0
    path = tmp_path / "cache" / "contourdiff_jax" / inception.NAME
    assert capsys.readouterr().out == f"{path}\n" and path.read_bytes() == CONTENT
    monkeypatch.setattr(inception, "URL", "http://127.0.0.1:9/")
    assert inception.fetch(path) == path  # it is there
    path.write_bytes(b"others")
    with pytest.raises(InputError, match="exists, but is not"):
        inception.fetch(path)


def test_what_arrives_wrong_is_not_kept(tmp_path, served):
    with pytest.raises(InputError, match=f"arrived with the SHA-256 {DIGEST}, not 6726825d"):
        inception.fetch(tmp_path / "new" / "w.pth")
    assert list((tmp_path / "new").iterdir()) == []


def test_without_a_network_it_says_what_to_do(tmp_path, capsys):
    assert cli.main(["contourdiff", "weights"]) == 2
    said = capsys.readouterr().err
    for word in (inception.URL, inception.SHA256, str(inception.cached()), "--weights", "refused"):
        assert word in said
    assert said.count("\n") == 1
    assert list((tmp_path / "cache" / "contourdiff_jax").iterdir()) == []


def test_without_weights_it_says_how_to_get_them():
    with pytest.raises(InputError, match=r"no weights .*`contourdiff weights`.*--weights"):
        inception.load()


def test_the_flag_goes_before_the_variable_and_that_before_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torchfile, "read", lambda path, content: {"path": path})
    monkeypatch.setattr(inception.inception, "fold", lambda tensors: tensors["path"])
    flag, variable, cache = (tmp_path / f"{name}.pth" for name in ("flag", "variable", "cache"))
    monkeypatch.setattr(inception, "cached", lambda: cache)
    for path in (flag, variable, cache):
        path.write_bytes(CONTENT)
    assert inception.load() == (cache, "cache", DIGEST)
    monkeypatch.setenv(inception.VARIABLE, str(variable))
    assert inception.load()[0] == variable
    assert inception.load(flag)[0] == flag


def test_a_name_is_held_to_its_hash(tmp_path):
    path = tmp_path / "net-01234567.pth"
    path.write_bytes(CONTENT)
    with pytest.raises(InputError, match=f"begins with {DIGEST[:8]}, not 01234567"):
        inception.load(path)
    path = path.rename(tmp_path / f"net-{DIGEST[:8]}.pth")
    with pytest.raises(InputError, match="damaged, or not a dictionary of tensors"):
        inception.load(path)


def test_another_network_is_refused(tmp_path, monkeypatch):
    (tmp_path / "w.pth").write_bytes(CONTENT)
    monkeypatch.setattr(torchfile, "read", lambda path, content: {"conv1.weight": np.zeros(3)})
    with pytest.raises(InputError, match=r"w\.pth: not the weights .* is missing"):
        inception.load(tmp_path / "w.pth")
