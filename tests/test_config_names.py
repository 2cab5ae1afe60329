import pytest

from jaxcxr import config as configs
from jaxcxr.errors import UserError


@pytest.mark.parametrize(
    ("given", "name", "stage"),
    [
        ("roentgen", "roentgen", ""),
        ("roentgen:v5e-16", "roentgen", "v5e-16"),
        ("configs/roentgen.py:v5e-16", "roentgen", "v5e-16"),
        ("dewilde", "evaluation/dewilde", ""),
        ("evaluation/roentgen:as_published", "evaluation/roentgen", "as_published"),
    ],
)
def test_a_name_is_a_config_that_comes_with_the_package(given, name, stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configs.find(given) == (configs.FOLDER / f"{name}.py", stage)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("chexgenbench", "several configs have this name; give data/chexgenbench or evaluation/chexgenbench"),
        ("nope", "nope: no such config file, .* those are base, bases, .*roentgen"),
        ("../base", "no such config file"),
        ("", "no such config file"),
    ],
)
def test_an_ambiguous_or_unknown_name_lists_the_candidates(given, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        configs.find(given)
    assert "\n" not in str(error.value)


def test_a_file_here_comes_first_and_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "phantom.py").write_text("")
    assert configs.find("phantom:diffusion") == (configs.Path("phantom.py"), "diffusion")
    assert "the file here is taken" in capsys.readouterr().err
