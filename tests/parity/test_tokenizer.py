# SPDX-License-Identifier: Apache-2.0
"""Our tokens of a prompt against transformers' CLIPTokenizer, of a small vocabulary.

That is small_tokenizer.py's; CLIP's own has 48,894 pairs.
"""

import json

import numpy as np
import pytest
import small_tokenizer

from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import tokenizer

WHY = "needs the environment of `make test-parity`"
tokenizers = pytest.importorskip("tokenizers", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)
pytestmark = pytest.mark.parity

PROMPTS = (
    "",
    "an MR image of the brain",
    "A Computed TOMOGRAPHY of the Patient's HEAD",
    "naïve café, Ångström and ÜBER; İstanbul ﬁne ½ ²",
    "cafe\u0301 e\u0323\u0302 \u212b \u1e9b\u0323",  # composed, they are others
    "t1 2024 3.5mm 07 ٣ Ⅳ",
    "it's 's I'M we'll they'd you've can't'll O'Neill ''s 'tis rock'n'roll",
    "  axial\t\timage\n of\r\n\u00a0the\u3000brain\u2003 \x0b\x0c\x1f \u200b",
    "wait!!! what?! (T2-weighted) <b>bold</b> a_b c/d @#$%^&*",
    "脳の画像 мозг ✓ 🧠👩‍⚕️",
    "an image<|endoftext|>of <|startoftext|> the <|ENDOFTEXT|> </w>",
    "!the! image ! !",
)


@pytest.fixture(scope="module", params=[tokenizer.END, "!"], ids=["1", "2"])
def folder(request, tmp_path_factory):
    """The `tokenizer` folder of a Stable Diffusion, by its version."""
    return small_tokenizer.save(tmp_path_factory.mktemp("tokenizer"), fill=request.param)


@pytest.fixture(scope="module")
def reference(folder):
    return transformers.CLIPTokenizer.from_pretrained(folder)


def theirs(reference, prompt: str) -> list[int]:
    return reference(prompt, padding="max_length", max_length=77).input_ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_has_the_same_tokens(prompt, folder, reference):
    if reference.pad_token == "!":
        # Their early files let a special token be found in what is lower case by then, too.
        prompt = prompt.replace("<|ENDOFTEXT|>", "")
    ids = tokenizer.load(folder)(prompt)
    assert ids.shape == (77,) and ids.dtype == np.int32
    assert ids.tolist() == theirs(reference, prompt)


def test_what_transformers_saves_today_is_read_the_same(folder, reference, tmp_path):
    """One tokenizer.json in place of a vocab.json and a merges.txt."""
    reference.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    early, late = tokenizer.load(folder), tokenizer.load(tmp_path)
    for prompt in PROMPTS:
        np.testing.assert_array_equal(late(prompt), early(prompt))


def test_pairs_that_are_one_text_are_read_the_same(folder, reference, tmp_path):
    """As tokenizers before 0.20 wrote them."""
    reference.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    path.write_text(json.dumps(content))
    early, late = tokenizer.load(folder), tokenizer.load(tmp_path)
    for prompt in PROMPTS:
        np.testing.assert_array_equal(late(prompt), early(prompt))


def test_the_empty_prompt_is_begun_ended_and_filled(folder, reference):
    """49406 and 49407 of CLIP's vocabulary."""
    begin, end = reference.bos_token_id, reference.eos_token_id
    expected = [begin, end, *[reference.pad_token_id] * 75]
    assert tokenizer.load(folder)("").tolist() == expected


def test_a_prompt_that_is_too_long_is_refused_with_its_count(folder):
    tokens = tokenizer.load(folder)
    assert (tokens("7" * 75)[1:76] == tokens("7")[1]).all()
    with pytest.raises(InputError, match=r"prompt: 78 tokens.*77"):
        tokens("7" * 76)


def test_a_prompt_that_is_no_text_is_refused(folder):
    with pytest.raises(InputError, match="prompt: not in UTF-8"):
        tokenizer.load(folder)("an image \udcff")
