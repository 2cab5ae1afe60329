"""A classifier's run: what it learns, that it resumes, and what it refuses."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from jaxcxr import interop
from jaxcxr.data.classes import Classes
from jaxcxr.errors import UserError
from jaxcxr.evaluation.classifiers import load_classifier
from jaxcxr.evaluation.metrics.classification import auroc
from jaxcxr.methods.classifier import cross_entropy, ranked
from jaxcxr.training import labels
from jaxcxr.training.early import Early
from jaxcxr.training.model import make_model
from jaxcxr.training.train import train
from jaxcxr.workdir import Prepared
from tests.training import jobs, kills, runs
from tests.training.classifiers import CLASSES, SIDE, config_of, drawn, labels_of, pictures, prepared, write_folder


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_it_sees_effusions_in_new_pictures(tmp_path):
    changes = {
        "data.path": str(pictures()),
        "data.size": SIDE,
        "steps": 300,
        "batch_size": 16,
        "eval_every": 150,
        "eval_batches": 6,  # of 96 images; there are 80
        "checkpoint_every": 300,
        "ema_decay": 0.98,
        "optimizer.learning_rate": 2e-3,
        "optimizer.warmup_steps": 20,
        "optimizer.eps": 1e-8,
        "optimizer.schedule": "cosine",
        "augment.rotation": 5.0,
        "augment.translation": 0.03,
    }
    train(config_of("small", **changes), tmp_path / "run")
    classifier = load_classifier(tmp_path / "run")
    assert classifier.names == CLASSES
    new = drawn(12, 200)
    seen = classifier(np.stack([one.image for one in new]))
    assert seen.shape == (200, 2)
    assert seen.dtype == np.float32
    areas = {
        name: auroc(np.array([name in labels_of(one) for one in new]), seen[:, number])
        for number, name in enumerate(CLASSES)
    }
    assert areas["Effusion"] > 0.9, areas
    found = [row for row in rows_of(tmp_path / "run") if "validation_auroc" in row]
    assert [row["step"] for row in found] == [0, 150, 300]
    assert found[0]["validation_auroc"] < 0.75 < found[-1]["validation_auroc"]
    assert found[-1]["validation_average_precision"] > found[0]["validation_average_precision"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of ResNet-18."""
    workdir = tmp_path_factory.mktemp("resnet") / "run"
    train(config_of("resnet18", eval_every=6, sample_every=6), workdir)
    return workdir


def test_a_workdir_says_what_it_is_and_converts(run, tmp_path):
    config = json.loads((run / "model" / "classifier" / "config.json").read_text())
    names = tuple(json.loads((runs.data() / "summary.json").read_text())["labels"]["train"])
    assert config == {"architecture": "resnet18", "classes": list(names), "image_size": runs.SIZE, "in_channels": 1}
    checkpoint = interop.read(run, only=("classifier",))
    assert checkpoint.networks == ["classifier"]
    assert interop.read(run, only=("vae",)).networks == []
    interop.diffusers.write(checkpoint, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "classifier" / "model.safetensors")
    assert {"conv1.weight", "layer1.0.bn1.running_var", "layer2.0.downsample.1.running_mean", "fc.bias"} <= set(tensors)
    images = np.random.default_rng(0).integers(0, 256, (3, runs.SIZE, runs.SIZE), np.uint8)
    whole = load_classifier(run)(images)
    assert np.ptp(whole, axis=0).max() > 1e-5, "the answers depend on the image"
    np.testing.assert_array_equal(load_classifier(tmp_path / "out")(images), whole)
    # A last batch that is filled up, and images of another size than it learnt from.
    np.testing.assert_allclose(load_classifier(run, batch_size=2)(images), whole, atol=1e-6)
    doubled = images.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(load_classifier(run)(doubled), whole, atol=0.05)
    assert load_classifier(run)(images[:0]).shape == (0, len(names))
    with pytest.raises(UserError, match=r"images: are float32 of shape \(3, 16, 16\); a classifier takes uint8"):
        load_classifier(run)(images.astype(np.float32))


def test_running_statistics_follow_the_batches_and_nothing_else_moves_them(run):
    tensors = interop.read(run, ema=False).tensors
    var = tensors["classifier.layer4.1.bn2.var"].read()
    # Started at 1, six updates of a tenth: 0.9^6 of that is left, and the batches' are positive.
    assert (var > 0.9**6).all()
    assert np.ptp(var) > 0
    assert np.abs(tensors["classifier.bn1.mean"].read()).max() > 0
    values = rows_of(run)[2]
    assert values["grad_norm/classifier.bn1"] > 0
    assert "statistics" not in values


