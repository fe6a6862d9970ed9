# SPDX-License-Identifier: Apache-2.0
"""Uploads: what is no image is refused in one line, and no name that is sent is trusted."""

import io
import zipfile

import dicom_series
import nibabel
import numpy as np
import pytest
from bad_uploads import bad_uploads

from contourdiff_jax.demo import uploads
from contourdiff_jax.demo.offers import Wish
from contourdiff_jax.errors import InputError
from contourdiff_jax.volumes.volume import UNKNOWN

MOST = 4 << 20  # bytes of an upload


def test_bad_uploads_are_refused_in_one_line(offer, tmp_path):
    """Each by the word that says what is wrong; none leaves a file outside its folder."""
    (tmp_path / "made").mkdir()
    given = bad_uploads(tmp_path / "made")
    assert len(given) > 20
    told = {}
    for name, (data, _) in given.items():
        sent, place = tmp_path / "sent" / name, tmp_path / "places" / name
        sent.parent.mkdir(exist_ok=True)
        sent.write_bytes(data)
        with pytest.raises(InputError) as refused:
            source = uploads.received(sent, place, MOST)
            offer.read(offer.request(source, place / "out", Wish("ct")))
        told[name] = str(refused.value)
    wrong = {name: line for name, line in told.items() if given[name][1] not in line}
    assert not wrong
    assert not any("\n" in line or "Traceback" in line for line in told.values())
    assert {path.name for path in tmp_path.iterdir()} == {"made", "sent", "places"}
    assert not [path for path in tmp_path.rglob("*") if "slipped" in path.name]


def test_a_zip_that_says_less_than_it_holds_is_stopped(tmp_path, monkeypatch):
    """Its own sizes are not what is counted."""
    monkeypatch.setattr(uploads, "BLOCK", 16)
    with pytest.raises(InputError, match="too large"):
        uploads._copy(io.BytesIO(bytes(100)), tmp_path / "a", 50, tmp_path / "a.zip")
    assert (tmp_path / "a").stat().st_size <= 50


def test_a_zip_is_the_series_in_it(tmp_path):
    """As the folder that was packed: same subject and same voxels; what is not DICOM is left."""
    array = np.random.default_rng(1).normal(0, 300, (8, 8, 6)).astype(np.int16)
    paths = dicom_series.write_series(tmp_path / "p1", array)
    with zipfile.ZipFile(tmp_path / "p1.zip", "w") as archive:
        for path in paths:
            archive.write(path, f"deep/in/{path.name}")
        archive.writestr("deep/readme.txt", "nothing of use")
    source = uploads.received(tmp_path / "p1.zip", tmp_path / "place", MOST)
    packed, plain = (uploads.scan(path, "ct", UNKNOWN) for path in (source, tmp_path / "p1"))
    assert packed.name == plain.name and packed.subject == plain.subject
    np.testing.assert_array_equal(packed.read().array, plain.read().array)
    assert not any(secret in str(source) for secret in dicom_series.SECRETS.values())


def test_names_are_made_safe(head, tmp_path):
    odd = tmp_path / "=cmd (1).nii.gz"
    odd.write_bytes(head.read_bytes())
    source = uploads.received(odd, tmp_path / "place", MOST)
    assert source.parent == tmp_path / "place" and not source.name.startswith("=")


def test_what_values_look_like(head, tmp_path):
    assert uploads.looks(head, UNKNOWN).startswith("ct (")
    noise = np.random.default_rng(0).gamma(2, 50, (12, 12, 8))
    nibabel.save(nibabel.Nifti1Image(np.float32(noise), np.eye(4)), tmp_path / "a.nii")
    assert uploads.looks(tmp_path / "a.nii", UNKNOWN).startswith("mr (")


def test_volumes_beyond_the_page_are_refused(head, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_VOXELS", 100)
    with pytest.raises(InputError, match="voxels"):
        uploads.scan(head, "ct", UNKNOWN)
