"""An image of any kind becomes a clip of one upright frame of 8-bit RGB, or says why it can't."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import video_files as vf
from PIL import Image

from pyoco_pipeline.data.clips import Clip
from pyoco_pipeline.data.cutting import CutOptions
from pyoco_pipeline.data.cutting import cut_image as cut
from pyoco_pipeline.data.video import VideoError

SIZE = (16, 24)


def cut_image(path: Path, sizes: tuple[tuple[int, int], ...] = (SIZE,)) -> Clip:
    (clip,) = cut(path, {"row_id": "7-i", "path": "a/i.png"}, CutOptions(num_frames=4, sizes=sizes, fps=4))
    return clip


def two_colours(height: int = 40, width: int = 60) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, : width // 2] = (200, 60, 30)
    picture[:, width // 2 :] = (30, 60, 200)
    return picture


@pytest.mark.parametrize(
    "name", ["i.png", "i.jpg", "i.webp", "i.bmp", "i.gif", "i.tif", "i.ppm", "i.tga", "i.avif"]
)
def test_an_image_is_a_clip_of_one_frame(tmp_path, name):
    Image.fromarray(two_colours()).save(tmp_path / name)
    clip = cut_image(tmp_path / name, ((20, 30),))
    assert (clip.clip_id, clip.fps, clip.attributes) == ("7-i-000", None, {"path": "a/i.png"})
    assert (clip.video.shape, clip.video.dtype) == ((1, 20, 30, 3), np.uint8)
    assert np.abs(clip.video[0, :, :13].astype(int) - (200, 60, 30)).max() < 14
    assert np.abs(clip.video[0, :, 17:].astype(int) - (30, 60, 200)).max() < 14


def test_an_image_is_shrunk_by_averaging_as_videos_are(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "i.png")
    clip = cut_image(tmp_path / "i.png", ((12, 16),))
    boxed = np.asarray(Image.fromarray(noise).resize((16, 12), Image.Resampling.BOX))
    assert np.abs(clip.video[0].astype(int) - boxed).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_exif_is_applied(tmp_path, orientation):
    corners = np.zeros((32, 48, 3), np.uint8)
    corners[:16, :24], corners[:16, 24:], corners[16:, :24], corners[16:, 24:] = 40, 90, 140, 200
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(corners).save(tmp_path / "i.jpg", exif=exif, quality=95)
    clip = cut_image(tmp_path / "i.jpg", ((32, 48), (48, 32)))
    expected = {  # top left, top right, bottom left, bottom right, from the definition of the tag
        1: (40, 90, 140, 200), 2: (90, 40, 200, 140), 3: (200, 140, 90, 40), 4: (140, 200, 40, 90),
        5: (40, 140, 90, 200), 6: (140, 40, 200, 90), 7: (200, 90, 140, 40), 8: (90, 200, 40, 140),
    }[orientation]  # fmt: skip
    assert clip.video.shape == ((1, 32, 48, 3) if orientation < 5 else (1, 48, 32, 3))
    found = [clip.video[0, y, x, 0] for y in (4, -5) for x in (4, -5)]
    assert np.abs(np.array(found, int) - expected).max() < 6


def image_modes() -> dict[str, Image.Image]:
    rgb = Image.fromarray(two_colours())
    grey16 = np.asarray(rgb.convert("L")).astype(np.uint16) * 257
    half = np.dstack([two_colours(), np.full((40, 60), 255, np.uint8)])
    half[:20, :, 3] = 0
    palette = rgb.quantize(8)
    return {
        "rgb": rgb, "grey": rgb.convert("L"), "grey, 16 bits": Image.fromarray(grey16), "cmyk": rgb.convert("CMYK"),
        "alpha": Image.fromarray(half), "grey and alpha": Image.fromarray(half).convert("LA"), "palette": palette,
        "black and white": rgb.convert("1", dither=Image.Dither.NONE),
    }  # fmt: skip


@pytest.mark.parametrize("mode", image_modes())
def test_every_kind_of_pixel_becomes_8_bit_rgb(tmp_path, mode):
    path = tmp_path / ("i.tif" if mode == "cmyk" else "i.png")
    image_modes()[mode].save(path)
    clip = cut_image(path, ((40, 60),))
    luma = np.array([0.299, 0.587, 0.114])
    expected = two_colours().astype(float)
    if mode.startswith("grey"):
        expected = np.repeat((expected @ luma)[..., None], 3, axis=2)
    if mode == "black and white":
        expected = np.where((expected @ luma)[..., None] > 127, 255.0, 0.0).repeat(3, axis=2)
    if "alpha" in mode:
        expected[:20] = 0
    assert np.abs(clip.video[0] - expected).mean() < 3


def test_a_transparent_colour_of_a_palette_is_black(tmp_path):
    Image.fromarray(two_colours()).quantize(2).save(tmp_path / "i.png", transparency=0)
    clip = cut_image(tmp_path / "i.png", ((40, 60),))
    halves = [clip.video[0, :, :30].max(), clip.video[0, :, 30:].max()]
    assert min(halves) == 0
    assert max(halves) > 180


def test_the_first_picture_of_an_animation_is_taken(tmp_path):
    pictures = [Image.fromarray(vf.grey_picture(k, 20, 30)) for k in (3, 9, 12)]
    for name in ("i.gif", "i.webp", "i.png"):
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=100)
        clip = cut_image(tmp_path / name)
        assert vf.indices(clip.video) == [3]


BAD_IMAGES = {
    "missing": (lambda path: None, "^does not exist$"),
    "empty": (lambda path: path.write_bytes(b""), "^is empty$"),
    "folder": (lambda path: path.mkdir(), "^is not a regular file$"),
    "text": (lambda path: path.write_text("a cat"), "^is not an image: "),
    "a program for a printer": (
        lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"),
        "^is not an image: ",
    ),
    "video": (lambda path: vf.write_video(path.with_suffix(".mp4"), 2).rename(path), "^is not an image: "),
    "32 bits": (
        lambda path: Image.fromarray(np.ones((8, 8), np.float32)).save(path, format="TIFF"),
        "^has pixels of 32 bits",
    ),
    "bomb": (lambda path: Image.new("1", (12000, 9000)).save(path), r"^is too large: 12000 × 9000 pixels"),
    "large bomb": (lambda path: Image.new("1", (20000, 10000)).save(path), "^cannot be decoded: Image size"),
    "strip": (lambda path: Image.new("RGB", (3000, 1)).save(path), "too long or too flat"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_image_that_cannot_be_used_says_why(tmp_path, case):
    make, reason = BAD_IMAGES[case]
    make(tmp_path / "i.png")
    with pytest.raises(VideoError) as caught:
        cut_image(tmp_path / "i.png")
    assert re.search(reason, caught.value.reason), caught.value.reason


@pytest.mark.parametrize("name", ["i.png", "i.jpg", "i.webp", "i.gif", "i.tif", "i.bmp", "i.avif"])
def test_an_image_that_is_cut_short_is_refused(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(VideoError):
            cut_image(tmp_path / name)
