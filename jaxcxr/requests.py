"""What a picture is asked to be: the fields of a prompts file's line, checked, and what they mean for guidance."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from msgspec import Meta
from PIL import Image

from jaxcxr import arrays, parsing
from jaxcxr.data import images
from jaxcxr.diffusion.guidance import classifier_free
from jaxcxr.errors import UserError

MOST_SEED = 2**32 - 1
PICTURES = ("image", "mask", "edit_mask", "keep_mask")  # of one size
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
    """The text states of the row's prompt and of this one in the proportion 1 − t : t; either may be embeddings."""

    t: Annotated[float, Meta(ge=0, le=1)]
    prompt: str | None = None
    prompt_embeds: Any = None


@dataclasses.dataclass(frozen=True)
class Request:
    """One picture; the fields are those of a line of a prompts file, whose others are labels.

    Attributes:
      prompt: what to draw; `compose` or `prompt_embeds` says it in its place.
      negative_prompt: what to lead away from.
      compose: prompts with weights, of which all are shown.
      prompt_embeds: text states in place of a prompt's, float32 (L, D) as the text encoder gives them: a file (.npy, or
        safetensors of one tensor), or an array in memory.
      interpolate: a second prompt and how far to go towards it.
      image: the picture to edit, a file or one in memory.
      mask: white where it is painted anew, black where it is kept; as large as the image.
      edit_mask: in place of `mask`: white where RadEdit may change the picture.
      keep_mask: white where RadEdit keeps it; the rest of `edit_mask` if None.
      control: the condition image of a ControlNet, a file or one in memory.
      strength: share of the steps that an edited picture is drawn with.
      seed: of the noise; the row then does not depend on its place in the job.
      count: pictures of the row; those after the first have the following seeds, if it has one.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    compose: Annotated[tuple[Part, ...], Meta(min_length=1, max_length=16)] | None = None
    prompt_embeds: Any = None
    interpolate: Interpolation | None = None
    image: Any = None
    mask: Any = None
    edit_mask: Any = None
    keep_mask: Any = None
    control: Any = None
    strength: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=0, le=MOST_SEED)] | None = None
    count: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None

    @property
    def edits(self) -> str:
        """What says how an image is edited: "", "image" (all of it), "mask" or "edit_mask"."""
        return next((name for name in ("edit_mask", "mask", "image") if getattr(self, name) is not None), "")

    def texts(self) -> list[str]:
        """The texts of its conditions, the negative prompt last."""
        ends = (self.prompt, self.interpolate.prompt if self.interpolate else None, self.negative_prompt or None)
        parts = [part.prompt for part in self.compose or ()]
        return parts + [text for text in ends if text is not None]

    def embeds(self) -> list[Any]:
        """The text states that are given in place of a text's: files or arrays."""
        ends = (self.prompt_embeds, self.interpolate.prompt_embeds if self.interpolate else None)
        return [states for states in ends if states is not None]

    @property
    def text(self) -> str:
        """What the picture shows, in words: its prompt, the nearer of two, or those that a composition leads to."""
        if self.interpolate and self.interpolate.t > 0.5:
            return self.interpolate.prompt or ""
        if not self.compose:
            return self.prompt or ""
        return " ".join(part.prompt for part in self.compose if part.weight > 0)

    @property
    def form(self) -> tuple[Any, ...]:
        """What decides, under any options, whether it fits them and what it can be drawn together with."""
        leads = sum(part.weight for part in self.compose) > 0 if self.compose else None
        ends = self.prompt is None, self.interpolate and self.interpolate.prompt is None
        return (
            len(self.compose or ()),
            leads,
            *ends,
            bool(self.negative_prompt),
            self.edits,
            self.strength,
            self.control is None,
        )

    def files(self) -> list[str]:
        """The names of the files that it reads."""
        pictures = (getattr(self, key) for key in (*PICTURES, "control"))
        return [name for name in (*pictures, *self.embeds()) if isinstance(name, str)]

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
    known = {key: value for key, value in row.items() if value is not None and key in Request.__dataclass_fields__}
    request: Request = parsing.convert(known, Request, where)
    for name in known.keys() & {*PICTURES, "control"}:
        if not isinstance(value := known[name], str | Image.Image):
            raise UserError(f"{where}: {name} {value!r:.100} is not the name of a file")
    for value in request.embeds():
        if not isinstance(value, str | np.ndarray):
            raise UserError(f"{where}: prompt_embeds {value!r:.100} is not the name of a file")
    check(request, where)
    return request


