"""Damaged and malicious variants of valid inputs, as Hypothesis strategies, and what may come of them."""

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from jaxcxr.errors import UserError

HOSTILE = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 10**6, 2**31, 2**63, -(2**63), 10**30),
    *(0.5, -0.5, 1e-300, 1e308, float("inf"), float("nan")),
    *("", "x", "0", "../x", "/etc/passwd", "\x00", "\u2028", "\ud800", "a\nb", "x" * 10_000),
    *([], {}, [[]], [0], [-1, 2], ["x"], [None, None], {"x": 1}, [1] * 1000),
)


def json_variants(valid: Any) -> st.SearchStrategy[Any]:
    """Variants of a JSON value in which one to three nodes are replaced, removed, doubled, renamed or wrapped."""
    return st.lists(
        st.tuples(st.randoms(use_true_random=False), st.sampled_from(_CHANGES)), min_size=1, max_size=3
    ).map(lambda changes: _changed(valid, changes))


def byte_variants(valid: bytes) -> st.SearchStrategy[bytes]:
    """Variants of a file: bytes flipped, cut off, inserted, doubled or replaced."""
    places = st.integers(0, max(len(valid) - 1, 0))
    return st.lists(
        st.one_of(
            st.tuples(st.just("flip"), places, st.integers(1, 255)),
            st.tuples(st.just("cut"), places, st.just(0)),
            st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=16)),
            st.tuples(st.just("remove"), places, st.integers(1, 64)),
            st.tuples(st.just("double"), places, st.integers(1, 64)),
            st.tuples(st.just("fill"), places, st.sampled_from([b"\x00", b"\xff"])),
        ),
        min_size=1,
        max_size=4,
    ).map(lambda changes: _edited(valid, changes))


def one_line_or_fine(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Calls a reader: a result or a UserError of one short line is fine, any other exception is the test's failure."""
    try:
        return function(*args, **kwargs)
    except UserError as error:
        message = str(error)
        assert message.strip()
        assert len(message.splitlines()) == 1, message
        assert len(message) < 2000, message[:2000]
        return error


def _paths(value: Any, path: tuple = ()) -> list[tuple]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        found += _paths(child, (*path, key))
    return found


def _changed(valid: Any, changes: list[tuple]) -> Any:
    value = copy.deepcopy(valid)
    for random, change in changes:
        if not (paths := _paths(value)):
            return random.choice(HOSTILE)
        *parents, leaf = random.choice(paths)
        node = value
        for key in parents:
            node = node[key]
        change(random, node, leaf)
    return value


def _replace(random: Any, node: Any, leaf: Any) -> None:
    node[leaf] = copy.deepcopy(random.choice(HOSTILE))


def _remove(random: Any, node: Any, leaf: Any) -> None:
    del node[leaf]


def _rename(random: Any, node: Any, leaf: Any) -> None:
    if isinstance(node, dict):
        node[f"{leaf}_"] = node.pop(leaf)
    else:
        node.insert(leaf, copy.deepcopy(node[leaf]))


def _wrap(random: Any, node: Any, leaf: Any) -> None:
    node[leaf] = random.choice(([node[leaf]], {"x": node[leaf]}, [node[leaf]] * 3, str(node[leaf])))


_CHANGES = (_replace, _replace, _replace, _remove, _rename, _wrap)


def _edited(valid: bytes, changes: list[tuple]) -> bytes:
    data = bytearray(valid)
    for kind, place, what in changes:
        place = min(place, len(data))
        if kind == "flip" and place < len(data):
            data[place] ^= what
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = what
        elif kind == "remove":
            del data[place : place + what]
        elif kind == "double":
            data[place:place] = data[place : place + what]
        elif kind == "fill":
            data[place : place + 8] = what * 8
    return bytes(data)
