"""Classification of images by their labels, several to an image."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxcxr.errors import UserError
from jaxcxr.evaluation.metrics.classification import auroc, average_precision
from jaxcxr.interop.config_files import CLASSIFIER
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.methods.method import STATISTICS, Loss, Method, Validation
from jaxcxr.methods.sheets import Draw, tile
from jaxcxr.models.classifier import batch_norms, learning_norms
from jaxcxr.models.compute import compiler_options
from jaxcxr.parallel import mesh as meshes
from jaxcxr.parallel import rules


def make_loss(pipeline: StableDiffusion, config: ConfigDict) -> Loss:
    """Binary cross-entropy with logits, in float32, the mean over the labels of an image that are known.

    A batch has `labels`, 0 or 1, and `label_weights`, 0 where a label is not known, both (B, K). Batch norms that learn
    are computed with the statistics of the batch, and the running ones are set.

    Raises:
      UserError: the batch is in parts, and such norms are in the network.
    """
    chosen = {name.removeprefix(f"{CLASSIFIER}.") for name in rules.matching(pipeline.parameters(), config.trainable)}
    learning = learning_norms(pipeline.classifier, chosen)
    if learning and config.accumulation > 1:
        raise UserError(
            f"config.accumulation={config.accumulation}: is 1 with batch norms that learn, of which"
            f" {pipeline.classifier.config.architecture} has {len(learning)}: their statistics are the whole batch's"
        )

    def loss(parameters, batch, keys):
        network = pipeline.with_parameters(parameters).classifier
        norms = batch_norms(network)
        for name in learning:
            norms[name].learning = True
        errors = cross_entropy(network.classify(batch["image"]), batch["labels"], batch["label_weights"])
        followed = {
            f"{CLASSIFIER}.{name}.{leaf}": getattr(norms[name], leaf)[...]
            for name in learning
            for leaf in ("mean", "var")
        }
        return errors, {STATISTICS: followed} if followed else {}

    return loss


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """The mean weighted binary cross-entropy of each image over its labels of a weight above 0: (B, K) -> (B,)."""
    terms = weights * optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels)
    return terms.sum(axis=-1) / jnp.maximum((weights > 0).sum(axis=-1), 1)


def make_validation(pipeline: StableDiffusion, config: ConfigDict) -> Validation:
    """The same loss with the running statistics, and how well the scores of validation images rank them."""

    def loss(parameters, batch, keys):
        logits = pipeline.with_parameters(parameters).classifier.classify(batch["image"])
        weights = batch["label_weights"]
        shown = {"logits": logits, "labels": batch["labels"], "known": weights > 0}
        return cross_entropy(logits, batch["labels"], weights), shown

    return Validation(loss, ranked)


def ranked(shown: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Area under the ROC curve and average precision, means over the labels with images of both kinds; NaN of none.

    Args:
      shown: `logits`, `labels` and `known`, (N, K) each.
    """
    areas, precisions = [], []
    for logits, labels, known in zip(shown["logits"].T, shown["labels"].T, shown["known"].T, strict=True):
        truth = labels[known] > 0
        if truth.any() and not truth.all() and np.isfinite(logits).all():
            areas.append(auroc(truth, logits[known]))
            precisions.append(average_precision(truth, logits[known]))
    means = [float(np.mean(each)) if each else float("nan") for each in (areas, precisions)]
    return dict(zip(("validation_auroc", "validation_average_precision"), means, strict=True))


def saliency(pipeline: StableDiffusion, config: ConfigDict, mesh: Mesh, batch: Mapping[str, np.ndarray]) -> Draw:
    """Validation images above what their highest logit depends on: |d logit / d pixel| (arXiv 1312.6034), 0 to 255."""
    images = batch["image"]

    def compute(parameters: Mapping[str, Any]) -> jax.Array:
        network = pipeline.with_parameters(parameters).classifier

        def highest(pixels: jax.Array) -> jax.Array:
            return network.classify(pixels).max(axis=-1).sum()

        slopes = jnp.abs(jax.grad(highest)(jnp.asarray(images, jnp.float32))).max(axis=-1, keepdims=True)
        most = slopes.max(axis=(1, 2), keepdims=True)
        return jnp.round(255 * slopes / jnp.where(most > 0, most, 1)).astype(jnp.uint8)

    found: Any = jax.jit(
        compute, out_shardings=meshes.replicated(mesh), compiler_options=compiler_options(mesh, gradient=True)
    )

    def draw(parameters: Mapping[str, jax.Array]) -> np.ndarray:
        slopes = np.repeat(np.asarray(found(parameters)), images.shape[-1], axis=-1)
        return tile(np.concatenate([images, slopes]), len(images))

    return draw


METHOD = Method(
    networks=(CLASSIFIER,),
    reads=("image", "labels", "label_weights"),
    trains=rf"{CLASSIFIER}\..*",
    make_loss=make_loss,
    make_sheet=saliency,
    of_images=True,
    cached=False,
    make_validation=make_validation,
    caption="Validation images above what their answers depend on",
)
