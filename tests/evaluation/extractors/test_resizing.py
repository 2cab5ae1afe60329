import numpy as np
import pytest
from PIL import Image

from jaxcxr.evaluation.extractors import resizing

SIZES = [((61, 83), (29, 40)), ((40, 33), (75, 33)), ((7, 5), (3, 11)), ((1, 9), (4, 2)), ((500, 700), (299, 299))]


def noise(size, channels=2):
    return np.random.default_rng(sum(size)).uniform(size=(*size, channels)).astype(np.float32)


def picture(size, mode="RGB"):
    array = (noise(size, 3) * 256).astype(np.uint8)
    return Image.fromarray(array if mode == "RGB" else array[:, :, 0])


@pytest.mark.parametrize(("size", "new_size"), SIZES)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("antialias", [False, True])
def test_torch_resizing_is_that_of_interpolate(size, new_size, mode, antialias):
    torch = pytest.importorskip("torch")
    array = noise(size)
    tensor = torch.from_numpy(array.transpose(2, 0, 1))[None].contiguous()
    expected = torch.nn.functional.interpolate(
        tensor, size=new_size, mode=mode, align_corners=False, antialias=antialias
    )
    own = getattr(resizing, f"torch_{mode}")(array, new_size, antialias)
    assert own.dtype == np.float32
    np.testing.assert_allclose(own, expected[0].numpy().transpose(1, 2, 0), rtol=0, atol=5e-6)


@pytest.mark.parametrize(("size", "new_size"), SIZES)
def test_tensorflow_bilinear_starts_at_the_corner(size, new_size):
    array = noise(size)
    expected = np.empty((*new_size, 2))
    for i, j in np.ndindex(*new_size):
        y, x = (k * length / new for k, length, new in zip((i, j), size, new_size, strict=True))
        top, left = int(y), int(x)
        bottom, right = min(top + 1, size[0] - 1), min(left + 1, size[1] - 1)
        upper = array[top, left] + (array[top, right] - array[top, left]) * (x - left)
        lower = array[bottom, left] + (array[bottom, right] - array[bottom, left]) * (x - left)
        expected[i, j] = upper + (lower - upper) * (y - top)
    np.testing.assert_allclose(resizing.tf1_bilinear(array, new_size), expected, rtol=0, atol=5e-5)


def test_an_enlarged_ramp_by_hand():
    ramp = np.array([[[0.0], [4.0]]], np.float32)
    assert resizing.torch_bilinear(ramp, (1, 4)).ravel().tolist() == [0, 1, 3, 4]
    assert resizing.tf1_bilinear(ramp, (1, 4)).ravel().tolist() == [0, 2, 4, 4]
    assert resizing.torch_bilinear(np.array([[[0.0], [2], [4], [6]]], np.float32), (1, 2)).ravel().tolist() == [1, 5]


@pytest.mark.parametrize(("size", "new_size"), SIZES)
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
def test_pillow_resizing_is_pillows_byte_for_byte(size, new_size, mode, name):
    image = picture(size, mode)
    own = getattr(resizing, f"pil_{name}")(image, new_size)
    expected = np.asarray(image.resize(new_size[::-1], Image.Resampling[name.upper()]))
    assert own.dtype == np.float32
    assert own.shape == (*new_size, len(image.getbands()))
    np.testing.assert_array_equal(own, expected.reshape(own.shape))


@pytest.mark.parametrize(("size", "new_size"), SIZES)
def test_float_bicubic_is_the_widened_filter_clipped_and_not_rounded(size, new_size):
    image = picture(size)
    own = resizing.pil_float_bicubic(image, new_size)
    exact = resizing.torch_bicubic(resizing.pixels(image), new_size, antialias=True)
    np.testing.assert_allclose(own, exact.clip(0, 255), rtol=0, atol=5e-3)
    assert own.dtype == np.float32
    assert np.abs(own - own.round()).max() > 0.3


def test_a_size_of_before_changes_nothing():
    array = noise((20, 30))
    for resize in (resizing.torch_bilinear, resizing.torch_bicubic, resizing.tf1_bilinear):
        np.testing.assert_array_equal(resize(array, (20, 30)), array)


def test_gray_and_rgb():
    image = Image.fromarray(np.array([[[255, 0, 0], [10, 10, 10]]], np.uint8))
    assert resizing.pixels(resizing.gray(image)).tolist() == [[[76], [10]]]
    gray = Image.fromarray(np.array([[7, 9]], np.uint8))
    assert resizing.pixels(resizing.rgb(gray)).tolist() == [[[7, 7, 7], [9, 9, 9]]]


@pytest.mark.parametrize(
    ("size", "length", "expected"),
    [((512, 431), 224, (266, 224)), ((431, 512), 224, (224, 266)), ((300, 300), 518, (518, 518)), ((3, 8), 4, (4, 10))],
)
def test_the_long_edge_is_rounded_down(size, length, expected):
    assert resizing.short_edge(size, length) == expected


def test_the_crop_of_odd_rests_goes_to_the_even_offset():
    array = np.arange(8, dtype=np.float32)[:, None, None]
    assert resizing.centre_crop(array, (5, 1)).ravel().tolist() == [2, 3, 4, 5, 6]  # 1.5 -> 2
    assert resizing.centre_crop(array, (3, 1)).ravel().tolist() == [2, 3, 4]  # 2.5 -> 2
    assert resizing.centre_crop(array.transpose(1, 0, 2), (1, 2)).ravel().tolist() == [3, 4]
