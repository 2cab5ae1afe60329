import collections
import io
import os
import pickle
import random
import shutil
import struct
import zipfile

import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.interop import pickle_program
from jaxcxr.interop.pickled import open_pickled

torch = pytest.importorskip("torch")

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
SEED = 0


def save(value, file, zipped=True, **options):
    torch.save(value, file, _use_new_zipfile_serialization=zipped, **options)
    return file


def state_dict():
    torch.manual_seed(SEED)
    table = torch.randn(6, 5)
    values = {
        "fp32": torch.randn(2, 3, 3, 3),
        "fp16": torch.randn(7).half(),
        "bf16": torch.randn(4, 4).bfloat16(),
        "fp64": torch.randn(3).double(),
        "int64": torch.arange(-3, 9),
        **{str(dtype): torch.arange(5).to(dtype) for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8)},
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 768),
        "table": table,
        "transposed": table.t(),
        "offset": table[2:, 1:],
        "every_other": table[::2, ::3],
        "expanded": torch.arange(77).expand((1, -1)),
        "repeated": torch.ones(1).expand(3, 4),
        "parameter": torch.nn.Parameter(torch.randn(3, 2)),
    }
    return collections.OrderedDict(values)


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        value, tensor = found[name].read(), tensor.detach()
        assert found[name].shape == value.shape == tuple(tensor.shape), name
        assert found[name].dtype == value.dtype, name
        assert str(value.dtype) == str(tensor.dtype).removeprefix("torch."), name
        as_bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert np.ascontiguousarray(value).tobytes() == as_bytes, name


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4])
def test_every_dtype_view_and_parameter_is_read_bit_for_bit(tmp_path, zipped, protocol):
    assert_same(open_pickled(save(state_dict(), tmp_path / "a", zipped, pickle_protocol=protocol)), state_dict())


@FORMATS
def test_a_modules_own_state_dict(tmp_path, zipped):
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))  # has _metadata
    assert_same(open_pickled(save(module.state_dict(), tmp_path / "a.bin", zipped)), module.state_dict())


@FORMATS
def test_a_training_checkpoint_gives_its_state_dict(tmp_path, zipped):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "global_step": 2**40,
        "note": None,
        "losses": [0.5, 1, {"a": (1, 2, 3, 4)}],
        "device": torch.device("cpu"),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "seen": {1, 2},
        "raw": b"\0\1",
        "optimizer_states": [optimizer.state_dict()],
        "stray": torch.ones(1),
        "state_dict": {"a": torch.arange(3.0), "nested": {"b": torch.ones(2)}},
    }
    found = open_pickled(save(checkpoint, tmp_path / "last.ckpt", zipped, pickle_protocol=4))
    assert_same(found, {"a": torch.arange(3.0)})


@FORMATS
def test_values_beside_the_tensors_are_left_aside(tmp_path, zipped):
    file = save({"a": torch.ones(2), 7: torch.ones(1), "n": 1}, tmp_path / "a", zipped)
    assert_same(open_pickled(file), {"a": torch.ones(2)})


def test_compressed_entries_are_read(tmp_path):
    source = save(state_dict(), tmp_path / "a.pt")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert_same(open_pickled(tmp_path / "b.pt"), state_dict())


