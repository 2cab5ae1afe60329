"""`jaxcxr reconstruct`: numbers as the functions give them, a page of the worst, nothing of patients unless asked."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from jaxcxr import interop
from jaxcxr.__main__ import main
from jaxcxr.data.images import encode_png
from jaxcxr.evaluation.reconstructions import reconstruct
from jaxcxr.phantoms.studies import phantom


def numbers(out):
    return {
        (row["metric"], row["group"]): row for row in json.loads((out / "reconstructions.json").read_text())["rows"]
    }


@pytest.fixture
def folder(tmp_path):
    """Phantoms that stand for patients."""
    folder = tmp_path / "real"
    folder.mkdir()
    rows = []
    for number in range(6):
        Image.fromarray(phantom(8, number, 64).image).save(folder / f"{number}.png")
        rows.append(
            {"file_name": f"{number}.png", "labels": ["edema"] if number < 2 else [], "patient": f"p{number // 2}"}
        )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_folder_of_patients(tmp_path, folder, capsys):
    out = tmp_path / "out"
    command = ["reconstruct", "--checkpoint", "phantom", "--real", str(folder), "--out", str(out)]
    assert main(command) == 0
    images = np.stack([np.asarray(Image.open(folder / f"{number}.png")) for number in range(6)])
    made = reconstruct(interop.load("phantom", only=("vae",)), images)
    errors = np.sqrt(((images.astype(float) - made) ** 2).mean(axis=(1, 2)))
    found = numbers(out)
    assert found["rmse", ""]["value"] == pytest.approx(errors.mean(), rel=1e-6)
    assert found["rmse", "label=edema"]["value"] == pytest.approx(errors[:2].mean(), rel=1e-6)
    assert found["rmse", "label=no finding"]["n"] == 4
    assert found["rmse", ""]["set"] == "phantom"
    said = capsys.readouterr().out
    assert f"rmse {errors.mean():.3g} (" in said
    assert "left out: ms_ssim: needs images of more than 160 pixels a side" in said
    page = (out / "index.html").read_text()
    assert "data:image" not in page.split("</head>")[1]
    assert main([*command, "--show-real"]) == 0
    page = (out / "index.html").read_text()
    worst = int(errors.argmax())
    for image in (images[worst], made[worst]):
        assert base64.b64encode(encode_png(image[..., None])).decode() in page
    assert "The images on this page are of patients" in page
    assert (out / "reconstructions.csv").read_text().count("\n") == len(found) + 1
    assert out.stat().st_mode & 0o77 == 0


def test_phantoms_by_region_and_finding(tmp_path):
    out = tmp_path / "out"
    assert main(["reconstruct", "--checkpoint", "phantom", "--phantoms", "12", "--out", str(out)]) == 0
    found = numbers(out)
    assert found["rmse", "region=lungs"]["n"] == found["rmse", "region=heart"]["n"] == 12
    assert 0 < found["findings_kept", ""]["value"] <= 1
    assert any(group.startswith("finding=") for _, group in found)
    assert "data:image" in (out / "index.html").read_text().split("</head>")[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--phantoms", "0"], "--phantoms 0: may be 1 or more"),
        (["--phantoms", "2", "--batch-size", "0"], "--batch-size 0: may be 1 or more"),
        (["--phantoms", "2", "--lpips", "alex"], "--lpips alex: give NET=FILE, where NET is alex or vgg"),
        (
            ["--phantoms", "2", "--lpips", "alex=nowhere"],
            "nowhere: no such file; LPIPS (alex) needs torchvision's alexnet",
        ),
        (["--phantoms", "2", "--size", "70"], "this autoencoder wants multiples of 4"),
        (["--real", "nowhere"], "nowhere: no such folder"),
        ([], "one of the arguments --real --phantoms is required"),
        (["--phantoms", "2", "--real", "x"], "not allowed with argument"),
    ],
)
def test_bad_input_is_one_line(tmp_path, options, message, capsys):
    assert main(["reconstruct", "--checkpoint", "phantom", "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
