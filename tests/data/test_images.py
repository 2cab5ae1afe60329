import io

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

from jaxcxr.data import images


def save(tmp_path, array, name="x.png", **options):
    Image.fromarray(array).save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_portrait_is_padded_left_and_right_with_black_and_keeps_every_side(tmp_path, name):
    height, width = 400, 200
    picture = np.full((height, width), 100, np.uint8)
    picture[:80, :40] = 250  # top left
    picture[-80:, -40:] = 20  # bottom right
    out = images.load_square(save(tmp_path, picture, name), 40)[..., 0]
    assert out.shape == (40, 40)
    assert out.dtype == np.uint8
    assert not out[:, :10].any()
    assert not out[:, 30:].any()
    inside = out[:, 10:30].astype(int)
    assert abs(inside[:7, :3] - 250).max() <= 6
    assert abs(inside[-7:, -3:] - 20).max() <= 6
    assert abs(inside[:7, -3:] - 100).max() <= 6
    assert abs(inside[-7:, :3] - 100).max() <= 6


def test_landscape_is_padded_above_and_below(tmp_path):
    out = images.load_square(save(tmp_path, np.full((30, 90), 200, np.uint8)), 30)[..., 0]
    assert not out[:10].any()
    assert not out[20:].any()
    assert (out[10:20] == 200).all()


def test_one_pixel_border_of_a_large_picture_survives_as_a_mean(tmp_path):
    picture = np.zeros((1024, 1024), np.uint8)
    picture[:, :16] = 255  # exactly one output column
    out = images.load_square(save(tmp_path, picture, "x.jpg", quality=100), 64)[..., 0]
    assert out[:, 0].min() > 220
    assert out[:, 3:].max() < 12


def test_resizing_is_antialiased(tmp_path):
    stripes = np.zeros((512, 512), np.uint8)
    stripes[:, ::2] = 255
    for name in ("x.png", "x.jpg"):
        out = images.load_square(save(tmp_path, stripes, name), 64)[4:-4, 4:-4].astype(int)
        assert abs(out - 127).max() < 10


def test_intensity_is_absolute(tmp_path):
    low = np.full((20, 20), 60, np.uint8)
    low[5:15] = 80
    out = images.load_square(save(tmp_path, low), 20)
    assert (out.min(), out.max()) == (60, 80)


def test_sixteen_bit_png_is_scaled_by_its_depth_not_by_its_range(tmp_path):
    picture = np.array([[0, 257], [257 * 128, 65535]], np.uint16).repeat(8, 0).repeat(8, 1)
    out = images.load_square(save(tmp_path, picture), 16)[..., 0]
    assert [out[2, 2], out[2, 13], out[13, 2], out[13, 13]] == [0, 1, 128, 255]


def test_colour_alpha_and_palette_become_gray(tmp_path):
    gray = np.full((8, 8), 90, np.uint8)
    for number, image in enumerate(
        (Image.fromarray(gray).convert(mode) for mode in ("RGB", "RGBA", "LA", "P", "L")),
    ):
        image.save(tmp_path / f"{number}.png")
        assert (images.load_square(tmp_path / f"{number}.png", 8) == 90).all()


def test_orientation_tag_is_obeyed(tmp_path):
    picture = np.zeros((16, 16), np.uint8)
    picture[:8] = 200
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    out = images.load_square(save(tmp_path, picture, "x.jpg", exif=exif, quality=100), 16)
    assert out[:6].max() < 30
    assert out[10:].min() > 170


def test_damaged_files_are_unreadable(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8)
    for name in ("x.jpg", "x.png"):
        path = save(tmp_path, noise, name)
        path.write_bytes(path.read_bytes()[:3000])
        with pytest.raises(images.UnreadableImage):
            images.load_square(path, 16)
    for content in (b"", b"not an image"):
        (tmp_path / "y.jpg").write_bytes(content)
        with pytest.raises(images.UnreadableImage):
            images.load_square(tmp_path / "y.jpg", 16)
    with pytest.raises(FileNotFoundError):
        images.load_square(tmp_path / "absent.jpg", 16)


def test_float_pictures_have_no_known_depth(tmp_path):
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(images.UnreadableImage, match="gray"):
        images.load_square(tmp_path / "x.tif", 8)


def test_png_round_trip_is_exact():
    image = np.random.default_rng(0).integers(0, 256, (24, 16, 1)).astype(np.uint8)
    encoded = images.encode_png(image)
    assert np.array_equal(images.decode_png(encoded), image)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encoded))), image[..., 0])


def test_pngs_of_others_are_decoded_too():
    image = np.add.outer(np.arange(64), np.arange(48)).astype(np.uint8)  # smooth, so that rows have several filters
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    assert np.array_equal(images.decode_png(buffer.getvalue())[..., 0], image)


def test_extreme_aspect_ratio_keeps_a_pixel(tmp_path):
    out = images.load_square(save(tmp_path, np.full((2, 2000), 255, np.uint8)), 16)
    assert out.max() == 255
    assert np.count_nonzero(out.any(axis=(1, 2))) == 1