def test_a_file_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        save(state_dict(), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert_same(open_pickled(tmp_path / "a.pt"), state_dict())


def test_reading_maps_only_what_is_asked_for(tmp_path):
    file = save({"a": torch.ones(1 << 20)[5:7]}, tmp_path / "a.pt")
    value = open_pickled(file)["a"].read()
    assert value.base is not None
    assert not value.flags.writeable


# Files that would run code.


class Runs:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


def hostile_pickles(marker):
    command = f"touch {marker}"
    yield "posix.system", pickle.dumps({"a": Runs(os.system, command)}, 2)
    yield "posix.system", pickle.dumps({"a": Runs(os.system, command)}, 4)
    yield "builtins.eval", pickle.dumps(Runs(eval, f"open({str(marker)!r}, 'w')"), 4)
    yield "builtins.getattr", b"\x80\x02cbuiltins\ngetattr\n(cos\nsystem\nU\x04nametR."
    yield "os.system", b"\x80\x02cos\nsystem\n" + b"X" + struct.pack("<I", len(command)) + command.encode() + b"\x85R."
    yield "os.system", b"\x80\x02(U" + bytes([len(command)]) + command.encode() + b"ios\nsystem\n."
    yield (
        "os.system",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(command)]) + command.encode() + b"\x85R.",
    )
    yield "collections.OrderedDict.__class__", b"\x80\x04\x8c\x0bcollections\x8c\x15OrderedDict.__class__\x93)R."
    yield "torch.storage._load_from_bytes", b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x01x\x85R."
    yield "torch._utils._rebuild_tensor", b"\x80\x02ctorch._utils\n_rebuild_tensor\n)R."
    yield "os\\nx.system", b"\x80\x04\x8c\x04os\nx\x8c\x06system\x93."
    yield (
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
        b"\x80\x02}cpytorch_lightning.callbacks.model_checkpoint\nModelCheckpoint\n}s.",
    )


def zip_of(data, file, entries=()):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for name, content in dict(entries).items():
            archive.writestr(f"archive/{name}", content)
    return file


def legacy_of(data, file, rest=b""):
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    file.write_bytes(b"".join(pickle.dumps(value, 2) for value in head) + data + rest)
    return file


