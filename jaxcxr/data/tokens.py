"""Tokenizers of prompts: load one, train one of CLIP's kind, encode."""

import contextlib
import dataclasses
import hashlib
import json
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from jaxcxr import hub, parsing
from jaxcxr.data.added_tokens import expanded
from jaxcxr.data.settings import LEAST_VOCAB
from jaxcxr.errors import UserError, one_line

KINDS = ("CLIPTokenizer", "BertTokenizer", "RobertaTokenizer")
_OTHER_NAMES = {"CXRBertTokenizer": "BertTokenizer"}  # BioViL's, which differs in what it is called
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
LENGTH = 77
FILES = (
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_WORD_END = "</w>"
# A call sets the tokenizer's padding and length before it encodes, so calls from two threads would mix.
_ONE_AT_A_TIME = threading.Lock()
# CLIP's pre-tokenization, which CLIPTokenizer applies whatever its vocabulary.
_WORDS = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


_Id = Annotated[int, Meta(ge=0, lt=2**22)]
_Token = str | dict[str, str | bool] | None  # a text, or what transformers writes of an AddedToken


@dataclasses.dataclass(frozen=True)
class _Config:
    """The keys of a `tokenizer_config.json` that are used; others, such as paths of files, are not handed on.

    Prompts are padded and cut on the right here, so a file that asks for the left is refused.
    """

    tokenizer_class: str | None = None
    padding_side: Literal["right"] | None = None
    truncation_side: Literal["right"] | None = None
    split_special_tokens: bool | None = None
    model_max_length: Annotated[int, Meta(ge=2)] | Annotated[float, Meta(ge=2)] | None = None
    do_lower_case: bool | None = None
    do_basic_tokenize: bool | None = None
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool | None = None
    add_prefix_space: bool | None = None
    trim_offsets: bool | None = None
    clean_up_tokenization_spaces: bool | None = None
    errors: str | None = None
    never_split: list[str] | None = None
    bos_token: _Token = None
    eos_token: _Token = None
    unk_token: _Token = None
    pad_token: _Token = None
    sep_token: _Token = None
    cls_token: _Token = None
    mask_token: _Token = None
    additional_special_tokens: list[_Token] | None = None
    added_tokens_decoder: dict[str, dict[str, str | bool]] | None = None


_KINDS_OF_JSON: dict[str, Any] = {
    "vocab.json": dict[str, _Id],
    "added_tokens.json": dict[str, _Id],
    "special_tokens_map.json": dict[str, _Token | list[_Token]],
    "tokenizer.json": dict[str, Any],
    "tokenizer_config.json": _Config,
}


def wanted(files: Sequence[str]) -> list[str]:
    """Chooses the files of a tokenizer, for `hub.find`."""
    if found := [name for name in FILES if name in set(files)]:
        return found
    folders = [file.rpartition("/")[0] for file in files if PurePosixPath(file).name in ("vocab.json", "vocab.txt")]
    raise hub.Absent("has no tokenizer at its top" + (f"; name its folder: append :{folders[0]}" if folders else ""))


def load(folder: str | Path) -> Any:
    """Loads a folder of CLIPTokenizer, BertTokenizer or RobertaTokenizer files, here or of the hub.

    Raises:
      UserError: the folder is absent or does not hold a tokenizer.
    """
    import transformers

    folder = hub.find(folder, wanted)
    files = {name: parsing.read_bytes(folder / name) for name in FILES if (folder / name).is_file()}
    if not ({"vocab.json", "merges.txt"} <= files.keys() or files.keys() & {"tokenizer.json", "vocab.txt"}):
        raise UserError(f"{folder}: no tokenizer here: give a folder with vocab.json and merges.txt, or vocab.txt")
    parsed = {
        name: parsing.parse_json(files[name], kind, str(folder / name), remedy="the file may be damaged")
        for name, kind in _KINDS_OF_JSON.items()
        if name in files
    }
    config: _Config = parsed.get("tokenizer_config.json", _Config())
    if "tokenizer_config.json" in files:
        raw = json.loads(files["tokenizer_config.json"])
        known = {field.name: raw[field.name] for field in dataclasses.fields(config) if field.name in raw}
        files["tokenizer_config.json"] = json.dumps(known).encode()
    name = _kind(folder, config, "vocab.txt" in files)
    # Transformers 4 has a slow tokenizer under the plain name; 5 has one tokenizer under both.
    kind: Any = getattr(transformers, f"{name}Fast", None) or getattr(transformers, name)
    with tempfile.TemporaryDirectory() as copy:
        for name, data in files.items():
            if name == "tokenizer_config.json":
                (Path(copy) / name).write_bytes(data)
            else:  # no second copy of what is read as it is
                (Path(copy) / name).symlink_to((folder / name).resolve())
        with _named(str(folder)):
            tokenizer = kind.from_pretrained(copy, local_files_only=True)
            encode(tokenizer, ["a text, to see that it encodes"], length(tokenizer))
    return tokenizer


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Raises what a damaged tokenizer provokes, be it of any kind, as a UserError with `name`."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # A panic of the library's Rust code derives from BaseException, as interrupts do.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = one_line(error)
        raise UserError(f"{name}: not a tokenizer ({reason}): its files may be damaged") from error


def _kind(folder: Path, config: _Config, has_words: bool) -> str:
    """The name of the tokenizer's class: by its config, or else by the files there are."""
    name = config.tokenizer_class or ("BertTokenizer" if has_words else KINDS[0])
    name = _OTHER_NAMES.get(name, name)
    if (name := name.removesuffix("Fast")) not in KINDS:
        raise UserError(f"{folder}: tokenizer_class {name!r:.100} is not supported (only {', '.join(KINDS)})")
    return name


def length(tokenizer: Any) -> int:
    """Returns the sequence length of a tokenizer, 77 for one that states none."""
    # A tokenizer without a length carries a huge placeholder.
    return int(tokenizer.model_max_length) if tokenizer.model_max_length <= 100_000 else LENGTH


def count(tokenizer: Any, text: str) -> int:
    """The number of ids of a text, start and end among them, however long it is."""
    with _ONE_AT_A_TIME, _named("tokenizer"):
        return len(tokenizer(expanded(tokenizer, text), truncation=False, verbose=False)["input_ids"])


def encode(tokenizer: Any, texts: Sequence[str], length: int) -> np.ndarray:
    """Returns (len(texts), length) int32 ids: start, words, end, padding; long texts are cut, not their end id.

    A word that was added with several vectors is as many ids.
    """
    if not texts:
        return np.zeros((0, length), np.int32)
    with _ONE_AT_A_TIME, _named("tokenizer"):
        whole = [expanded(tokenizer, text) for text in texts]
        coded = tokenizer(whole, padding="max_length", truncation=True, max_length=length)
    return np.asarray(coded["input_ids"], np.int32)


def count_cut(tokenizer: Any, texts: Iterable[str]) -> int:
    """How many texts are longer than the tokenizer's length, and so are cut."""
    limit = length(tokenizer)
    return sum(count(tokenizer, text) > limit for text in texts)


def digest(tokenizer: Any) -> str:
    """A digest of all that decides a tokenizer's ids; two with the same one encode alike."""
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    for set_by_calls in ("padding", "truncation"):
        described.pop(set_by_calls, None)
    text = json.dumps([described, length(tokenizer), tokenizer.pad_token_id], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def train(texts: Iterable[str], vocab_size: int, folder: Path) -> int:
    """Trains a byte-pair tokenizer on prompts and writes it as CLIPTokenizer files; returns its size.

    Ids are laid out as OpenAI's CLIP has them: the 256 bytes, the same ending a word, the merges by rank, the
    start and the end id. So any text can be encoded, and the end id, at which CLIP's text encoder pools, is
    the greatest. A corpus with few words has fewer merges, hence a smaller vocabulary than asked for.

    Raises:
      UserError: `vocab_size` has no room for the bytes.
    """
    if vocab_size < LEAST_VOCAB:
        raise UserError(f"data.tokenizer_vocab is {vocab_size}: give at least {LEAST_VOCAB}, the bytes alone")
    merges = _learn_merges(texts, vocab_size - LEAST_VOCAB)
    symbols = _byte_symbols()
    names = [*symbols, *(s + _WORD_END for s in symbols), *dict.fromkeys(a + b for a, b in merges), BOS, EOS]
    vocab = {name: number for number, name in enumerate(names)}
    folder.mkdir(parents=True, exist_ok=True)
    _pipeline(vocab, merges).save(str(folder / "tokenizer.json"))
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "unk_token": EOS}
    config = {
        **special,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
    }
    for name, content in (
        ("vocab.json", vocab),
        ("special_tokens_map.json", special),
        ("tokenizer_config.json", config),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return len(vocab)


def _byte_symbols() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _learn_merges(texts: Iterable[str], count: int) -> list[tuple[str, str]]:
    """Returns up to `count` merges in the order in which they were learnt."""
    from tokenizers import trainers

    tokenizer, symbols = _pipeline(None, []), _byte_symbols()
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(symbols) + count,
        # Ties between merges fall by id. The trainer numbers word-ending bytes in the order of a hash table,
        # so that two runs would differ, unless they are numbered beforehand.
        special_tokens=[symbol + _WORD_END for symbol in symbols],
        initial_alphabet=symbols,
        end_of_word_suffix=_WORD_END,
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(pair) for pair in merges][:count]


def _pipeline(vocab: dict[str, int] | None, merges: list[tuple[str, str]]) -> Any:
    """Builds CLIP's normalizer, pre-tokenizer, model and template; without a vocabulary, ready to train."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )

    model = models.BPE(vocab=vocab or {}, merges=merges, end_of_word_suffix=_WORD_END, continuing_subword_prefix="")
    if vocab:
        model.unk_token = EOS
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    if vocab:
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in (BOS, EOS)])
        tokenizer.post_processor = processors.RobertaProcessing(
            (EOS, vocab[EOS]), (BOS, vocab[BOS]), trim_offsets=False, add_prefix_space=False
        )
    return tokenizer
