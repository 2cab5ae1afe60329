"""Reports in MIMIC-CXR's zip."""

import zipfile

from trees import mimic_tree, quarantine, rows, small_config

from jaxcxr.data.prepare import prepare


def test_reports_may_come_from_the_zip_or_beside_the_images(tmp_path):
    zipped = mimic_tree(tmp_path / "zipped", rows())
    texts = zipped / "mimic-cxr/2.1.0"
    with zipfile.ZipFile(texts / "mimic-cxr-reports.zip", "w") as archive:
        for path in sorted(texts.rglob("*.txt")):
            archive.write(path, path.relative_to(texts))
            path.unlink()
    flat = mimic_tree(tmp_path / "flat", rows())
    for part in ("mimic-cxr-jpg", "mimic-cxr"):
        for path in sorted((flat / part / "2.1.0").rglob("*")):
            if path.is_file():
                target = flat / path.relative_to(flat / part / "2.1.0")
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
    inner = mimic_tree(tmp_path / "inner", rows()) / "mimic-cxr-jpg/2.1.0"
    for number, source in enumerate((zipped, flat, inner)):
        summary = prepare(small_config(), source, tmp_path / f"out{number}")
        assert sum(summary.splits.values()) == 20
        assert summary.bad == {}


def test_a_damaged_entry_of_the_zip_is_a_bad_row(tmp_path):
    members = rows()
    tree = mimic_tree(tmp_path / "raw", members)
    texts = tree / "mimic-cxr/2.1.0"
    with zipfile.ZipFile(texts / "mimic-cxr-reports.zip", "w") as archive:
        for path in sorted(texts.rglob("*.txt")):
            archive.write(path, path.relative_to(texts))
            path.unlink()
    data = bytearray((texts / "mimic-cxr-reports.zip").read_bytes())
    entries = [at for at in range(len(data)) if data[at : at + 4] == b"PK\x01\x02"]
    data[entries[0] + 8] |= 1  # says that it is encrypted
    data[entries[1] + 10] = 77  # an unknown method of compression
    data[entries[2] + 42 : entries[2] + 46] = b"\xff\xff\xff\x7f"  # lies behind the end
    (texts / "mimic-cxr-reports.zip").write_bytes(data)
    assert prepare(small_config(max_bad_share=0.5), tree, tmp_path / "out").bad.keys() == {"unreadable_report"}
    assert [reason for _, reason in quarantine(tmp_path / "out", tree)] == 3 * ["unreadable_report"]


def test_a_cut_zip_and_links_in_circles_are_bad_rows(tmp_path):
    members = rows()
    tree = mimic_tree(tmp_path / "raw", members)
    texts = tree / "mimic-cxr/2.1.0"
    with zipfile.ZipFile(texts / "mimic-cxr-reports.zip", "w") as archive:
        lost = texts / members[0].folder / f"s{members[0].study}.txt"
        archive.write(lost, lost.relative_to(texts))
        lost.unlink()
    data = (texts / "mimic-cxr-reports.zip").read_bytes()
    (texts / "mimic-cxr-reports.zip").write_bytes(data[: len(data) // 2])
    image = tree / "mimic-cxr-jpg/2.1.0" / members[1].folder / f"s{members[1].study}" / f"{members[1].dicom}.jpg"
    image.unlink()
    image.symlink_to(image.name)
    summary = prepare(small_config(), tree, tmp_path / "out")
    assert quarantine(tmp_path / "out", tree) == [
        (members[0].dicom, "missing_report_and_zip_is_cut"),
        (members[1].dicom, "unreadable_image"),
    ]
    assert summary.bad == {"missing_report_and_zip_is_cut": 1, "unreadable_image": 1}