def check(request: Request, where: str) -> None:
    """Raises UserError if fields do not go together."""
    _require_one(request, ("prompt", "compose", "prompt_embeds"), where)
    if request.interpolate:
        _require_one(request.interpolate, ("prompt", "prompt_embeds"), f"{where}: interpolate")
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


def _require_one(said: Any, names: Sequence[str], where: str) -> None:
    """Raises UserError unless exactly one of the fields of these names is there."""
    there = [name for name in names if getattr(said, name) is not None]
    if len(there) != 1:
        has = f"has both `{there[0]}` and `{there[1]}`" if there else "has no `prompt` string"
        raise UserError(f'{where}: {has}; give one of them, such as {{"prompt": "No acute process."}}')


class Conditions(NamedTuple):
    """What guidance makes of a request.

    Attributes:
      texts: to encode, M.
      embeds: states that are given, G files or arrays.
      mix: float32 (K, M + G), the conditions' states as sums of the texts' and those; None if each text is a condition.
      weights: float32 (N,), of the predictions under each condition.
      shares_first: whether the first of N conditions is the empty prompt, which is not among the texts.
    """

    texts: list[str]
    embeds: list[Any]
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
    texts, embeds = request.texts(), request.embeds()
    if request.negative_prompt:
        texts = [texts[-1], *texts[:-1]]
    mix = _mix(request, len(texts), len(embeds)) if request.interpolate or embeds else None
    weights = np.ones(1, np.float32) if alone else classifier_free(guidance, parts)
    return Conditions(texts, embeds, mix, weights, not alone and not request.negative_prompt)


def _mix(request: Request, texts: int, embeds: int) -> np.ndarray:
    """The conditions of a request without `compose` as sums of states, those of a negative prompt first."""
    led = int(bool(request.negative_prompt))
    mix = np.eye(led + 1, texts + embeds, dtype=np.float32)
    end = request.interpolate
    if end:
        own, other = led if request.prompt_embeds is None else texts, texts - 1 if end.prompt_embeds is None else -1
        mix[-1] = 0
        mix[-1, own], mix[-1, other] = 1 - end.t, end.t
    return mix


def check_files(request: Request, where: str, states: tuple[int, int] | None = None) -> None:
    """Raises UserError if a file of a request cannot be read, a mask is not of its image's size, or embeddings are bad.

    Args:
      request: whose files they are.
      where: names it in the error.
      states: (L, D) of the text encoder's states, which embeddings have to have.
    """
    sizes = {}
    for name in PICTURES:
        if (picture := getattr(request, name)) is not None:
            sizes[name] = read_picture(images.picture_size, picture, f"{where}: {name}")
    for name, size in sizes.items():
        if size != sizes["image"]:
            raise UserError(
                f"{where}: {name} is {size[0]}×{size[1]}, its image {sizes['image'][0]}×{sizes['image'][1]}; both have"
                " to be of one size"
            )
    if request.control is not None:
        read_picture(images.picture_size, request.control, f"{where}: control")
    for embeds in request.embeds():
        assert states is not None
        read_embeds(embeds, states, f"{where}: ")


def read_embeds(embeds: str | np.ndarray, states: tuple[int, int], where: str = "") -> np.ndarray:
    """Text states, float32 (L, D), of a file or an array, which may be (1, L, D) as diffusers has them.

    Raises:
      UserError: they are of another shape or dtype, or have a number that is not finite.
    """
    shapes, name = (states, (1, *states)), f"{where}prompt_embeds"
    if isinstance(embeds, str):
        name = f"{name} {embeds[:200]}"
        embeds = arrays.read(Path(embeds), shapes, "L×D", name)
    return arrays.require(embeds, shapes, "L×D", name).reshape(states)


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
