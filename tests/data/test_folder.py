"""Image folders."""

import pytest
from trees import everything, image_folder, quarantine, small_config

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
    assert summary.not_selected == {"view L": 1}
    assert quarantine(tmp_path / "out") == [
        ("../outside.png", "path_outside_tree"),
        ("images/10.png", "unreadable_image"),
        ("images/3.png", "no_usable_text"),
        ("images/4.png", "no_usable_text"),
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


def test_image_folder_without_text_names_its_columns(tmp_path):
    image_folder(tmp_path / "raw", [{"file_name": "0.png", "caption": "clear"}])
    with pytest.raises(UserError, match=r"metadata\.jsonl: no column text; it has caption, file_name"):
        prepare(small_config(), tmp_path / "raw", tmp_path / "out")


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
    assert quarantine(tmp_path / "out") == [
        ("2.png", "no_usable_text"),
        ("4.png", "no_side"),
        ("metadata.csv:5", "row_without_file_name"),
    ]
    assert everything(tmp_path / "out", "train")["0.png"]["prompts"] == [b"Clear, both lungs. left"]
    (record,) = open_split(tmp_path / "out", "validate")
    assert [label.decode() for label in record["labels"]] == ["Effusion", "Edema", "Mass"]
    assert (record["patient"], record["prompts"]) == (b"b", [b"Small effusion. right"])
    table.write_bytes("file_name,text\n0.png,Café\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"metadata\.csv: not a readable table \(UnicodeDecodeError\)"):
        prepare(small_config(), source, tmp_path / "other")
    table.write_text("file_name,caption\n")
    with pytest.raises(UserError, match=r"metadata\.csv: no column text; it has file_name, caption"):
        prepare(small_config(), source, tmp_path / "other")
