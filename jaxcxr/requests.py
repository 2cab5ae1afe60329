"""What a picture is asked to be: the fields of a prompts file's line, checked, and what they mean for guidance."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from msgspec import Meta
from PIL import Image

from jaxcxr import parsing
from jaxcxr.data import images
from jaxcxr.diffusion.guidance import classifier_free
from jaxcxr.errors import UserError

MOST_SEED = 2**32 - 1
_FILES = ("image", "mask", "edit_mask", "keep_mask")
_Weight = Annotated[float, Meta(ge=-100, le=100)]
# By what is edited: diffusers' for the first two, RadEdit's for the last.
_STRENGTHS = {"image": 0.8, "mask": 1.0, "edit_mask": 0.5}


@dataclasses.dataclass(frozen=True)
class Part:
    """One prompt of a composition; weights need not sum to 1 and may be negative."""

    prompt: str
    weight: _Weight = 1.0


@dataclasses.dataclass(frozen=True)
class Interpolation:
    """The text states of the row's prompt and of this one in the proportion 1 − t : t."""

    prompt: str
    t: Annotated[float, Meta(ge=0, le=1)]


@dataclasses.dataclass(frozen=True)
class Request:
    """One picture; the fields are those of a line of a prompts file, whose others are labels.

    Attributes:
      prompt: what to draw; `compose` says it in its place.
      negative_prompt: what to lead away from.
      compose: prompts with weights, of which all are shown.
      interpolate: a second prompt and how far to go towards it.
      image: the picture to edit, a file or one in memory.
      mask: white where it is painted anew, black where it is kept; as large as the image.
      edit_mask: in place of `mask`: white where RadEdit may change the picture.
      keep_mask: white where RadEdit keeps it; the rest of `edit_mask` if None.
      strength: share of the steps that an edited picture is drawn with.
      seed: of the noise; the row then does not depend on its place in the job.
      count: pictures of the row; those after the first have the following seeds, if it has one.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    compose: Annotated[tuple[Part, ...], Meta(min_length=1, max_length=16)] | None = None
    interpolate: Interpolation | None = None
    image: Any = None
    mask: Any = None
    edit_mask: Any = None
    keep_mask: Any = None
    strength: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=0, le=MOST_SEED)] | None = None
    count: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None

    @property
    def edits(self) -> str:
        """What says how an image is edited: "", "image" (all of it), "mask" or "edit_mask"."""
        return next((name for name in ("edit_mask", "mask", "image") if getattr(self, name) is not None), "")

    def texts(self) -> list[str]:
        """The texts of its conditions, the negative prompt last."""
        parts = [part.prompt for part in self.compose] if self.compose else [str(self.prompt)]
        if self.interpolate:
            parts.append(self.interpolate.prompt)
        return [*parts, *([self.negative_prompt] if self.negative_prompt else [])]

    @property
    def text(self) -> str:
        """What the picture shows, in words: its prompt, the nearer of two, or those that a composition leads to."""
        if self.interpolate and self.interpolate.t > 0.5:
            return self.interpolate.prompt
        if not self.compose:
            return str(self.prompt)
        return " ".join(part.prompt for part in self.compose if part.weight > 0)

    def files(self) -> list[str]:
        """The names of the files that it reads."""
        return [name for key in _FILES if isinstance(name := getattr(self, key), str)]

    def begin(self, steps: int, where: str = "--strength") -> int:
        """How many of the steps are left out, as in diffusers.

        Raises:
          UserError: all of them.
        """
        if not self.edits:
            return 0
        strength = _STRENGTHS[self.edits] if self.strength is None else self.strength
        if not (kept := min(int(steps * strength), steps)):
            raise UserError(f"{where} {strength:g}: leaves none of {steps} steps; give {1 / steps:g} or more, up to 1")
        return steps - kept


def parse(row: Mapping[str, Any], where: str) -> Request:
    """A row's request, checked; `where` names the row in errors, such as "p.jsonl: line 3".

    Raises:
      UserError: a field is not as it should be, or does not go with another.
    """
    known = {key: row[key] for key in Request.__dataclass_fields__ if row.get(key) is not None}
    request: Request = parsing.convert(known, Request, where)
    for name in _FILES:
        if not isinstance(value := getattr(request, name), str | Image.Image | None):
            raise UserError(f"{where}: {name} {value!r:.100} is not the name of a file")
    check(request, where)
    return request


def check(request: Request, where: str) -> None:
    """Raises UserError if fields do not go together."""
    if (request.prompt is None) == (request.compose is None):
        has = "has both `prompt` and `compose`" if request.compose else "has no `prompt` string"
        raise UserError(f'{where}: {has}; give one of them, such as {{"prompt": "No acute process."}}')
    if request.interpolate and request.compose:
        raise UserError(f"{where}: has both `interpolate` and `compose`; give one of them")
    for text in request.texts():
        try:
            text.encode()
        except UnicodeEncodeError as error:  # a terminal may hand over bytes that are not UTF-8
            raise UserError(f"{where}: a prompt has bytes that are not UTF-8; type it again") from error
    if request.mask is not None and request.edit_mask is not None:
        raise UserError(f"{where}: has both `mask` and `edit_mask`; give one of them")
    if request.keep_mask is not None and request.edit_mask is None:
        raise UserError(f"{where}: has a `keep_mask`, which goes with `edit_mask`; for `mask` it is --keep-outside")
    for name in ("mask", "edit_mask", "strength"):
        if getattr(request, name) is not None and request.image is None:
            raise UserError(f"{where}: has a `{name}` but no `image`; give the image to edit (--image)")


def expanded(rows: Iterable[Mapping[str, Any]], where: str = "prompt") -> Iterator[tuple[dict[str, Any], Request]]:
    """Each picture's row, without `count` and nulls, and its request. Copies of a row with a `seed` have the following.

    Raises:
      UserError: as `parse`, with the row's number.
    """
    fields = Request.__dataclass_fields__
    for number, row in enumerate(rows, 1):
        request = parse(row, f"{where} {number}")
        kept = {key: value for key, value in row.items() if key not in fields or (value is not None and key != "count")}
        for copy in range(request.count or 1):
            seed = None if request.seed is None else (request.seed + copy) % (MOST_SEED + 1)
            own = kept if seed is None else kept | {"seed": seed}
            yield dict(own), dataclasses.replace(request, seed=seed, count=None)


class Conditions(NamedTuple):
    """What guidance makes of a request.

    Attributes:
      texts: to encode, M.
      mix: float32 (K, M), the conditions' states as sums of the texts'; None if each text is a condition.
      weights: float32 (N,), of the predictions under each condition.
      shares_first: whether the first of N conditions is the empty prompt, which is not among the texts.
    """

    texts: list[str]
    mix: np.ndarray | None
    weights: np.ndarray
    shares_first: bool


def conditions(request: Request, guidance: float, rescale: float = 0.0) -> Conditions:
    """A request's conditions under classifier-free guidance of a scale, of which 1 or less is none, as in diffusers.

    Raises:
      UserError: a negative prompt or a rescale without guidance, or weights that a rescale has no meaning for.
    """
    parts = [part.weight for part in request.compose] if request.compose else [1.0]
    alone = guidance <= 1 and not request.compose and request.edits != "edit_mask"
    if alone and request.negative_prompt:
        raise UserError(f"--guidance {guidance:g}: a negative prompt wants more than 1")
    if rescale and (alone or sum(parts) <= 0):
        why = "wants --guidance of more than 1" if alone else "wants weights of `compose` whose sum is above 0"
        raise UserError(f"--guidance-rescale {rescale:g}: {why}")
    texts = request.texts()
    if request.negative_prompt:
        texts = [texts[-1], *texts[:-1]]
    mix = None
    if request.interpolate:
        # The prompt and the one it goes towards come last.
        mix = np.eye(len(texts) - 1, len(texts), dtype=np.float32)
        mix[-1, -2:] = 1 - request.interpolate.t, request.interpolate.t
    weights = np.ones(1, np.float32) if alone else classifier_free(guidance, parts)
    return Conditions(texts, mix, weights, not alone and not request.negative_prompt)


def check_files(request: Request, where: str) -> None:
    """Raises UserError if a picture of a request cannot be read, or a mask is not of its image's size."""
    sizes = {}
    for name in _FILES:
        if (picture := getattr(request, name)) is not None:
            sizes[name] = read_picture(images.picture_size, picture, f"{where}: {name}")
    for name, size in sizes.items():
        if size != sizes["image"]:
            raise UserError(
                f"{where}: {name} is {size[0]}×{size[1]}, its image {sizes['image'][0]}×{sizes['image'][1]}; both have"
                " to be of one size"
            )


def read_picture(read: Any, picture: Any, where: str, *args: Any) -> Any:
    """`read(picture, *args)`, whose failures are a UserError; a name is a file's."""
    try:
        return read(Path(picture) if isinstance(picture, str) else picture, *args)
    except images.UnreadableImage as error:
        raise UserError(
            f"{where} {str(picture)[:200]}: cannot be read ({error}); give a gray PNG, JPEG or TIFF"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{where} {str(picture)[:200]}: cannot be read ({why})") from error