def refusal(file):
    with pytest.raises(UserError) as caught:
        read_all(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    return message


def read_all(file):
    return {name: tensor.read() for name, tensor in open_pickled(file).items()}


def shapes_or_complaint(file):
    try:
        return {name: value.shape for name, value in read_all(file).items()}
    except UserError as error:
        return str(error)


def test_code_is_refused_by_name_and_does_not_run(tmp_path):
    marker = tmp_path / "ran"
    for number, (name, data) in enumerate(hostile_pickles(marker)):
        shown = name.replace("\\n", " ")
        for make in (zip_of, legacy_of):
            assert f"refers to `{shown}`" in refusal(make(data, tmp_path / f"{number}.pt"))
        bare = tmp_path / f"{number}.pkl"
        bare.write_bytes(data)
        assert f"refers to `{shown}`" in refusal(bare)
    assert not marker.exists()
    # The same bytes do run where a plain unpickler reads them, so the marker means something.
    pickle.loads(next(iter(hostile_pickles(marker)))[1])
    assert marker.exists()


@FORMATS
def test_an_object_in_a_real_checkpoint_is_refused_by_name(tmp_path, zipped):
    marker = tmp_path / "ran"
    values = {"state_dict": {"a": torch.ones(2)}, "hook": Runs(os.system, f"touch {marker}")}
    assert "refers to `posix.system`" in refusal(save(values, tmp_path / "a.ckpt", zipped))
    module = save(torch.nn.Linear(1, 1), tmp_path / "module.pt", zipped)
    assert "refers to `torch.nn.modules.linear.Linear`" in refusal(module)
    assert not marker.exists()


def tensor_pickle(
    offset=0, shape=(2, 3), strides=(3, 1), numel=6, key="0", dtype="FloatStorage", legacy=False, view=None
):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return value.identity if isinstance(value, Stored) else None

    class Stored:
        identity = ("storage", getattr(torch, dtype), key, "cpu", numel, *([view] if legacy else []))

    rebuild = Runs(torch._utils._rebuild_tensor_v2, Stored(), offset, shape, strides, False, collections.OrderedDict())
    stream = io.BytesIO()
    Pickler(stream, 2).dump({"a": rebuild})
    return stream.getvalue()


def both(tmp_path, **claims):
    """A file of each format, each with a storage of six float32, that says `claims` of its tensor."""
    legacy = pickle.dumps(["0"], 2) + struct.pack("<q", 6) + bytes(24)
    return (
        zip_of(tensor_pickle(**claims), tmp_path / "a.pt", {"data/0": bytes(24)}),
        legacy_of(tensor_pickle(**claims, legacy=True), tmp_path / "b.pt", legacy),
    )


def test_the_files_these_tests_make_are_read(tmp_path):
    assert [read_all(file)["a"].shape for file in both(tmp_path)] == [(2, 3), (2, 3)]


def test_a_view_of_a_storage_as_old_pytorch_wrote_it(tmp_path):
    rest = pickle.dumps(["0"], 2) + struct.pack("<q", 6) + np.arange(6, dtype=np.float32).tobytes()

    def file(**claims):
        data = tensor_pickle(view=("1", 2, 3), legacy=True, strides=(1,), **claims)
        return legacy_of(data, tmp_path / "a.pt", rest)

    np.testing.assert_array_equal(open_pickled(file(shape=(2,), offset=1))["a"].read(), [3, 4])
    assert "reaches beyond its storage" in refusal(file(shape=(3,), offset=1))


def test_an_ordered_dict_as_python_2_wrote_it(tmp_path):
    inner = tensor_pickle()[3:].split(b"X\x01\x00\x00\x00a", 1)[1].rsplit(b"s.", 1)[0]  # the tensor alone
    data = b"\x80\x02ccollections\nOrderedDict\n]]U\x01b" + b"a" + inner[2:] + b"aa\x85R."
    found = open_pickled(zip_of(data, tmp_path / "a.pt", {"data/0": bytes(24)}))
    assert list(found) == ["b"]
    assert found["b"].read().shape == (2, 3)


@pytest.mark.parametrize(
    ("claims", "complaint"),
    [
        ({"offset": 1}, "reaches beyond its storage"),
        ({"offset": 2**61}, "reaches beyond its storage"),
        ({"strides": (4, 1)}, "reaches beyond its storage"),
        ({"shape": (3, 3)}, "reaches beyond its storage"),
        ({"shape": (7,), "strides": (1,)}, "reaches beyond its storage"),
        ({"numel": 7}, "its storage is shorter than it says"),
        ({"numel": 2**61, "shape": (2**61,), "strides": (1,)}, "its storage is shorter than it says"),
        ({"dtype": "DoubleStorage"}, ""),
        ({"shape": (1000, 1000), "strides": (0, 0)}, "larger than the file"),
        ({"shape": (2**40, 2**40, 0), "strides": (1, 1, 1)}, "larger than the file"),
        ({"shape": (2, 3), "strides": (-3, 1)}, "below zero"),
        ({"offset": -1}, "without a storage"),
        ({"shape": (-2, 3)}, "below zero"),
        ({"shape": (2, 2**70)}, "below zero"),
        ({"shape": (2, True)}, "below zero"),
        ({"shape": (6,)}, "1 sizes and 2 strides"),
        ({"shape": (1,) * 33, "strides": (1,) * 33}, "33 sizes"),
        ({"shape": [2, 3]}, "without a shape"),
        ({"numel": -6}, "key or size"),
        ({"key": 0}, "key or size"),
    ],
)
def test_a_lying_size_is_told(tmp_path, claims, complaint):
    assert all(complaint in refusal(file) for file in both(tmp_path, **claims))


def test_a_missing_entry_is_named(tmp_path):
    assert "archive/data/0 is missing" in refusal(zip_of(tensor_pickle(), tmp_path / "a.pt"))
    assert "archive/data/../x is missing" in refusal(zip_of(tensor_pickle(key="../x"), tmp_path / "a.pt"))


def test_big_endian_numbers_are_told(tmp_path):
    entries = {"data/0": bytes(24), "byteorder": "big"}
    assert "not little-endian" in refusal(zip_of(tensor_pickle(), tmp_path / "a.pt", entries))
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": False}]
    (tmp_path / "b.pt").write_bytes(b"".join(pickle.dumps(value, 2) for value in head))
    assert "not little-endian" in refusal(tmp_path / "b.pt")


def test_what_is_no_checkpoint_is_told(tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.pt")
    for number, content in enumerate([b"", b"hello", b"PK\x03\x04", bytes(100), pickle.dumps(5), pickle.dumps("x")]):
        (tmp_path / f"{number}.pt").write_bytes(content)
        refusal(tmp_path / f"{number}.pt")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("hello/world.txt", "hello")
    assert "torch.save did not write" in refusal(tmp_path / "other.zip")
    for zipped in (True, False):
        assert "no dictionary of tensors" in refusal(save({"model": {"a": torch.ones(1)}}, tmp_path / "m.pt", zipped))
        assert "no dictionary of tensors" in refusal(save([torch.ones(1)], tmp_path / "l.pt", zipped))
        assert "no dictionary of tensors" in refusal(save(torch.ones(1), tmp_path / "t.pt", zipped))


def test_a_flood_or_an_unknown_opcode_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_program, "_MOST_OPCODES", 400_000)
    copies = b"](" + b"(NNt" * 1000 + b"eq\x00" + b"ccollections\nOrderedDict\nh\x00\x85R" * 1000
    floods = [
        ("holds no dictionary of tensors", b"})" + b"\x85" * 200_000 + b"Ns"),  # a key that cannot be hashed
        ("no dictionary of tensors", b"Nr\xff\xff\xff\xff"),
        ("more than 400000 opcodes", b"}" * 500_000),
        ("too many copies", copies),
        ("expected 1099511627776 bytes", b"\x8e" + struct.pack("<Q", 2**40)),
        ("", b"\x8b" + struct.pack("<i", 2**30)),
        ("no dictionary of tensors", b"]q\x00h\x00a"),  # a list of itself
        ("the pickle opcode EXT1", b"\x82\x01"),
        ("the pickle opcode NEWOBJ", b")\x81"),
        ("attributes of what is no dictionary", b"NNb"),
        ("a call of torch.FloatStorage", b"ctorch\nFloatStorage\n)R"),
    ]
    for complaint, data in floods:
        assert complaint in refusal(zip_of(b"\x80\x04" + data + b".", tmp_path / "a.pt")), data[:9]
        refusal(legacy_of(b"\x80\x04" + data + b".", tmp_path / "a.pt"))


def test_a_zip_bomb_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes((64 << 20) + 1))
    assert "larger than" in refusal(tmp_path / "a.pt")


