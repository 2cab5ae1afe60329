"""Image folders."""

import pytest
from PIL import Image
from trees import everything, image_folder, picture, quarantine, small_config

from jaxcxr.data.loader import open_split
from jaxcxr.data.prepare import prepare
from jaxcxr.errors import UserError


def test_image_folder_rows(tmp_path):
    lines = [
        {"file_name": f"images/{n}.png", "text": f"clear lungs {n}", "view": "PA", "patient": n} for n in range(16)
    ]
    lines[0].update(split="validation", labels=["Effusion", "Mass"])
    lines[1].update(split="test", view="AP", patient=None)
    lines[2].update(view="L")
    lines[3].update(text=None)
    lines[4].update(text="___")
    lines[5].update(file_name="../outside.png")
    lines[6].update(split="dev")
    lines[7].update(labels="Mass")
    lines[8].update(file_name="images/9.png")
    source = image_folder(tmp_path / "raw", lines)
    (source / "images/10.png").write_bytes(b"no picture")
    with (source / "metadata.jsonl").open("ab") as file:
        file.write(b'{"file_name": \n[1]\n{"file_name": "caf\xe9.png", "text": "x"}\n{"text": "clear"}\n')
    summary = prepare(small_config(max_bad_share=0.7), source, tmp_path / "out")
    assert summary.splits == {"train": 6, "validate": 1, "test": 1}
    assert summary.not_selected == {"no usable section": 2, "view L": 1}
    assert quarantine(tmp_path / "out", source) == [
        ("../outside.png", "path_outside_tree"),
        ("images/10.png", "unreadable_image"),
        ("images/6.png", "unknown_split"),
        ("images/7.png", "labels_not_a_list"),
        ("images/9.png", "duplicate_id"),
        ("metadata.jsonl:17", "row_not_json"),
        ("metadata.jsonl:18", "row_not_json"),
        ("metadata.jsonl:19", "row_not_utf8"),
        ("metadata.jsonl:20", "row_without_file_name"),
    ]
    (record,) = open_split(tmp_path / "out", "validate")
    assert (record["id"], record["patient"]) == (b"images/0.png", b"0")
    assert [label.decode() for label in record["labels"]] == ["Effusion", "Mass"]
    (record,) = open_split(tmp_path / "out", "test")
    assert record["patient"] == b"images/1.png"


def test_image_folder_with_a_folder_per_split(tmp_path):
    for name, count in (("train", 5), ("validation", 2)):
        lines = [{"file_name": f"{n}.png", "text": "clear lungs", "view": "PA"} for n in range(count)]
        image_folder(tmp_path / "raw" / name, lines)
    summary = prepare(small_config(), tmp_path / "raw", tmp_path / "out")
    assert summary.splits == {"train": 5, "validate": 2, "test": 0}
    assert everything(tmp_path / "out", "validate").keys() == {"validation/0.png", "validation/1.png"}


def test_rows_that_cannot_be_written_are_bad(tmp_path):
    source = image_folder(
        tmp_path / "raw", [{"file_name": f"{n}.png", "text": "Clear.  No\n ___ change."} for n in range(4)]
    )
    with (source / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "0.png", "text": "\\ud800"}\n{"file_name": "\\ud800", "text": "a"}\n')
        file.write("[" * 200_000 + "\n")
    summary = prepare(small_config(views=(), max_bad_share=0.5, min_words=0), source, tmp_path / "out")
    assert summary.bad == {"row_not_json": 3}
    found = [everything(tmp_path / "out", split).values() for split in ("train", "validate")]
    assert {tuple(record["prompts"]) for records in found for record in records} == {(b"Clear. No change.",)}


