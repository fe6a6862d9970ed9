# SPDX-License-Identifier: Apache-2.0
"""A prompt's tokens: CLIP's byte-pair encoding, as the `tokenizer` folder of a pipeline has it.

Radford et al. 2021, arXiv 2103.00020, section 2.4, in the form of github.com/openai/CLIP's
simple_tokenizer.py. The reference is `CLIPTokenizer` of transformers 5.24
(models/clip/tokenization_clip.py), down to this: the special tokens are themselves wherever a
prompt spells them out, so that the exclamation marks of Stable Diffusion 2's prompts are what it
fills prompts with.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from contourdiff_jax.errors import InputError
from contourdiff_jax.runtime import disk, forms

LENGTH = 77  # tokens of a prompt: positions of all of CLIP's text encoders
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")
# What words are: English clitics, runs of letters, single digits, runs of other signs. White space
# parts them and is no token.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
END_OF_WORD = "</w>"
REMEDY = "save the tokenizer again"
Merges = list[tuple[str, str]]


def load(folder: str | Path) -> Callable[[str], np.ndarray]:
    """The tokenizer of a folder: prompt -> ids [77] int32, begun, ended and filled.

    The folder holds vocab.json and merges.txt, or tokenizer.json, and perhaps
    tokenizer_config.json and special_tokens_map.json, which name the token that fills prompts:
    Stable Diffusion 1 fills them with <|endoftext|>, 2 with "!".

    Raises:
      InputError: a file that cannot be used, or no `tokenizers` to read it with. So does the
        function for a prompt of more than 77 tokens, of which it gives the count.
    """
    folder = Path(folder)
    special = _special(folder)
    vocabulary, merges = _vocabulary(folder, set(special.values()))
    encode = _encoder(vocabulary, merges, special)
    begin, end, fill = (vocabulary[special[name]] for name in ("bos", "eos", "pad"))

    def tokens(prompt: str) -> np.ndarray:
        found = [begin, *encode(prompt), end]
        if len(found) > LENGTH:
            raise InputError(
                f"prompt: {len(found)} tokens, begin and end among them, where {LENGTH} are the "
                f"most; shorten it"
            )
        return np.array(found + [fill] * (LENGTH - len(found)), np.int32)

    return tokens


def _encoder(
    vocabulary: dict[str, int], merges: Merges, special: dict[str, str]
) -> Callable[[str], list[int]]:
    """Prompt -> ids of its tokens, without begin and end."""
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
    except ImportError:
        raise InputError(
            "tokenizers: not installed, and prompts cannot be read without; "
            "pip install 'contourdiff-jax[text]'"
        ) from None
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, end_of_word_suffix=END_OF_WORD, unk_token=special["unk"])
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    whole = [AddedToken(token, normalized=False) for token in sorted(set(special.values()))]
    tokenizer.add_special_tokens(whole)

    def encode(prompt: str) -> list[int]:
        if any("\ud800" <= letter <= "\udfff" for letter in prompt):  # bytes that are no text
            raise InputError("prompt: not in UTF-8; write it so")
        return tokenizer.encode(prompt, add_special_tokens=False).ids

    return encode


# ----------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------


def _special(folder: Path) -> dict[str, str]:
    """The tokens that begin (bos) and end (eos) a prompt, fill (pad) what is left, and stand for
    what the vocabulary lacks (unk).
    """
    special = {"bos": BEGIN, "eos": END, "pad": END, "unk": END}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = folder / file
        if not path.is_file():
            continue
        fields = forms.read(path, dict[str, object], REMEDY)
        kind = fields.get("tokenizer_class", CLASSES[0])
        if kind not in CLASSES:
            raise InputError(f"{path}: tokenizer_class: {kind!r} is not {CLASSES[0]}")
        with forms.naming(path, REMEDY):
            for name in special:
                token = fields.get(f"{name}_token")
                if token is not None:
                    special[name] = _content(token, f"{name}_token")
    return special


def _content(token, name: str) -> str:
    """A special token's text, which files write as it is or as an object."""
    if isinstance(token, str):
        return token
    return forms.checked(token, {"content": str}, name)["content"]


def _vocabulary(folder: Path, special: set[str]) -> tuple[dict[str, int], Merges]:
    """Tokens and their ids, and pairs of tokens in the order in which they become one.

    Tokens that were added to CLIP's, as textual inversion does, are refused: without them, a prompt
    would silently mean something else. Of a tokenizer.json nothing else is read.
    """
    path = folder / "vocab.json"
    if path.is_file():
        vocabulary = forms.read(path, dict[str, int], REMEDY)
        merges = _merges(folder / "merges.txt")
        added = folder / "added_tokens.json"
        others = forms.read(added, dict[str, int], REMEDY) if added.is_file() else {}
    else:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise InputError(f"{folder}: holds neither vocab.json nor tokenizer.json")
        bpe = {"vocab": dict[str, int], "merges": tuple[str | tuple[str, str], ...]}
        form = {"model": bpe, "added_tokens?": tuple[{"content": str}, ...]}
        content = forms.read(path, form, REMEDY)
        vocabulary = content["model"]["vocab"]
        # Before tokenizers 0.20, a pair was written as one text.
        pairs = (p.split(" ") if isinstance(p, str) else p for p in content["model"]["merges"])
        merges = [tuple(pair) for pair in pairs]
        others = {token["content"] for token in content.get("added_tokens", ())}
    with forms.naming(path):
        _check(vocabulary, merges, special, set(others) - special)
    return vocabulary, merges


def _merges(path: Path) -> Merges:
    """The pairs of a merges.txt, one a line, after a line that gives its version."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {disk.reason(error)}; {REMEDY}") from None
    return [tuple(line.split(" ")) for line in lines if not line.startswith("#version")]


def _check(vocabulary: dict[str, int], merges: Merges, special: set[str], added: set[str]) -> None:
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise InputError(f"the ids of its tokens are not 0 to {len(vocabulary) - 1}; {REMEDY}")
    if added:
        raise InputError(f"{min(added)!r} was added to CLIP's tokens, which is not supported")
    for token in sorted(special - vocabulary.keys()):
        raise InputError(f"{token!r}, a special token, is missing; {REMEDY}")
    for pair in merges:
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocabulary.keys():
            raise InputError(f"its merges have {' '.join(pair)!r:.60}, not of its tokens; {REMEDY}")
