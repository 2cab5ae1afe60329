"""What data were prepared with: on record in a run's workdir, compared with its config and at its restarts."""

import json
import shutil
import subprocess

import pytest

from jaxcxr import config as configs
from jaxcxr import workdir as workdirs
from jaxcxr.__main__ import main
from jaxcxr.data.prepare import prepare
from jaxcxr.data.summary import Summary
from jaxcxr.errors import UserError
from jaxcxr.phantoms.tree import write_tree
from jaxcxr.training import prepared
from jaxcxr.training.feed import open_batches
from jaxcxr.training.train import train
from tests.training import jobs, runs
from tests.training.test_restarts import autoencoder, diffusion


@pytest.fixture(scope="module")
def without_validation(tmp_path_factory):
    """A prepared folder without images to validate on, as the published split of RoentGen."""
    folder = tmp_path_factory.mktemp("p19")
    config = configs.load(runs.ROOT / "configs" / "phantom.py").data
    config.size, config.tokenizer_vocab = runs.SIZE, 600
    write_tree(folder / "tree", 40, 64)
    prepare(config, folder / "tree", folder / "data")
    summary = json.loads((folder / "data" / "summary.json").read_text())
    info = next((folder / "data").rglob("dataset_info.json"))
    described = json.loads(info.read_text())
    described["splits"] = [split for split in described["splits"] if split["name"] != "validate"]
    info.write_text(json.dumps(described))
    summary["splits"]["validate"] = 0
    (folder / "data" / "summary.json").write_text(json.dumps(summary))
    return folder / "data"


@pytest.mark.parametrize("kind", [autoencoder, diffusion])
def test_without_a_split_to_validate_on_a_run_trains_and_says_so(without_validation, tmp_path, capfd, kind):
    often = {"eval_every": 1, "sample_every": 2, "steps": 2}
    train(kind(**often, **{"data.path": str(without_validation)}), tmp_path / "run")
    said = [line for line in capfd.readouterr().out.splitlines() if "split 'validate'" in line]
    assert len(said) == 1
    off = "validation losses" + (" and no pictures of reconstructions" if kind is autoencoder else "")
    assert f"{without_validation}: has no images in split 'validate', so there are no {off} during" in said[0]
    assert "jaxcxr prepare" in said[0]
    assert [step for step, _ in jobs.metrics(tmp_path / "run", "loss")] == [1, 2]
    assert not jobs.metrics(tmp_path / "run", "validation_loss")
    pictures = sorted(file.name for file in (tmp_path / "run").glob("samples/*.png"))
    assert pictures == (["00000000.png", "00000002.png"] if kind is diffusion else [])


def test_reconstructions_that_are_off_are_said_also_without_a_validation_loss(without_validation, tmp_path, capfd):
    often = {"eval_every": 0, "sample_every": 1, "steps": 1}
    train(autoencoder(**often, **{"data.path": str(without_validation)}), tmp_path / "run")
    assert "so there are no pictures of reconstructions during training" in capfd.readouterr().out


def test_a_mixture_is_validated_on_the_folders_that_can_be(without_validation):
    config = autoencoder(**{"data.path": str(without_validation), "data.mixture": ((str(runs.data()), 1.0),)})
    batches = open_batches(config, "validate", workdir_tokenizer(), shuffle=False)
    assert batches.images == Summary.read(runs.data()).splits["validate"]


