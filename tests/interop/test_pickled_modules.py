import collections
import importlib
import itertools
import os
import pickle
import random
import struct
import zipfile

import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.interop.pickled import open_pickled
from jaxcxr.interop.pickled_modules import open_pickled_module

torch = pytest.importorskip("torch")

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


class Layer(torch.nn.Sequential):
    def __init__(self, channels):
        super().__init__()
        self.add_module("norm1", torch.nn.BatchNorm2d(channels))
        self.add_module("relu1", torch.nn.ReLU(inplace=True))
        self.add_module("conv1", torch.nn.Conv2d(channels, 3, kernel_size=1, bias=False))


class Network(torch.nn.Module):
    """As the networks that are published: named parts, buffers that are none, and attributes of many kinds."""

    def __init__(self):
        super().__init__()
        parts = [("conv0", torch.nn.Conv2d(1, 4, 3)), ("denseblock1", torch.nn.Sequential(Layer(4), Layer(4)))]
        self.features = torch.nn.Sequential(collections.OrderedDict(parts))
        self.classifier = torch.nn.Linear(3, 2)
        self.again = self.classifier
        self.nothing = None
        self.register_buffer("op_threshs", None)
        self.register_buffer("seen", torch.arange(3))
        self.register_buffer("passing", torch.ones(2), persistent=False)
        self.register_parameter("absent", None)
        self.table = torch.nn.ParameterDict({"a": torch.ones(2)})
        self.targets, self.sizes, self.note = ["Edema", "Mass"], {"a": (1, 2.5)}, {"x", "y"}
        self.stray = torch.zeros(2)


def network():
    torch.manual_seed(0)
    return Network()


def save(value, file, zipped=True, **options):
    torch.save(value, file, _use_new_zipfile_serialization=zipped, **options)
    return file


def read(file):
    return {name: np.array(tensor.read()) for name, tensor in open_pickled_module(file).items()}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.detach().numpy(), err_msg=name)


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_whole_module_gives_its_state_dict(tmp_path, zipped, protocol):
    file = save(network(), tmp_path / "a.pt", zipped, pickle_protocol=protocol)
    assert_same(read(file), network().state_dict())
    assert "passing" not in read(file)
    with pytest.raises(UserError, match="could run code"):
        open_pickled(file)


def test_the_old_format_carries_the_source_of_the_classes(tmp_path):
    file = save(network(), tmp_path / "a.pt", zipped=False)
    assert b"As the networks that are published" in file.read_bytes()


@FORMATS
def test_a_dictionary_is_read_as_ever(tmp_path, zipped):
    state = network().state_dict()
    assert_same(read(save(state, tmp_path / "a.pt", zipped)), state)
    assert_same(read(save({"state_dict": state, "epoch": 3}, tmp_path / "b.pt", zipped)), state)


class Runs:
    def __init__(self, function, *arguments, state=None):
        self.what = (function, arguments, state) if state is not None else (function, arguments)

    def __reduce__(self):
        return self.what


