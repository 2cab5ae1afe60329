"""Networks that make a vector of an image: a module and a line of `EXTRACTORS` each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxcxr import hub
from jaxcxr.errors import UserError
from jaxcxr.evaluation.extractors import biovil_t, clip, dinov2, efficientnet, inception, torchvision_nets, xrv
from jaxcxr.evaluation.extractors.extractor import Extractor, Weights, digest
from jaxcxr.interop.wanted import of_weights

EXTRACTORS: dict[str, Extractor] = {
    "efficientnet-lite0": efficientnet.EFFICIENTNET_LITE0,
    "inception": inception.INCEPTION,
    "xrv": xrv.XRV,
    "rad-dino": dinov2.RAD_DINO,
    "dinov2-b": dinov2.DINOV2_B,
    "dinov2-l": dinov2.DINOV2_L,
    "biovil-t": biovil_t.BIOVIL_T,
    "clip-b-32": clip.CLIP_B_32,
    "clip-l-14": clip.CLIP_L_14,
    "clip-l-14-336": clip.CLIP_L_14_336,
    "resnet-18": torchvision_nets.RESNET_18,
    "resnet-50": torchvision_nets.RESNET_50,
    "densenet-121": torchvision_nets.DENSENET_121,
}


class Chosen(NamedTuple):
    """An extractor with its weights and one of its preprocessings.

    Attributes:
      name: for the rows of an evaluation, as `inception/clean-fid`.
      extractor: the entry.
      preprocessing: the name of the preprocessing.
      file: that of the weights.
      weights: by name.
      digest: of the weights.
    """

    name: str
    extractor: Extractor
    preprocessing: str
    file: Path
    weights: Weights
    digest: str

    def prepared(self, pixels: np.ndarray) -> np.ndarray:
        """What the network takes of an image, uint8 (H, W): float32 (h, w, C)."""
        return self.extractor.preprocessings[self.preprocessing](Image.fromarray(pixels))


def choose_all(wanted: Sequence[str], weights: Sequence[str] = ()) -> list[Chosen]:
    """Reads the extractors that texts like NAME or NAME/PREPROCESSING name, or the workdir of a trained classifier.

    Args:
      wanted: the texts.
      weights: NAME=FILE, for those whose weights do not come with a package; FILE may be ORG/NAME of the hub.

    Raises:
      UserError: there is no such extractor or preprocessing, its weights are not here, or are of another network.
    """
    files = dict(each.partition("=")[::2] for each in weights)
    if unknown := [name for name in files if name not in EXTRACTORS]:
        raise UserError(f"weights of {unknown[0]!r}: give NAME=FILE, where NAME is one of {', '.join(EXTRACTORS)}")
    return [_choose(name, files) for name in wanted]


def _choose(named: str, files: Mapping[str, str]) -> Chosen:
    if Path(named).is_dir():
        from jaxcxr.evaluation.extractors.trained import PREPROCESSING, open_trained

        own, weights = open_trained(Path(named))
        return Chosen(Path(named).resolve().name, own, PREPROCESSING, Path(named), weights, digest(weights))
    name, _, preprocessing = named.partition("/")
    if name not in EXTRACTORS:
        known = ", ".join(EXTRACTORS)
        raise UserError(f"extractor {name!r}: may be {known}, or the workdir of a classifier that was trained here")
    extractor = EXTRACTORS[name]
    preprocessing = preprocessing or next(iter(extractor.preprocessings))
    if preprocessing not in extractor.preprocessings:
        raise UserError(f"extractor {named}: its preprocessing may be {', '.join(extractor.preprocessings)}")
    found = hub.find(files[name], of_weights(*extractor.besides)) if files.get(name) else extractor.bundled()
    if found is None:
        raise UserError(f"extractor {name}: has no weights here; {extractor.source}; --weights {name}=FILE names them")
    weights = extractor.read(found)
    return Chosen(f"{name}/{preprocessing}", extractor, preprocessing, found, weights, digest(weights))
