"""Words that are added to a tokenizer, each with vectors of its own: names, prompts and files as diffusers has them.

A word of several vectors is as many tokens: `tok`, `tok_1`, `tok_2`, …; in a prompt the first stands for all.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from jaxcxr.errors import UserError

_FOLDER = "tokenizer/"
_ADDED, _WHOLE, _CONFIG = (f"{_FOLDER}{name}.json" for name in ("added_tokens", "tokenizer", "tokenizer_config"))


def names(word: str, vectors: int) -> list[str]:
    """The tokens of a word of so many vectors."""
    return [word, *(f"{word}_{number}" for number in range(1, vectors))]


def added(tokenizer: Any) -> dict[str, list[int]]:
    """The words that were added to a tokenizer, marks such as the end of a text aside: the ids of each one's tokens."""
    ids = tokenizer.get_added_vocab()
    special = set(tokenizer.all_special_tokens)
    first = [name for name in ids if name not in special and not _follows(name, ids)]
    return {word: [ids[name] for name in names(word, _count(word, ids))] for word in sorted(first, key=ids.__getitem__)}


def expanded(tokenizer: Any, text: str) -> str:
    """A prompt with all the tokens of its words in place of the first, replaced as plain text like diffusers does."""
    ids = tokenizer.get_added_vocab()
    if not any(f"{name}_1" in ids for name in ids):
        return text
    for token in dict.fromkeys(tokenizer.tokenize(text)):
        if token in ids:
            text = text.replace(token, " ".join(names(token, _count(token, ids))))
    return text


def first_new_id(tokenizer: Any) -> int:
    """The id that the next token gets: one more than the greatest there is."""
    return max(tokenizer.get_vocab().values()) + 1


def check_new(tokenizer: Any, word: str, vectors: int, length: int) -> None:
    """Sees to it that a word can be added.

    Args:
      tokenizer: which does not have it yet.
      word: as prompts will have it.
      vectors: how many it has.
      length: of a text, start and end among them.

    Raises:
      UserError: it is no word, is there already, or has more vectors than a text.
    """
    if not (word and word.isprintable() and len(word) <= 100) or any(map(str.isspace, word)):
        raise UserError(f"token {word!r:.120}: is a word of 1 to 100 characters without spaces, such as '<effusion>'")
    if not 1 <= vectors <= length - 2:
        raise UserError(f"token {word!r}: has {vectors} vectors; the text encoder takes 1 to {length - 2}")
    known = tokenizer.get_vocab()
    if taken := [name for name in [*names(word, vectors), f"{word}_{max(vectors, 1)}"] if name in known]:
        raise UserError(f"token {word!r}: the tokenizer has {taken[0]!r} already; choose another word")


def with_added(files: Mapping[str, bytes], tokens: Sequence[str], first: int) -> dict[str, bytes]:
    """The files of a pipeline whose tokenizer has further tokens, with the ids from `first` on.

    They are written wherever one of the versions of transformers looks for them.
    """
    ids = {name: first + number for number, name in enumerate(tokens)}
    files = dict(files)
    if _WHOLE in files:
        whole = json.loads(files[_WHOLE])
        whole["added_tokens"] = [
            *whole.get("added_tokens", []),
            *({"id": ids[name], **_described(name)} for name in tokens),
        ]
        files[_WHOLE] = _written(whole)
    config = json.loads(files.get(_CONFIG, b"{}"))
    if "added_tokens_decoder" in config:  # where it is there it is all that counts
        config["added_tokens_decoder"] |= {str(ids[name]): _described(name) for name in tokens}
        files[_CONFIG] = _written(config)
    else:
        files[_ADDED] = _written(json.loads(files.get(_ADDED, b"{}")) | ids)
    return files


def _described(name: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return {"content": name, **flags, "normalized": True, "special": False}


def _count(word: str, ids: Mapping[str, int]) -> int:
    count = 1
    while f"{word}_{count}" in ids:
        count += 1
    return count


def _follows(name: str, ids: Mapping[str, int]) -> bool:
    """Whether a token is a later one of a word."""
    word, _, number = name.rpartition("_")
    return word in ids and number.isdecimal() and 0 < int(number) < _count(word, ids)


def _written(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