@FORMATS
def test_what_pytorch_wrote_before_its_versions_1_4_and_0_4(tmp_path, zipped):
    with_backend = network()
    thnn = importlib.import_module("torch.nn.backends.thnn")
    with_backend._backend = Runs(thnn._get_thnn_function_backend)
    assert_same(read(save(with_backend, tmp_path / "a.pt", zipped)), network().state_dict())
    tensor = Runs(torch._utils._rebuild_tensor, torch.arange(8.0).storage(), 1, (2, 3), (3, 1))
    parameter = Runs(torch.nn.Parameter, tensor, state=(True, False, collections.OrderedDict()))
    found = read(save(collections.OrderedDict(a=parameter, b=tensor), tmp_path / "b.pt", zipped))
    np.testing.assert_array_equal(found["a"], [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(found["b"], found["a"])


# Files that would run code, and files that are no modules.


def refusal(file):
    with pytest.raises(UserError) as caught:
        read(file)
    message = str(caught.value)
    assert message.startswith(str(file))
    assert "\n" not in message
    assert len(message) < 1000
    return message


class Settings:
    def __init__(self):
        self.rate = 1


@FORMATS
def test_a_call_in_a_module_is_refused_by_name_and_does_not_run(tmp_path, zipped):
    marker = tmp_path / "ran"
    module = network()
    module.hook = Runs(os.system, f"touch {marker}")
    file = save(module, tmp_path / "a.pt", zipped)
    assert "refers to `posix.system`" in refusal(file)
    assert not marker.exists()
    torch.load(file, weights_only=False)  # the same file does run where PyTorch reads it
    assert marker.exists()


@FORMATS
@pytest.mark.parametrize(
    ("name", "value"),
    [
        (f"{__name__}.Settings", Settings()),
        (f"{__name__}.Layer", Layer),  # a class, of which the file has no module
        ("torch.nn.functional.relu", torch.nn.functional.relu),
        ("__builtin__.eval", eval),
        ("numpy.", np.float32(1)),
    ],
)
def test_an_attribute_that_is_no_plain_value_is_refused_by_name(tmp_path, zipped, name, value):
    module = network()
    if value is Layer:
        module.features = None
    module.value = value
    message = refusal(save(module, tmp_path / "a.pt", zipped))
    assert f"refers to `{name}" in message


def zip_of(data, file):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + data + b".")
    return file


def legacy_of(data, file):
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    file.write_bytes(b"".join(pickle.dumps(value, 2) for value in head) + b"\x80\x02" + data + b"." + pickle.dumps([]))
    return file


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def module(modules=b"}", parameters=b"}", kind=b"cm\nM\n"):
    """A module's opcodes, of those of two of its attributes."""
    parts = text("_parameters") + parameters + text("_buffers") + b"}" + text("_modules") + modules
    return kind + b")\x81}(" + parts + b"ub"


def dictionary(**entries):
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


LOOP = b"cm\nM\n)\x81q\x00}(" + text("_parameters") + b"}" + text("_buffers") + b"}" + text("_modules")
HOSTILE = {
    "a call": ("refers to `os.system`", b"cos\nsystem\n" + text("true") + b"\x85R"),
    "a call of nothing": ("refers to `os.system`", b"cos\nsystem\n)R"),
    "an object with arguments": ("refers to `os.system`", b"cos\nsystem\n" + text("true") + b"\x85\x81}b"),
    "an object without attributes": ("refers to `os.system`", b"cos\nsystem\n)\x81"),
    "attributes of no module": ("refers to `os.system`", b"cos\nsystem\n)\x81}b"),
    "attributes that are no dictionary": ("refers to `m.M`", b"cm\nM\n)\x81)b"),
    "a name alone": ("refers to `os.system`", b"cos\nsystem\n"),
    "a name in a tuple": ("refers to `os.system`", dictionary(a=b"cos\nsystem\n\x85")),
    "a name as a class with its source": ("refers to `os.system`", b"(" + text("module") + b"cos\nsystem\nNNtQ"),
    "a call of a module's class": ("refers to `m.M`", dictionary(a=module(), b=b"cm\nM\n)R")),
    "a call by a module": ("a call of what is no function", module() + b")R"),
    "an object of a function": ("refers to `torch.Size`", b"ctorch\nSize\n)\x81}b"),
    "an object of a text": ("an object of what is no class", text("os.system") + b")\x81}b"),
    "the opcode for several arguments": ("the pickle opcode NEWOBJ_EX", b"cm\nM\n)}\x92"),
    "the opcode of old classes": ("the pickle opcode INST", b"(ios\nsystem\n"),
    "a module without tensors": ("holds no", module()),
    "a loop": ("the module a. is within itself", LOOP + b"}" + text("a") + b"h\x00s" + b"ub"),
    "a wide loop": (
        "is within itself",
        LOOP + dictionary(a=module(dictionary(b=module(dictionary(c=b"h\x00"))))) + b"ub",
    ),
    "a module that is a number": ("the module a. is none", module(dictionary(a=b"K\x01"))),
    "a module that is a dictionary": ("the module a. is none", module(dictionary(a=b"}"))),
    "a module without attributes": ("the module a. is none", module(dictionary(a=b"cm\nM\n)\x81"))),
    "a tensor that is a number": ("w is no tensor", module(parameters=dictionary(w=b"K\x01"))),
    "a tensor that is a module": ("w is no tensor", module(parameters=dictionary(w=module()))),
    "a name of two lines": ("has a tensor of the name", module(dictionary(**{"a\nb": module()}))),
    "a long name": ("has a tensor of the name", module(parameters=dictionary(**{"a" * 501: b"N"}))),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("make", [zip_of, legacy_of])
def test_what_is_no_module_is_refused(tmp_path, what, make):
    complaint, data = HOSTILE[what]
    assert complaint in refusal(make(data, tmp_path / "a.pt"))


@pytest.mark.parametrize("make", [zip_of, legacy_of])
def test_modules_nested_without_end_are_refused(tmp_path, make):
    depth = 100_000
    start, end = module(dictionary(a=b"|")).split(b"|")
    assert "more than 100 modules" in refusal(make(start * depth + module() + end * depth, tmp_path / "a.pt"))


def test_modules_that_double_are_refused(tmp_path):
    # Each module holds the one before it twice: 2^60 names.
    data = module()
    for index in range(60):
        data = module(dictionary(a=data + b"q" + bytes([index]), b=b"h" + bytes([index])))
    assert "parts of modules" in refusal(zip_of(data, tmp_path / "a.pt"))


@FORMATS
def test_random_damage_is_read_or_told_and_nothing_else(tmp_path, zipped):
    content = save(network(), tmp_path / "a.pt", zipped).read_bytes()
    shuffle, told = random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(shuffle.choice([1, 1, 4, 40])):
            damaged[shuffle.randrange(len(damaged))] = shuffle.randrange(256)
        (tmp_path / "b.pt").write_bytes(damaged)
        complaint = complaint_of(tmp_path / "b.pt")
        assert "\n" not in complaint
        told += bool(complaint)
    assert 0 < told < 200


def complaint_of(file):
    try:
        read(file)
    except UserError as error:
        return str(error)
    return ""


def test_random_programs_are_told(tmp_path):
    shuffle = random.Random(0)
    opcodes = b"(.)]}lt\x85\x86NRbQq\x00h\x00suea\x81\x88"
    valid = module(dictionary(a=module(), b=module(parameters=dictionary(w=b"N"))))
    for _ in itertools.repeat(None, 200):
        data = bytearray(valid)
        for _ in range(shuffle.randrange(1, 12)):
            data[shuffle.randrange(len(data))] = shuffle.choice(opcodes)
        refusal(zip_of(bytes(data), tmp_path / "a.pt"))