def test_gray_levels_can_be_equalized_or_stretched(tmp_path):
    """Levels 100 to 139, the darker ones the more frequent, in a picture without padding."""
    levels = np.repeat(np.arange(100, 140), np.arange(40, 0, -1) * 5)
    rng = np.random.default_rng(0)
    picture = rng.permutation(np.resize(levels, 64 * 64)).reshape(64, 64).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert np.array_equal(images.load_square(tmp_path / "a.png", 64)[..., 0], picture)
    equal = images.load_square(tmp_path / "a.png", 64, "equalize")[..., 0]
    order = np.argsort(picture.ravel(), kind="stable")
    assert (np.diff(equal.ravel()[order].astype(int)) >= 0).all(), "no two levels change places"
    # Spread evenly, half of the pixels are below the middle; of the picture as it is, none.
    for share in (0.25, 0.5, 0.75):
        assert abs(np.quantile(equal, share) - 255 * share) < 12
    stretched = images.load_square(tmp_path / "a.png", 64, "percentile")[..., 0]
    low, high = np.quantile(picture, [0.005, 0.995])
    inside = (picture > low) & (picture < high)
    expected = 255 * (picture[inside] - low) / (high - low)
    assert abs(stretched[inside] - expected).max() < 5
    assert stretched.min() == 0
    assert stretched.max() == 255


def test_padding_stays_black_whatever_becomes_of_the_levels(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(50, 90, (64, 32)).astype(np.uint8)).save(tmp_path / "a.png")
    for intensity in ("equalize", "percentile"):
        square = images.load_square(tmp_path / "a.png", 32, intensity)[..., 0]
        assert not square[:, :8].any()
        assert not square[:, 24:].any()
        assert square[:, 8:24].std() > 40


def test_damaged_exif_is_an_unreadable_image(tmp_path):
    image = Image.new("L", (8, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation
    image.save(tmp_path / "a.jpg", exif=exif)
    data = (tmp_path / "a.jpg").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    start = data.index(b"Exif")
    for _ in range(300):
        broken = bytearray(data)
        for at in rng.integers(start + 6, start + 40, 3):
            broken[at] = rng.integers(256)
        (tmp_path / "b.jpg").write_bytes(broken)
        try:
            images.load_square(tmp_path / "b.jpg", 8)
        except images.UnreadableImage:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif"])
def test_postscript_under_another_name_never_reaches_ghostscript(tmp_path, name, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / name).write_bytes(text)
    with pytest.raises(images.UnreadableImage, match="neither PNG, JPEG, TIFF, BMP nor WEBP"):
        images.load_square(tmp_path / name, 16)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("name", ["x.gif", "x.ppm", "x.ico", "x.tga", "x.pdf", "x.jp2", "x.psd"])
def test_formats_that_are_not_named_are_not_read(tmp_path, name):
    picture = Image.fromarray(np.full((16, 16), 90, np.uint8))
    if name == "x.psd":
        (tmp_path / "x.png").write_bytes(b"8BPS\0\1" + bytes(100))
    else:
        picture.save(tmp_path / name)
        (tmp_path / name).rename(tmp_path / "x.png")
    with pytest.raises(images.UnreadableImage, match="neither PNG"):
        images.load_square(tmp_path / "x.png", 16)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.bmp", "x.webp"])
def test_every_format_that_is_named_is_read_and_bounded(tmp_path, name):
    path = save(tmp_path, np.full((40, 60), 90, np.uint8), name)
    assert abs(images.load_square(path, 60, most_pixels=2400)[20:-20].astype(int) - 90).max() < 3
    with pytest.raises(images.UnreadableImage, match="too many pixels") as error:
        images.load_square(path, 60, most_pixels=2399)
    assert error.value.reason == "image_too_large"


def test_a_long_thin_picture_and_a_long_file_are_too_large(tmp_path):
    path = save(tmp_path, np.zeros((1, 65_536), np.uint8))
    with pytest.raises(images.UnreadableImage, match="too many pixels"):
        images.load_square(path, 16)
    with path.open("ab") as file:
        file.truncate(2**20 + 4 * 100 + 1)
    with pytest.raises(images.UnreadableImage, match="too many bytes"):
        images.load_square(path, 16, most_pixels=100)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_every_orientation_is_obeyed_in_every_mode(tmp_path, turn, mode):
    gray = np.random.default_rng(0).integers(0, 256, (8, 12)).astype(np.uint8)
    picture = Image.fromarray(gray.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(gray).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turn
    picture.save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("L" if mode != "I;16" else "I;16"))
    expected = expected // 257 if mode == "I;16" else expected
    out = images.load_square(tmp_path / "x.png", 12)[..., 0]
    inner = out[2:-2] if expected.shape == (8, 12) else out[:, 2:-2]
    assert np.array_equal(inner, expected)


@pytest.mark.parametrize("name", ["x.png", "x.jpg"])
def test_the_content_of_a_file_gives_the_pixels_of_the_file(tmp_path, name):
    file = save(tmp_path, np.random.default_rng(0).integers(0, 256, (600, 400), np.uint8), name)
    for channels in (1, 3):
        ours = images.load_square(images.picture_in(file.read_bytes()), 32, channels=channels)
        assert np.array_equal(ours, images.load_square(file, 32, channels=channels))
