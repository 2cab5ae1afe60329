import itertools
import json

import ml_dtypes
import numpy as np
import pytest

from jaxcxr.errors import UserError
from jaxcxr.interop.tensors import Tensor, contiguous, open_safetensors, open_sharded, write_safetensors

RNG = np.random.default_rng(0)
ARRAYS = {
    "a.weight": RNG.normal(size=(3, 4, 2, 2)).astype(np.float32),
    "b.weight": RNG.normal(size=(5, 7)).astype(np.float16),
    "c.weight": RNG.normal(size=(9,)).astype(ml_dtypes.bfloat16),
    "d": RNG.integers(0, 99, size=(2, 3)),
    "e": np.zeros((0, 4), np.float32),
    "f": np.array(3.5, np.float64),
}


def tensors():
    return {name: Tensor.of(array) for name, array in ARRAYS.items()}


def equal(read, expected):
    assert read.dtype == expected.dtype
    assert read.shape == expected.shape
    np.testing.assert_array_equal(read, expected)


def test_the_library_reads_what_is_written_and_the_other_way(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    write_safetensors(tmp_path / "ours.safetensors", tensors())
    library.save_file(ARRAYS, tmp_path / "theirs.safetensors")
    theirs, ours = library.load_file(tmp_path / "ours.safetensors"), open_safetensors(tmp_path / "theirs.safetensors")
    assert theirs.keys() == ours.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        equal(theirs[name], array)
        equal(ours[name].read(), array)
        assert (ours[name].shape, ours[name].dtype) == (array.shape, array.dtype)


def test_a_transposed_tensor_reads_transposed(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"a": Tensor.of(ARRAYS["a.weight"]).transpose(2, 3, 1, 0)})
    tensor = open_safetensors(tmp_path / "x.safetensors")["a"]
    assert tensor.shape == (2, 2, 4, 3)
    equal(tensor.read(), ARRAYS["a.weight"].transpose(2, 3, 1, 0))


def test_a_cast_is_of_floats_alone(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", tensors(), dtype=np.float16)
    read = {name: tensor.read() for name, tensor in open_safetensors(tmp_path / "x.safetensors").items()}
    dtypes = {name: str(array.dtype) for name, array in read.items()}
    assert dtypes == {**dict.fromkeys(ARRAYS, "float16"), "d": "int64"}
    equal(read["a.weight"], ARRAYS["a.weight"].astype(np.float16))


def test_shards_hold_no_more_than_asked_and_read_as_one(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", tensors(), max_shard_size=200)
    index = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    assert weight_map.keys() == ARRAYS.keys()
    assert sorted(set(weight_map.values())) == [f"model-{n:05}-of-00002.safetensors" for n in (1, 2)]
    for name, tensor in open_sharded(index, open_safetensors).items():
        equal(tensor.read(), ARRAYS[name])


def test_an_index_that_names_what_is_not_there_is_told(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", tensors(), max_shard_size=200)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())

    def rewritten(weight_map):
        index.write_text(json.dumps({"weight_map": weight_map}))
        return index

    with pytest.raises(UserError, match=r"absent\.safetensors: no such file"):
        open_sharded(rewritten(content["weight_map"] | {"z": "absent.safetensors"}), open_safetensors)
    with pytest.raises(UserError, match="names the tensor 'z', which is not there"):
        open_sharded(rewritten(content["weight_map"] | {"z": "model-00001-of-00002.safetensors"}), open_safetensors)
    with pytest.raises(UserError, match="is not a file beside it"):
        open_sharded(rewritten({"z": "../model.safetensors"}), open_safetensors)
    index.write_text("[]")
    with pytest.raises(UserError, match="index.json: Expected `object`, got `array`; copy the file again"):
        open_sharded(index, open_safetensors)


def damaged(data):
    """Files as disks, networks and liars leave them."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])

    def with_header(**changes):
        text = json.dumps(header | changes).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    yield "empty", b""
    yield "cut in the header", data[: 8 + length // 2]
    yield "cut in the data", data[:-9]
    yield "a header of 2^60 bytes", (1 << 60).to_bytes(8, "little") + data[8:]
    yield "offsets outside the file", with_header(d={"dtype": "I64", "shape": [2, 3], "data_offsets": [0, 1 << 50]})
    yield "a shape of more than is there", with_header(d={**header["d"], "shape": [1 << 40, 3]})
    yield "a negative shape", with_header(d={**header["d"], "shape": [-2, 3]})
    yield "overlapping tensors", with_header(f={**header["f"], "data_offsets": [40, 48]})
    yield "no JSON", (4).to_bytes(8, "little") + b"{{{{" + data[8 + length :]


def test_a_damaged_file_is_told_and_never_read(tmp_path):
    write_safetensors(tmp_path / "good.safetensors", tensors())
    for name, data in damaged((tmp_path / "good.safetensors").read_bytes()):
        file = tmp_path / "bad.safetensors"
        file.write_bytes(data)
        with pytest.raises(UserError, match=r"bad\.safetensors: cannot be read"):
            print(name, open_safetensors(file).keys())


def test_bytes_changed_at_random_give_an_error_or_the_same_shapes(tmp_path):
    write_safetensors(tmp_path / "good.safetensors", tensors())
    data, file = (tmp_path / "good.safetensors").read_bytes(), tmp_path / "bad.safetensors"
    told = 0
    for _ in range(300):
        changed = bytearray(data)
        for place in RNG.integers(0, len(data), size=RNG.integers(1, 4)):
            changed[place] = RNG.integers(256)
        file.write_bytes(changed[: len(data) - int(RNG.integers(0, 3) == 0) * int(RNG.integers(len(data)))])
        try:
            for tensor in open_safetensors(file).values():
                assert tensor.read().nbytes <= len(data)
        except UserError:
            told += 1
    assert 100 < told < 300


def test_what_is_not_finite_is_told_when_read():
    for bad in (np.nan, np.inf, -np.inf):
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
            array = np.ones((3, 4), dtype)
            array[1, 2] = bad
            with pytest.raises(UserError, match=r"here: parameter x: holds NaN or infinity"):
                Tensor.of(array).require_finite("here: parameter x").read()
    assert (Tensor.of(ARRAYS["d"]).require_finite("x").read() == ARRAYS["d"]).all()


@pytest.mark.parametrize(
    "shape", [(300, 7), (7, 300), (1, 5), (130, 6, 3, 3), (6, 130, 3, 3), (4, 4, 1, 1), (5, 1, 2, 3)]
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_every_view_is_copied_as_numpy_copies_it(shape, dtype):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    for axes in itertools.permutations(range(len(shape))):
        view = array.transpose(axes)
        copied = contiguous(view)
        assert copied.flags.c_contiguous
        assert copied.dtype == dtype
        assert np.array_equal(copied, view), axes