def test_a_run_stopped_half_way_ends_as_one_that_was_not(run, tmp_path):
    config = config_of("resnet18", eval_every=6, sample_every=6)
    train(config, tmp_path / "run", stop_at=3)
    train(config, tmp_path / "run")
    jobs.assert_same(tmp_path / "run", run)


def test_a_run_goes_on_from_another_runs_classifier(run, tmp_path):
    config = config_of("resnet18", **{"model.base": str(run)})
    with config.unlocked():
        config.model.classifier = ConfigDict()
    pipeline, parameters = make_model(config, jax.random.key(0))
    assert pipeline.classifier.config == load_classifier(run).pipeline.classifier.config
    theirs = jobs.weights(run)
    assert parameters.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(parameters[name], value, err_msg=name)
    config.model.base = ""
    with pytest.raises(UserError, match=r"config\.model\.classifier: describe it, or set config\.model\.base"):
        train(config, tmp_path / "run")


def test_what_does_not_learn_keeps_its_statistics(tmp_path):
    config = config_of("resnet18", trainable=r"classifier\.(fc|layer4)\..*", steps=2, checkpoint_every=2)
    train(config, tmp_path / "run")
    tensors = interop.read(tmp_path / "run", ema=False).tensors
    np.testing.assert_array_equal(tensors["classifier.layer3.0.bn1.var"].read(), 1)
    assert np.abs(tensors["classifier.layer4.0.bn1.var"].read() - 1).min() > 0
    config.trainable = r"classifier\.layer4\.0\.bn1\.(scale|mean)"
    with pytest.raises(UserError, match=r"selects one of layer4\.0\.bn1\.mean and layer4\.0\.bn1\.var"):
        train(config, tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model.classifier.architecture": "vgg"},
            r"classifier: architecture 'vgg' is not supported \(only densenet121, resnet18, resnet50, small\)",
        ),
        ({"model.classifier.image_size": 20}, r"image_size=20: is a multiple of 16 for small"),
        ({"model.classifier.classes": ("Edema", "Edema")}, r"classes.* has to name each class once"),
        (
            {"model.classifier.classes": ("Edema", "Gout")},
            r"config\.model\.classifier\.classes: no training record of .* has the label 'Gout'; there are Cardio",
        ),
        ({"model.classifier.pretrained": "x.pth"}, r"pretrained='x\.pth': .*'small'"),
        (
            {"model.classifier.architecture": "resnet18", "model.classifier.pretrained": "x.pth"},
            r"x\.pth: no such file",
        ),
        (
            {"model.classifier.architecture": "resnet18", "accumulation": 2},
            r"config\.accumulation=2: is 1 with batch norms that learn, of which resnet18 has 20",
        ),
        ({"objective.uncertain": "maybe"}, r"config\.objective\.uncertain='maybe': may be negative, positive, ignore"),
        ({"objective.class_weights": "x"}, r"config\.objective\.class_weights='x': may be none, balanced"),
        ({"trainable": r"unet\..*"}, r"no parameter has such a name"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as caught:
        train(config_of("small", **changes), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "model").exists()


def test_data_without_labels_are_refused(tmp_path):
    rows = [(one, "train", []) for one in drawn(3, 4)]
    data = prepared(write_folder(tmp_path / "pictures", rows), tmp_path / "data")
    changes = {"data.path": str(data), "data.size": SIDE, "eval_every": 0}
    with pytest.raises(UserError, match=r"lists no label of a training record; prepare data that have labels"):
        train(config_of("small", **changes), tmp_path / "run")
    changes["model.classifier.classes"] = ("Effusion",)
    with pytest.raises(UserError, match=r"no training record of .* has the label 'Effusion'; there are none"):
        train(config_of("small", **changes), tmp_path / "run")


def test_an_image_counts_by_its_known_labels():
    logits = jnp.array([[2.0, -1.0, 0.0], [2.0, -1.0, 0.0], [2.0, -1.0, 0.0]])
    truth = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    weights = jnp.array([[1.0, 1.0, 0.0], [3.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    terms = np.logaddexp(0, [[-2.0, -1.0, 0], [2.0, 1.0, 0.0], [0, 0, 0]])
    expected = [(terms[0, 0] + terms[0, 1]) / 2, (3 * terms[1, 0] + terms[1, 1] + terms[1, 2]) / 3, 0]
    np.testing.assert_allclose(cross_entropy(logits, truth, weights), expected, rtol=1e-6)
    gradient = jax.grad(lambda x: cross_entropy(x, truth, weights).sum())(logits)
    assert gradient[0, 2] == 0


@pytest.mark.parametrize(
    ("uncertain", "present", "weights"),
    [
        ("negative", [[1, 0, 0], [0, 0, 1]], [[4, 1, 1], [1, 1, 2]]),
        ("positive", [[1, 1, 0], [0, 0, 1]], [[4, 3, 1], [1, 1, 2]]),
        ("ignore", [[1, 0, 0], [0, 0, 1]], [[4, 0, 1], [1, 1, 2]]),
    ],
)
def test_labels_become_numbers(uncertain, present, weights):
    classes = Classes(("A", "B", "C"), (4.0, 3.0, 2.0), uncertain)
    records = [{"labels": [b"A", b"Z"], "uncertain": [b"B"]}, {"labels": ["C"]}]
    found = classes.fields(records)
    assert {field: value.dtype for field, value in found.items()} == dict.fromkeys(found, np.dtype(np.float32))
    np.testing.assert_array_equal(found["labels"], present)
    np.testing.assert_array_equal(found["label_weights"], weights)


def folder_of(path, weight, images, counts):
    return Prepared(path, weight, "", "x", {}, {"train": images}, {}, {"train": counts})


def test_balanced_positives_weigh_as_much_as_negatives():
    config = ConfigDict({"objective": {"uncertain": "ignore", "class_weights": "balanced"}, "data": {"path": "d"}})
    data = [folder_of("a", 1.0, 100, {"A": 20, "B": 50}), folder_of("b", 3.0, 10, {"A": 4})]
    # 0.25 · 0.2 + 0.75 · 0.4 of what is drawn has A, 0.25 · 0.5 has B.
    found = labels.classes_of(config, ("A", "B"), data)
    np.testing.assert_allclose(found.weights, [0.65 / 0.35, 0.875 / 0.125])
    with pytest.raises(UserError, match="every training record has 'C'; use none"):
        labels.classes_of(config, ("C",), [folder_of("a", 1.0, 5, {"C": 5})])
    config.objective.class_weights = "none"
    assert labels.classes_of(config, ("A",), data).weights == (1.0,)


def test_ranking_is_a_mean_over_labels_that_have_images_of_both_kinds():
    logits = np.array([[3.0, 0.0, 5.0], [2.0, 1.0, 5.0], [1.0, 2.0, 5.0], [0.0, 3.0, 5.0]])
    truth = np.array([[1, 1, 1], [0, 0, 1], [1, 0, 1], [0, 1, 1.0]])
    known = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 1]], bool)
    found = ranked({"logits": logits, "labels": truth, "known": known})
    # Of the first label 3 of 4 pairs are in order, of the second none of 2; the third has positives alone.
    assert found["validation_auroc"] == pytest.approx((3 / 4 + 0) / 2)
    assert found["validation_average_precision"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 3) / 2)
    assert np.isnan(ranked({"logits": logits, "labels": 0 * truth, "known": known})["validation_auroc"])


def test_early_stopping_takes_the_highest_area(tmp_path):
    early = Early(ConfigDict({"metric": "validation_auroc", "patience": 2}), tmp_path, 0)
    for step, value, best in ((10, 0.5, 10), (20, 0.8, 20), (30, float("nan"), 20), (40, 0.7, 20), (50, 0.8, 20)):
        assert not early.over
        early.see(step, {"validation_auroc": value})
        assert early.best == best
    assert early.over
    assert early.said() == "validation_auroc has not risen for 2 evaluations; the best is step 20, which is kept"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["small", "resnet18"])
def test_a_step_is_the_same_on_any_mesh(architecture):
    case = f"tests.training.classifiers:meshes_of:{architecture}"
    argv = [sys.executable, "-m", "tests.parallel.meshes", case]
    done = subprocess.run(argv, env=jobs.environment(4), capture_output=True, text=True, check=False)
    assert "same everywhere" in done.stdout, done.stdout + done.stderr[-2000:]


@pytest.mark.slow
def test_killed_five_times_a_run_ends_as_one_that_never_was(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    kills.assert_nothing_is_lost(config_of("small"), 5, tmp_path)
