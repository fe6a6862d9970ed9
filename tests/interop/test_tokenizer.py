# SPDX-License-Identifier: Apache-2.0
"""Folders of tokenizers that cannot be used, and a machine without the library that reads them.

What prompts become is for tests/parity to say.
"""

import json
import sys

import pytest

from contourdiff_jax.errors import InputError
from contourdiff_jax.interop import tokenizer

VOCABULARY = {"a": 0, "a</w>": 1, "aa</w>": 2, "!": 3, tokenizer.BEGIN: 4, tokenizer.END: 5}
FILES = {
    "vocab.json": json.dumps(VOCABULARY),
    "merges.txt": "#version: 0.2\na a</w>\n",
    "tokenizer_config.json": json.dumps({"pad_token": "!", "tokenizer_class": "CLIPTokenizer"}),
}


def write(folder, files):
    for name, text in files.items():
        if text is not None:
            (folder / name).write_text(text)
    return folder


def test_without_the_library_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"pip install 'contourdiff-jax\[text\]'"):
        tokenizer.load(write(tmp_path, FILES))


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"vocab.json": None}, "neither vocab.json nor tokenizer.json"),
        ({"vocab.json": "{"}, "vocab.json: cannot be read"),
        ({"vocab.json": '{"a": "b"}'}, "vocab.json: a: 'b'"),
        ({"vocab.json": json.dumps(VOCABULARY | {"b": 9})}, "vocab.json: the ids .* 0 to 6"),
        ({"merges.txt": None}, "merges.txt: cannot be read"),
        ({"merges.txt": "#version: 0.2\na a a\n"}, "merges have 'a a a'"),
        ({"merges.txt": "#version: 0.2\na b</w>\n"}, "merges have 'a b</w>'"),
        ({"added_tokens.json": '{"<lesion>": 6}'}, "'<lesion>' was added"),
        ({"tokenizer_config.json": '{"pad_token": "?"}'}, r"'\?', a special token, is missing"),
        ({"tokenizer_config.json": '{"pad_token": 0}'}, "tokenizer_config.json: pad_token: 0"),
        ({"tokenizer_config.json": '{"tokenizer_class": "T5Tokenizer"}'}, "tokenizer_class: 'T5"),
        ({"special_tokens_map.json": '{"eos_token": {"id": 3}}'}, "map.json: eos_token"),
        ({"vocab.json": None, "tokenizer.json": "{}"}, "tokenizer.json: model: missing"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(files, named, tmp_path):
    with pytest.raises(InputError, match=named) as error:
        tokenizer.load(write(tmp_path, FILES | files))
    assert "\n" not in str(error.value)
