"""Floating-point operations, counted in the traced program: those of matrix products and convolutions.

A multiply and an add are two. Nothing else is counted, as in the figures that others publish: norms, activations and
the softmax are a few per cent more. A convolution's padding counts as if it were image, zeros put between pixels do
not. What a remat policy computes again is no work done, so count a program that has none.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxcxr.adaptation import Adaptation
from jaxcxr.interop.pipeline import StableDiffusion
from jaxcxr.methods import make_loss


def count(function: Callable[..., Any], *arguments: Any) -> int:
    """The FLOPs of one call.

    Args:
      function: what `jax.make_jaxpr` can trace.
      arguments: trees of arrays or `jax.ShapeDtypeStruct`s.
    """
    return of_jaxpr(jax.make_jaxpr(function)(*arguments).jaxpr)


def of_jaxpr(jaxpr: Any) -> int:
    """The FLOPs of a traced program, `jax.jit(f).trace(*arguments).jaxpr`, of all devices together.

    Raises:
      NotImplementedError: a `while_loop` multiplies matrices; how often is not known before it runs.
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _of_dot(equation)
        elif name == "conv_general_dilated":
            total += _of_convolution(equation)
        elif name.startswith("dot_product_attention_") and name.endswith("_wrapper"):
            total += _of_cudnn(equation)
        elif name == "cond":
            total += max(of_jaxpr(branch) for branch in equation.params["branches"])
        else:
            total += _times(equation) * sum(of_jaxpr(inner) for inner in _inner(equation.params))
    return total


def of_training(loss: Any, adaptation: Adaptation, parameters: Mapping[str, Any], batch: Mapping[str, Any]) -> int:
    """The FLOPs of a batch's forward and backward, for what learns alone; the optimizer's are none.

    Args:
      loss: a `methods.method.Loss` of networks that compute nothing again.
      adaptation: what learns.
      parameters: every parameter of the networks or its shape, by full name.
      batch: arrays or shapes; count one example and multiply, for the time it takes.
    """
    rows = jax.tree.leaves(batch)[0].shape[0]

    def gradients(learnt, frozen, batch):
        keys = jax.random.split(jax.random.key(0), rows)
        return jax.grad(lambda learnt: loss(adaptation.expand(learnt, frozen), batch, keys)[0].mean())(learnt)

    learnt = jax.eval_shape(adaptation.start, dict(parameters), jax.random.key(0))
    return count(gradients, learnt, adaptation.frozen(parameters), dict(batch))


def of_step(config: ConfigDict, pipeline: StableDiffusion, adaptation: Adaptation, batch: Mapping[str, Any]) -> int:
    """The FLOPs that a run's step asks for, of a global batch of such shapes, however they are done.

    Args:
      config: of the run.
      pipeline: of the run, as it is described: on a program's copy what remat does again would count.
      adaptation: what learns.
      batch: arrays or shapes.
    """
    one = {name: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype) for name, leaf in batch.items()}
    parameters = pipeline.parameters()
    total = config.batch_size * of_training(make_loss(pipeline, config), adaptation, parameters, one)
    if "states" in batch:  # what stands for dropped prompts is encoded once, not for each image

        def encode(parameters, ids):
            return pipeline.with_parameters(parameters).text_encoder(ids)

        empty = jax.ShapeDtypeStruct((1, batch["states"].shape[1]), jnp.int32)
        total -= (config.batch_size - 1) * count(encode, parameters, empty)
    return total


def _of_dot(equation: Any) -> int:
    left = equation.invars[0].aval.shape
    (contracted, _), _ = equation.params["dimension_numbers"]
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _of_convolution(equation: Any) -> int:
    kernel = equation.invars[1].aval.shape
    numbers = equation.params["dimension_numbers"]
    window = math.prod(kernel[axis] for axis in numbers.rhs_spec[1:])  # features in, and the window's pixels
    between = math.prod(equation.params["lhs_dilation"])
    return 2 * math.prod(equation.outvars[0].aval.shape) * window // between


def _of_cudnn(equation: Any) -> int:
    """cuDNN's attention, in which JAX sees no products: two forward; five backward, with the scores' once more."""
    query, key = (operand.aval.shape for operand in equation.invars[:2])  # (B, L, heads, head_dim)
    products = 5 if "_bwd_" in equation.primitive.name else 2
    return products * 2 * math.prod(query) * key[1]


def _times(equation: Any) -> int:
    """How often the programs within an equation run."""
    name = equation.primitive.name
    if name == "scan":
        return equation.params["length"]
    if name == "pallas_call":
        return math.prod(equation.params["grid_mapping"].grid)
    if name == "shard_map":  # within which is one device's part
        return equation.params["mesh"].size
    if name == "while" and any(of_jaxpr(inner) for inner in _inner(equation.params)):
        raise NotImplementedError("a while_loop multiplies matrices; its FLOPs cannot be counted")
    return 1


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if hasattr(item, "eqns") or hasattr(item, "jaxpr"):
                yield item