@FORMATS
def test_truncated_anywhere_is_told(tmp_path, zipped):
    content = save({"a": torch.ones(2, 3), "b": torch.ones(4)}, tmp_path / "a.pt", zipped).read_bytes()
    for length in range(0, len(content), 7):
        (tmp_path / "b.pt").write_bytes(content[:length])
        refusal(tmp_path / "b.pt")


def test_a_file_that_shrinks_while_open_is_told(tmp_path):
    file = save({"a": torch.ones(5000)}, tmp_path / "a.pt")
    tensors = open_pickled(file)
    shutil.copy(save({"a": torch.ones(5)}, tmp_path / "b.pt"), file)
    with pytest.raises(UserError, match="cannot be read"):
        tensors["a"].read()


@FORMATS
def test_random_damage_is_read_or_told_and_nothing_else(tmp_path, zipped):
    expected = {name: tuple(tensor.shape) for name, tensor in state_dict().items()}
    content = save(state_dict(), tmp_path / "a.pt", zipped).read_bytes()
    shuffle, told = random.Random(SEED), 0
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(shuffle.choice([1, 1, 4, 40])):
            damaged[shuffle.randrange(len(damaged))] = shuffle.randrange(256)
        if shuffle.random() < 0.2:
            del damaged[shuffle.randrange(len(damaged)) :]
        (tmp_path / "b.pt").write_bytes(damaged)
        found = shapes_or_complaint(tmp_path / "b.pt")
        if isinstance(found, str):
            assert "\n" not in found
            told += 1
        else:
            # The old format has no checksum: there a damaged digit may make another tensor within the storage.
            assert found == expected or not zipped
    assert 0 < told < 300


def test_random_pickles_are_told(tmp_path):
    shuffle = random.Random(SEED)
    opcodes = b"\x80\x02(.)]}lt\x85\x86\x87NRbQq\x00h\x00sueaK\x01\x88\x89" + b"X\x01\x00\x00\x00a"
    valid = tensor_pickle()
    for _ in range(300):
        data = bytearray(valid)
        for _ in range(shuffle.randrange(1, 12)):
            data[shuffle.randrange(2, len(data))] = shuffle.choice(opcodes)
        found = shapes_or_complaint(zip_of(bytes(data), tmp_path / "a.pt", {"data/0": bytes(24)}))
        assert isinstance(found, dict) or "\n" not in found
