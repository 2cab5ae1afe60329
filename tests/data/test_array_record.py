import resource

import pytest

from jaxcxr.data import array_record
from jaxcxr.errors import UserError


@pytest.fixture
def limits():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_more_files_than_may_be_open_by_default(tmp_path, limits):
    files = [tmp_path / f"{number}.array_record" for number in range(100)]
    for number, file in enumerate(files):
        array_record.write(file, [b"%d" % number, b"again"], packed=False)
    resource.setrlimit(resource.RLIMIT_NOFILE, (80, limits[1]))
    records = array_record.Files([str(file) for file in files])
    assert list(records) == [part for number in range(100) for part in (b"%d" % number, b"again")]
    assert records[-2] == b"99"


def test_too_many_files_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(UserError, match=r"2 files of records are more than may be open here: ulimit -Hn 258"):
        array_record.Files(["a", "b"])


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, full_disk):
    noise = (bytes([n % 251]) * 50_000 for n in range(40))
    with full_disk(), pytest.raises(UserError, match=r"a\.array_record: cannot be written"):
        array_record.write(tmp_path / "a.array_record", noise, packed=False)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def three(tmp_path):
    files = [tmp_path / f"{number}.array_record" for number in range(3)]
    for number, file in enumerate(files):
        array_record.write(file, [bytes([number]) * 30_000 for _ in range(4)], packed=False)
    return files


def test_a_damaged_record_is_told_with_its_file_and_the_others_are_read(three):
    data = bytearray(three[1].read_bytes())
    place = data.index(b"\1" * 20_000, 40_000)
    data[place + 100] ^= 1
    three[1].write_bytes(data)
    records = array_record.Files([str(file) for file in three])
    bad = []
    for number in range(12):
        try:
            assert records[number] == bytes([number // 4]) * 30_000
        except UserError as error:
            bad.append(str(error))
    assert len(bad) == 1
    assert bad[0].startswith(f"{three[1]}: cannot be read (Corrupted")


@pytest.mark.parametrize(
    "damage", [lambda file: file.write_bytes(file.read_bytes()[:70_000]), lambda file: file.unlink()]
)
def test_a_file_that_cannot_be_opened_is_named(three, damage):
    damage(three[2])
    with pytest.raises(UserError, match=r"2\.array_record: cannot be read .*; copy it again, or make it again"):
        array_record.Files([str(file) for file in three])
