# SPDX-License-Identifier: Apache-2.0
"""The `tokenizer` folder of a Stable Diffusion with a small vocabulary, for the tests of parity.

It has every byte, as CLIP's has, and what a few phrases teach.
"""

import itertools
import json
from pathlib import Path

import pytest

from contourdiff_jax.interop import tokenizer

WHY = "needs the environment of `make test-parity`"
tokenizers = pytest.importorskip("tokenizers", reason=WHY)

PHRASES = (
    "an axial t1 weighted mr image of the patient's brain",
    "a computed tomography image of the head, where the bone is bright",
    "the radiologist's images aren't the patients' own",
)
PAIRS = 60


def trained() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens in the order of CLIP's vocabulary, and pairs in the order in which they were found."""
    signs = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = [word for phrase in PHRASES for word in phrase.replace(",", "").split()]
    split = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    pairs = []
    for _ in range(PAIRS):
        counts = {}
        for word in split:
            for pair in itertools.pairwise(word):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=counts.get)
        pairs.append(best)
        split = [merged(word, best) for word in split]
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), *map("".join, pairs)]
    return [*tokens, tokenizer.BEGIN, tokenizer.END], pairs


def merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    found = []
    for part in word:
        if found and (found[-1], part) == pair:
            part = found.pop() + part
        found.append(part)
    return found


def special(name: str) -> dict:
    """A special token as files of transformers 4 have it."""
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    return flags | {"content": name, "normalized": True}


def save(path: Path, *, fill: str) -> Path:
    """The folder, in files as transformers 4 wrote them; prompts are filled with that token."""
    tokens, pairs = trained()
    assert len(set(tokens)) == len(tokens)
    (path / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *map(" ".join, pairs)]
    (path / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    begin, end = special(tokenizer.BEGIN), special(tokenizer.END)
    names = {"bos_token": begin, "eos_token": end, "unk_token": end, "pad_token": fill}
    (path / "special_tokens_map.json").write_text(json.dumps(names))
    rest = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    (path / "tokenizer_config.json").write_text(json.dumps(names | rest))
    return path