def workdir_tokenizer():
    from jaxcxr.data import tokens

    return tokens.load(runs.data() / "tokenizer")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.views": ("PA",)},
            r"config\.data\.views is \('PA',\), but .* was prepared with \('PA', 'AP'\); give --config\.data\.views=",
        ),
        ({"data.prompts": ("{impression}",)}, r"config\.data\.prompts is .* was prepared with \('{report}',\)"),
        ({"data.patients_out": "lists/some.txt"}, r"config\.data\.patients_out is lists/some\.txt, but"),
    ],
)
def test_a_config_that_was_not_what_the_data_were_prepared_with_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as error:
        train(autoencoder(**changes), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert [file.name for file in (tmp_path / "run").iterdir()] == [".lock"]


def test_every_folder_of_a_mixture_is_compared(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs.data(), other)
    summary = json.loads((other / "summary.json").read_text())
    summary["settings"]["min_words"] = 5
    (other / "summary.json").write_text(json.dumps(summary))
    config = autoencoder(**{"data.mixture": ((str(other), 1.0),), "data.min_words": 5})
    with pytest.raises(UserError, match=rf"min_words is 5, but {runs.data()} was prepared with 2"):
        train(config, tmp_path / "run")


def test_a_config_that_leaves_data_alone_fits_any_folder():
    config = autoencoder()
    found = prepared.describe(config)[0]
    strange = {**found.settings, "views": ["LATERAL"], "split": "hash", "min_words": 7, "tokenizer": "clip"}
    prepared.check_settings(config, (workdirs.Prepared(**{**vars(found), "settings": strange}),))
    config.data.update({"views": ("LATERAL",), "tokenizer": "another", "max_bad_share": 0.5, "tokenizer_vocab": 9})
    prepared.check_settings(config, (workdirs.Prepared(**{**vars(found), "settings": strange}),))


def test_the_share_for_validation_fits_a_folder_of_before_and_one_with_a_split_of_its_own():
    config = autoencoder(**{"data.validate_share": 0.1})
    found = prepared.describe(config)[0]
    before = {key: value for key, value in found.settings.items() if key != "validate_share"}
    for own in (before, {**before, "validate_share": 0.05}):
        prepared.check_settings(config, (workdirs.Prepared(**{**vars(found), "settings": own}),))


@pytest.mark.parametrize(
    ("key", "was", "now"),
    [
        ("views", ["PA", "AP LORDOTIC"], ("LL",)),
        ("labels", [], ("Edema",)),
        ("labels", ["Alzheimer's"], ("Edema",)),
        ("prompts", ["{age} year old $HOME. {report}", 'it\'s "{view}"'], ("{view}",)),
        ("split", "p19", "hash"),
        ("patients_in", "", "some list.txt"),
        ("patients_in", "my list's.txt", "other.txt"),
        ("min_words", 7, 3),
    ],
)
def test_the_remedy_for_other_settings_can_be_typed(key, was, now):
    config = autoencoder(**{f"data.{key}": now})
    found = prepared.describe(config)[0]
    folders = (workdirs.Prepared(**{**vars(found), "settings": {**found.settings, key: was}}),)
    with pytest.raises(UserError) as refused:
        prepared.check_settings(config, folders)
    typed = str(refused.value).split("; give ")[1].removesuffix(", or prepare a new folder with this config")
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {typed}"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert len(words) == 1
    prepared.check_settings(configs.changed(config, words), folders)


def test_the_workdir_says_what_the_data_were_prepared_with(tmp_path):
    train(autoencoder(steps=1), tmp_path / "run")
    (found,) = workdirs.read_data(tmp_path / "run")
    summary = Summary.read(runs.data())
    assert (found.fingerprint, found.settings) == (summary.fingerprint, summary.settings)
    assert (found.splits, found.views, found.labels) == (summary.splits, summary.views, summary.labels)
    assert found.path == str(runs.data())


def test_data_that_moved_are_taken_and_others_refused(tmp_path):
    config, run = autoencoder(), tmp_path / "run"
    train(config, run, stop_at=2)
    shutil.copytree(runs.data(), tmp_path / "moved")
    config.data.path = str(tmp_path / "moved")
    train(config, run, stop_at=3)
    assert workdirs.read_data(run)[0].path == str(tmp_path / "moved")
    summary = json.loads((tmp_path / "moved" / "summary.json").read_text())
    (tmp_path / "moved" / "summary.json").write_text(json.dumps({**summary, "fingerprint": "another"}))
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"moved: holds other data than .*run was started with.* give --config"):
        train(config, run)
    assert (run / "metrics.jsonl").read_bytes() == before
    (run / "data.json").unlink()  # as of a run that was started before it was written
    config.data.path = str(runs.data())
    with pytest.raises(UserError, match="data.path was"):
        train(config, run)
    config.data.path = str(tmp_path / "moved")
    train(config, run)


def test_data_that_are_gone_are_one_line_with_the_option_that_says_where_they_are(tmp_path, capsys):
    data, run = shutil.copytree(runs.data(), tmp_path / "data"), tmp_path / "run"
    train(autoencoder(**{"data.path": str(data)}), run, stop_at=1)
    data.rename(tmp_path / "moved")
    capsys.readouterr()
    assert main(["train", "--workdir", str(run)]) == 2
    error = capsys.readouterr().err
    assert f"{data}: is not there; if it has moved, give its new place" in error
    assert f"jaxcxr train --workdir {run} --config.data.path=FOLDER" in error
    assert error.count("\n") == 1
    assert main(["train", "--workdir", str(run), f"--config.data.path={tmp_path / 'moved'}", "--stop-at", "2"]) == 0


def test_data_that_cannot_be_read_leave_the_workdir_as_it_was(tmp_path):
    data, run = shutil.copytree(runs.data(), tmp_path / "data"), tmp_path / "run"
    train(autoencoder(), run, stop_at=1)
    for file in data.rglob("*array_record*"):
        file.write_bytes(bytes(file.stat().st_size))
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="cannot be read"):
        train(autoencoder(keep=7, **{"data.path": str(data)}), run)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_the_published_recipes_fit_what_their_documents_prepare(tmp_path):
    for name, data in (("roentgen", "data/roentgen"), ("finetune", "finetune")):
        config = configs.load(runs.ROOT / "configs" / f"{name}.py")
        made = configs.load(runs.ROOT / "configs" / f"{data}.py").data
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in made.items()}
        settings |= {"tokenizer": "CLIP"}
        prepared.check_settings(config, (workdirs.Prepared("d", 1.0, "MimicCxr", "f", settings, {}, {}, {}),))
