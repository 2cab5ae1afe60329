"""Whether images and texts find each other, against ranks that are sorted one by one."""

import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.evaluation.metrics import features, retrieval


def sets(n=60, width=8, noise=0.8):
    draw = np.random.default_rng(2)
    number = draw.integers(0, n // 2, n)  # the text of each image; some have several images, some have none
    every = draw.standard_normal((n, width))
    texts = every[number] * draw.uniform(0.5, 2, (n, 1))
    images = every[number] + noise * draw.standard_normal((n, width))
    return images, texts, [f"text {one}" for one in number], [f"label {one % 5}" for one in number]


def sorted_rank(scores, right):
    """The place of the first right answer where the gallery is sorted by score, wrong ones first among equals."""
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], right[place]))
    return 1 + next(index for index, place in enumerate(order) if right[place])


def test_cosines_are_of_pairs():
    images, texts, *_ = sets(noise=3)
    wanted = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(images, texts, strict=True)]
    np.testing.assert_allclose(retrieval.cosines(images, texts), wanted, rtol=1e-12)
    np.testing.assert_allclose(
        retrieval.clip_scores(images, -texts), np.maximum(-100 * np.array(wanted), 0), atol=1e-10
    )
    assert min(wanted) < 0 < max(wanted)
    whole = retrieval.alignment(images, texts)
    assert whole.value == pytest.approx(np.mean(wanted))
    spread = np.std(wanted) / np.sqrt(len(wanted))
    assert whole.high - whole.low == pytest.approx(2 * 1.96 * spread, rel=0.2)
    score = retrieval.clip_score(images, texts, ["one"] * len(images))
    assert score.value == pytest.approx(100 * np.maximum(wanted, 0).mean())
    assert np.isnan(score.low)  # one prompt tells nothing of others
    # Twice the same images of a prompt are no more evidence.
    twice = retrieval.alignment(np.tile(images, (2, 1)), np.tile(texts, (2, 1)), [*map(str, range(60))] * 2)
    assert (twice.low, twice.high) == pytest.approx((whole.low, whole.high), rel=0.1)


@pytest.mark.parametrize("at_once", [None, 2000])
def test_ranks_are_those_of_a_sorted_gallery(monkeypatch, at_once):
    if at_once:
        monkeypatch.setattr(features, "_AT_ONCE", at_once)  # a few rows at a time
    images, states, texts, labels = sets()
    found = retrieval.retrieval(images, states, texts, labels)
    unique = [*dict.fromkeys(texts)]
    assert 20 < len(unique) < 60
    first = [texts.index(text) for text in unique]
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, states[first]))
    scores = a @ b.T
    own = np.array([[text == other for other in unique] for text in texts])
    has = {text: {label for label, one in zip(labels, texts, strict=True) if one == text} for text in unique}
    equal = np.array([[label in has[other] for other in unique] for label in labels])
    for ranks, right, table in (
        (found.image_to_text, own, scores),
        (found.text_to_image, own.T, scores.T),
        (found.image_to_text_label_equal, equal, scores),
        (found.text_to_image_label_equal, equal.T, scores.T),
    ):
        wanted = [sorted_rank(*each) for each in zip(table, right, strict=True)]
        np.testing.assert_array_equal(ranks.ranks, wanted)
        assert ranks.gallery == table.shape[1]
        assert ranks.chance == pytest.approx(right.mean(axis=1).mean())
        assert ranks.median == np.median(wanted)
        assert [ranks.recall(k) for k in (1, 5, 10)] == [np.mean(np.array(wanted) <= k) for k in (1, 5, 10)]
    assert 0.1 < found.image_to_text.recall(1) < 0.9
    assert found.image_to_text.recall(1) < found.image_to_text_label_equal.recall(1)


def test_a_model_that_maps_all_to_one_point_finds_nothing():
    same = np.ones((20, 4))
    found = retrieval.retrieval(same, same, [str(place) for place in range(20)])
    assert found.image_to_text.recall(10) == 0
    assert found.text_to_image.median == 20
    assert found.image_to_text_label_equal is None


def test_a_perfect_model_finds_all():
    draw = np.random.default_rng(1)
    images = draw.standard_normal((30, 16))
    found = retrieval.retrieval(images, 3 * images, [str(place) for place in range(30)])
    assert found.image_to_text.recall(1) == found.text_to_image.recall(1) == 1
    assert found.image_to_text.chance == pytest.approx(1 / 30)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: retrieval.cosines(np.ones((2, 3)), np.ones((2, 4))), "are of shapes"),
        (lambda: retrieval.cosines(np.ones((2, 3)), np.zeros((2, 3))), "row 0 is zero"),
        (lambda: retrieval.retrieval(np.ones((2, 3)), np.ones((2, 3)), ["a"]), "by 1 names"),
        (lambda: retrieval.retrieval(np.ones((2, 3)), np.ones((2, 3)), ["a", "b"], [1]), "1 labels"),
        (lambda: retrieval.alignment(np.ones((0, 3)), np.ones((0, 3))), "there are none"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
