"""Two steps of runs on meshes of this process's devices, against one device: `python -m tests.parallel.meshes CASE …`.

A case is MODULE:FUNCTION:ARGUMENT; the function takes the argument to a config and a list of (devices, strategy,
further changes of the config).
"""

import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxcxr.parallel import mesh as meshes
from jaxcxr.parallel import rules
from jaxcxr.training.model import make_model
from jaxcxr.training.program import batch_shapes, make_program

ON = tuple[tuple[int, int, int], str, dict[str, Any]]


def draw_batch(config: ConfigDict, pipeline: Any, mesh: Mesh, learns: set[str]) -> dict[str, np.ndarray]:
    """A batch of the run, its values drawn at random."""
    generator = np.random.default_rng(1)
    encoders = {"input_ids": "text_encoder", "teacher_ids": "teacher"}
    found = {}
    for field, leaf in batch_shapes(config, pipeline, mesh, learns).items():
        if field in encoders:
            words = pipeline.networks[encoders[field]].config.vocab_size
            found[field] = generator.integers(words // 2, words, leaf.shape).astype(np.int32)
        elif leaf.dtype == jnp.uint8:
            found[field] = generator.integers(0, 256, leaf.shape, np.uint8)
        else:
            found[field] = generator.uniform(0, 2, leaf.shape).astype(leaf.dtype)
    return found


def differences(config: ConfigDict, cases: list[ON]) -> Iterator[tuple[ON, list[float]]]:
    """How far the runs are from that on one device: weights and updates, relative, and the norm of the gradient."""
    pipeline, first = make_model(config, jax.random.key(0))
    parameters = {name: np.asarray(value) for name, value in first.items()}

    def follow(devices: tuple[int, int, int], strategy: str, changes: Mapping[str, Any]):
        mesh = meshes.make_mesh(dict(zip(meshes.AXES, devices, strict=True)), jax.devices()[: np.prod(devices)])
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict({"sharding": strategy, **changes})
        program = make_program(changed, pipeline, mesh)
        batch = meshes.to_global(draw_batch(changed, pipeline, mesh, program.learns), mesh, changed.batch_size)
        if strategy != "replicated" and max(devices[1:]) > 1:
            whole = {**program.frozen, **program.state["learnt"]}
            split = [name for name, leaf in whole.items() if not leaf.sharding.is_fully_replicated]
            assert len(split) > 8, (strategy, devices, split)
            moments = next(filter(_has_moments, jax.tree.leaves(program.state["opt_state"], is_leaf=_has_moments))).mu
            assert all(moments[name].sharding == leaf.sharding for name, leaf in program.state["learnt"].items())
        with jax.set_mesh(mesh):
            state, frozen = program.init(parameters, jax.random.key(0))
            start = {name: np.array(value) for name, value in state["learnt"].items()}  # a view could not be given away
            for _ in range(2):
                given, (state, metrics) = state, program.step(state, frozen, batch)
                assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))  # donated
        return start, {name: np.asarray(value) for name, value in state["average"].items()}, float(metrics["grad_norm"])

    def norm(tree: Mapping[str, np.ndarray]) -> float:
        return float(np.sqrt(sum(np.square(leaf).sum() for leaf in tree.values())))

    start, single, gradient = follow((1, 1, 1), "replicated", {})
    moved = norm({name: single[name] - start[name] for name in start})
    for case in cases:
        _, found, other = follow(*case)
        apart = norm({name: found[name] - single[name] for name in start})
        yield case, [apart / norm(single), apart / moved, abs(other / gradient - 1)]


def _has_moments(part: Any) -> bool:
    return hasattr(part, "mu")


def main(names: list[str]) -> None:
    rules._MIN_SIZE = 64  # so that the small networks' kernels are split too
    for name in names:
        module, function, argument = name.split(":", 2)
        for case, found in differences(*getattr(importlib.import_module(module), function)(argument)):
            print(name, *case, *(f"{value:.1e}" for value in found), flush=True)
            assert max(found) < 1e-5
    print("same everywhere")


if __name__ == "__main__":
    main(sys.argv[1:])
