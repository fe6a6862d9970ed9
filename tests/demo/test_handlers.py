# SPDX-License-Identifier: Apache-2.0
"""Handlers of the page, without a browser: events that come while another is handled, or too late.

Something as thin as can be stands in for gradio, which need not be installed.
"""

import importlib
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest

from contourdiff_jax.demo.sessions import Sessions


class Part:
    """Any component or event: it keeps its value, and whatever is done with it is done."""

    def __init__(self, *given, **fields):
        self.value = fields.get("value", *given[:1])

    def __getattr__(self, name):
        return Part

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


class Visited:
    """A page and what its one visitor does.

    Attributes:
      sent: uploads of two heads.
    """

    def __init__(self, page, offer, sent):
        self.page, self.offer, self.sent = page, offer, sent
        self.session = page.sessions.enter("v")

    def does(self, name: str, *values) -> dict:
        """What becomes of components, as gradio would be told."""
        handler = self.page._told(getattr(self.page, name), dict)
        return handler(SimpleNamespace(session_hash="v"), lambda *told: None, *values)

    def opens(self, number: int, modality: str = "ct") -> dict:
        return self.does("open", str(self.sent[number]), "run", modality, None, None, None)

    def translates(self, modality: str = "ct", spacing: float | None = None) -> dict:
        told = ("run", modality, spacing, None, None)
        return self.does("translate", 2, *told, *self.thresholds(), 1, 0)

    def thresholds(self) -> tuple:
        of = self.session.opened.contours
        return of.low, of.high, of.blur

    def status(self, becomes: dict) -> str:
        return becomes[self.page.status].value

    def meanwhile(self, monkeypatch, happens) -> None:
        """Something happens once the first slices are drawn."""
        translate, events = self.offer.translate, [happens]

        def interrupted(request, told):
            def telling(count):
                while events:
                    events.pop()()
                told(count)

            return translate(request, telling)

        monkeypatch.setattr(self.offer, "translate", interrupted)


@pytest.fixture
def visited(offer, phantom_data, tmp_path, monkeypatch):
    fake = ModuleType("gradio")
    fake.__getattr__ = lambda name: Part
    monkeypatch.setitem(sys.modules, "gradio", fake)
    monkeypatch.delitem(sys.modules, "contourdiff_jax.demo.page", raising=False)
    module = importlib.import_module("contourdiff_jax.demo.page")
    monkeypatch.delitem(sys.modules, "contourdiff_jax.demo.page")
    root = tmp_path / "root"
    root.mkdir()
    heads = sorted((phantom_data / "test_ct").glob("*.nii.gz"))[:2]
    sent = [shutil.copy(head, root / head.name) for head in heads]
    return Visited(module.Page({"run": offer}, Sessions(root), 4), offer, sent)


def test_what_is_shown_is_translated(visited):
    assert "ready" in visited.status(visited.opens(0))
    made = visited.translates()
    assert "Translated." in visited.status(made)
    assert len(made[visited.page.files].value) == 2 and visited.page.wipe in made
    assert visited.page.wipe in visited.does("look", 1, *visited.thresholds())


@pytest.mark.parametrize("change", [lambda it: it.opens(1), lambda it: it.opens(0, "mr")])
def test_a_translation_is_not_shown_beside_another_image(visited, monkeypatch, change):
    """Neither beside another's nor beside the same that is read otherwise."""
    visited.opens(0)
    visited.meanwhile(monkeypatch, lambda: change(visited))
    made = visited.translates()
    assert "changed meanwhile" in visited.status(made) and len(made) == 1
    assert visited.page.wipe not in visited.does("look", 1, *visited.thresholds())
    modality = visited.session.opened.wish.modality
    assert "Translated." in visited.status(visited.translates(modality))


def test_files_that_went_with_their_image_are_no_fault(visited, monkeypatch):
    """The last slices are drawn when another image comes."""
    visited.opens(0)
    translate = visited.offer.translate

    def failing(request, told):
        translate(request, told)
        visited.opens(1)
        raise FileNotFoundError(request.out)

    monkeypatch.setattr(visited.offer, "translate", failing)
    assert "changed meanwhile" in visited.status(visited.translates())


def test_contours_that_are_moved_meanwhile_are_shown_and_told_of(visited, monkeypatch):
    visited.opens(0)
    low, high, blur = visited.thresholds()
    visited.meanwhile(monkeypatch, lambda: visited.does("look", 1, low, high + 50, blur))
    made = visited.does("translate", 2, "run", "ct", *3 * [None], low, high, blur, 1, 0)
    assert "before they were moved" in visited.status(made) and visited.page.files in made
    assert visited.session.opened.number == 1 and visited.thresholds()[1] == high + 50


def test_what_was_not_read_so_is_not_translated(visited):
    visited.opens(0)
    assert "press Enter" in visited.status(visited.translates(spacing=2.0))


def test_who_has_left_gets_no_new_session(visited):
    """Of what they send nothing stays, and what they ask for is refused."""
    other = visited.page.sessions.enter("other")
    visited.opens(0)
    asked = visited.thresholds()
    visited.page.leave(SimpleNamespace(session_hash="v"))
    for becomes in (visited.opens(1), visited.does("look", 1, *asked)):
        assert "ended" in visited.status(becomes)
    assert [*visited.page.sessions.root.iterdir()] == [other.folder]


def test_who_leaves_ends_the_translation(visited, monkeypatch):
    visited.opens(0)
    visited.meanwhile(monkeypatch, lambda: visited.page.leave(SimpleNamespace(session_hash="v")))
    assert "ended" in visited.status(visited.translates())
    assert not any(visited.page.sessions.root.iterdir())
