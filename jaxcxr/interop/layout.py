"""The layout of one parameter in Flax and in PyTorch.

A parameter has the same path in both; only the leaf's name and the order of its axes differ:

| Flax | axes | PyTorch | axes |
|---|---|---|---|
| `kernel` of a convolution | H, W, in, out | `weight` | out, in, H, W |
| `kernel` of a dense layer | in, out | `weight` | out, in |
| `scale` of a norm | features | `weight` | features |
| `embedding` of a table | rows, features | `weight` | rows, features |
| `bias` | features | `bias` | features |
| `mean`, `var` of a batch norm | features | `running_mean`, `running_var` | features |

The learnt tokens of a vision transformer, its positions and the scales of its layers have their names and axes in both.

PyTorch calls four of them `weight`. The axes tell a convolution and a norm from the rest; a dense layer is
distinguished from an embedding by the name of the module, which ends in `embedding` or `embeddings` for a table alone.
"""

from __future__ import annotations

from typing import Any

_SAME = {"bias": 1, "class_embedding": 1, "lambda1": 1, "cls_token": 3, "mask_token": 2, "position_embeddings": 3}
_STATISTICS = {"mean": "running_mean", "var": "running_var"}
Array = Any  # of NumPy, of JAX, or a Tensor not read yet: anything with `ndim` and `transpose`


def to_torch(name: str, array: Array) -> tuple[str, Array]:
    """The PyTorch name and layout of the Flax parameter `name`; a view where the library gives one.

    Raises:
        ValueError: the name's leaf and the number of axes are none of the kinds above.
    """
    module, _, leaf = name.rpartition(".")
    match leaf, array.ndim:
        case "kernel", 4:
            return f"{module}.weight", array.transpose(3, 2, 0, 1)
        case "kernel", 2:
            return f"{module}.weight", array.transpose(1, 0)
        case ("scale", 1) | ("embedding", 2):
            return f"{module}.weight", array
        case (("mean" | "var"), 1):
            return f"{module}.{_STATISTICS[leaf]}", array
    if _SAME.get(leaf) == array.ndim:
        return name, array
    raise ValueError(f"{name} with {array.ndim} axes is no parameter of a Flax layer")


def from_torch(name: str, array: Array) -> tuple[str, Array]:
    """The Flax name and layout of the PyTorch parameter `name`; the inverse of `to_torch`.

    Raises:
        ValueError: the name's leaf and the number of axes are none of the kinds above.
    """
    module, _, leaf = name.rpartition(".")
    match leaf, array.ndim:
        case "weight", 4:
            return f"{module}.kernel", array.transpose(2, 3, 1, 0)
        case "weight", 2 if module.endswith(("embedding", "embeddings")):
            return f"{module}.embedding", array
        case "weight", 2:
            return f"{module}.kernel", array.transpose(1, 0)
        case "weight", 1:
            return f"{module}.scale", array
        case (("running_mean" | "running_var"), 1):
            return f"{module}.{leaf.removeprefix('running_')}", array
    if _SAME.get(leaf) == array.ndim:
        return name, array
    raise ValueError(f"{name} with {array.ndim} axes is no parameter of a PyTorch layer")