def test_image_folder_without_text_names_its_columns(tmp_path):
    image_folder(tmp_path / "raw", [{"file_name": "0.png", "caption": "clear"}])
    with pytest.raises(
        UserError, match=r"asks for {report}, which .*metadata\.jsonl does not give; it gives {caption}"
    ):
        prepare(small_config(), tmp_path / "raw", tmp_path / "out")
    prepare(small_config(views=(), prompts=("{caption}",), min_words=0), tmp_path / "raw", tmp_path / "out")
    assert everything(tmp_path / "out", "train")["0.png"]["prompts"] == [b"clear"]


def test_image_folder_with_a_csv(tmp_path):
    source = image_folder(tmp_path / "raw", [{"file_name": f"{n}.png"} for n in range(5)])
    (source / "metadata.jsonl").unlink()
    table = source / "metadata.csv"
    table.write_text(
        "file_name,text,labels,patient,split,side\n"
        '0.png,"Clear, both lungs.",,a,,left\n'
        "1.png,Small effusion.,Effusion; Edema|Mass,b,validation,right\n"
        "2.png,,,,,\n"
        ",No picture here.,,,,\n"
        "4.png,No side known.,,,,\n"
    )
    config = small_config(views=(), prompts=("{report} {side}",), max_bad_share=0.6)
    summary = prepare(config, source, tmp_path / "out")
    assert summary.splits == {"train": 1, "validate": 1, "test": 0}
    assert quarantine(tmp_path / "out", source) == [("metadata.csv:5", "row_without_file_name")]
    assert summary.not_selected == {"no side": 1, "no usable section": 1}
    assert everything(tmp_path / "out", "train")["0.png"]["prompts"] == [b"Clear, both lungs. left"]
    (record,) = open_split(tmp_path / "out", "validate")
    assert [label.decode() for label in record["labels"]] == ["Effusion", "Edema", "Mass"]
    assert (record["patient"], record["prompts"]) == (b"b", [b"Small effusion. right"])
    table.write_bytes("file_name,text\n0.png,Café\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"metadata\.csv: not a readable table \(UnicodeDecodeError\)"):
        prepare(small_config(), source, tmp_path / "other")
    table.write_text("image,text\n0.png,A patient's words.\n")
    with pytest.raises(UserError, match=r"metadata\.csv: no column file_name; it has none of these in its first line"):
        prepare(small_config(), source, tmp_path / "other")


def test_folders_of_classes(tmp_path):
    source = tmp_path / "raw"
    for name in ("train/normal/0.png", "train/normal/1.PNG", "train/effusion/0.png", "val/normal/2.png", "train/x.png"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(len(name))).save(source / name)
    (source / "train/normal/notes.txt").touch()
    (source / "train/effusion/1.jpg").touch()
    config = small_config(views=(), prompts=("Chest radiograph, {label}.",), max_bad_share=0.5)
    summary = prepare(config, source, tmp_path / "out")
    assert summary.splits == {"train": 3, "validate": 1, "test": 0}
    assert quarantine(tmp_path / "out", source) == [("train/effusion/1.jpg", "empty_image")]
    found = everything(tmp_path / "out", "train")
    assert {name: record["prompts"] for name, record in found.items()} == {
        "train/normal/0.png": [b"Chest radiograph, normal."],
        "train/normal/1.PNG": [b"Chest radiograph, normal."],
        "train/effusion/0.png": [b"Chest radiograph, effusion."],
    }
    (record,) = open_split(tmp_path / "out", "validate")
    assert (record["labels"], record["patient"]) == ([b"normal"], b"val/normal/2.png")
    prepare(config, source, tmp_path / "out")  # again
    (source / "train/effusion").rename(source / "train/edema")
    with pytest.raises(UserError, match="prepared with other settings or from another source"):
        prepare(config, source, tmp_path / "out")
    with pytest.raises(UserError, match=r"'{report}' asks for {report}, which .*raw does not give; it gives {label}"):
        prepare(small_config(), source, tmp_path / "other")


def test_pictures_in_one_folder_have_no_classes(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "images" / "0.png")
    with pytest.raises(UserError, match="not a source; one of these has .* a folder of pictures for each class"):
        prepare(small_config(), tmp_path, tmp_path / "out")
