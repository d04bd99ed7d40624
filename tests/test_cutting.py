"""Clips are cut from segments and scenes, at the rate, in the shape and from the part of the picture asked for."""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import video_files as vf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_scenes import write_scenes

from pyoco_pipeline.data.cutting import CutOptions, cut_image, cut_video, nearest_size
from pyoco_pipeline.data.scenes import SceneOptions
from pyoco_pipeline.data.video import VideoError, probe
from pyoco_pipeline.errors import UserError

SIZE = (16, 24)


def options(**changes) -> CutOptions:
    return CutOptions(**{"num_frames": 4, "sizes": (SIZE,), "fps": 4, "max_clips_per_row": 10, **changes})


def segment(row_id: str = "r", start: float | None = math.nan, end: float | None = None) -> dict:
    return {"row_id": row_id, "path": "v.mp4", "start": start, "end": end, "caption": "x"}


def shown(clips) -> list[list[int]]:
    return [vf.indices(clip.video) for clip in clips]


def long_video(path: Path, frames: int = 160, **changes) -> Path:
    """Frame k is two greys, the digits of k to the base 16; see `numbers`."""

    def picture(k: int, height: int, width: int) -> np.ndarray:
        left, right = (vf.grey_picture(digit, height, width // 2) for digit in divmod(k, 16))
        return np.concatenate([left, right], axis=1)

    return vf.write_video(path, frames, picture=picture, **changes)


def numbers(clip) -> list[int]:
    width = clip.video.shape[2]
    left, right = clip.video[:, :, : width // 2 - 1], clip.video[:, :, width // 2 + 1 :]
    return [16 * high + low for high, low in zip(vf.indices(left), vf.indices(right), strict=True)]


def test_a_video_is_cut_into_consecutive_clips(tmp_path):
    clips = cut_video(
        vf.write_video(tmp_path / "v.mp4", 16), segment("000001-v.mp4"), options()
    )  # 2 s at 8 fps
    assert [clip.clip_id for clip in clips] == ["000001-v.mp4-000", "000001-v.mp4-001"]
    assert shown(clips) == [[0, 2, 4, 6], [8, 10, 12, 14]]
    assert [clip.attributes for clip in clips] == [
        {"path": "v.mp4", "start_s": "0.000"},
        {"path": "v.mp4", "start_s": "1.000"},
    ]
    assert [clip.fps for clip in clips] == [4, 4]
    assert (clips[0].video.shape, clips[0].video.dtype) == ((4, 16, 24, 3), np.uint8)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0.5, 1.5, [[4, 6, 8, 10]]), (0.5, math.nan, [[4, 6, 8, 10]]), (math.nan, 1.4, [[0, 2, 4, 6]]),
     (1.0, 99.0, [[8, 10, 12, 14]]), (None, 1.0, [[0, 2, 4, 6]]), (-3.0, 1.0, [[0, 2, 4, 6]])],
)  # fmt: skip
def test_clips_stay_inside_their_segment(tmp_path, start, end, expected):
    path = vf.write_video(tmp_path / "v.mp4", 16)
    assert shown(cut_video(path, segment(start=start, end=end), options())) == expected
    assert shown(cut_video(path, segment(start=start, end=end), options(stride=2))) == expected


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.5), (1.5, math.nan), (5.0, 9.0), (1.0, 0.5)])
def test_a_segment_that_is_too_short_says_what_it_has_and_what_is_needed(tmp_path, start, end):
    path = vf.write_video(tmp_path / "v.mp4", 16)
    with pytest.raises(VideoError, match=r"has 0\.\d0 s, but a clip of 4 frames at 4 fps needs 1\.00 s"):
        cut_video(path, segment(start=start, end=end), options())
    with pytest.raises(VideoError, match=r"has 0\.\d0 s, but a clip of 4 frames 2 apart needs more"):
        cut_video(path, segment(start=start, end=end), options(stride=2))


@pytest.mark.parametrize("changes", [{}, {"stride": 2}, {"octaves": 1}])
def test_no_more_clips_than_asked_for(tmp_path, changes):
    path = vf.write_video(tmp_path / "v.mp4", 16)
    assert len(cut_video(path, segment(), options(max_clips_per_row=1, **changes))) == 1


def test_the_real_videos_give_clips():
    for path in vf.real_videos():
        clips = cut_video(path, segment(), options(fps=8, num_frames=16))
        assert len(clips) == {"bigbuckbunny.mp4": 2, "bikes.mp4": 5}.get(path.name, 2)


# Scenes


@pytest.mark.parametrize("changes", [{}, {"stride": 2}, {"octaves": 2}, {"fps": 8, "num_frames": 3}])
def test_a_clip_never_crosses_a_scene_cut(tmp_path, changes):
    lengths = (13, 22, 5, 2, 30)
    path = write_scenes(tmp_path / "v.mp4", *lengths)
    cuts = np.cumsum(lengths)[:-1] / vf.FPS
    clips = cut_video(path, segment(), options(scenes=SceneOptions(min_scene_s=0), **changes))
    assert len(clips) > 3
    for clip in clips:
        corner = (
            clip.video[:, 12:, 22:].reshape(len(clip.video), -1).astype(int)
        )  # the square does not come here
        assert np.abs(corner - corner[:1]).max() < 12
        first = float(clip.attributes["start_s"])
        last = first + (len(clip.video) - 1) / clip.fps
        assert not ((first < cuts) & (cuts <= last)).any()


def test_each_scene_begins_a_clip_and_short_ones_are_counted(tmp_path):
    path = write_scenes(tmp_path / "v.mp4", 13, 22, 5, 20)
    clips = cut_video(path, segment(), options(scenes=SceneOptions()))
    assert [clip.attributes["start_s"] for clip in clips] == ["0.000", "1.625", "2.625", "5.000", "6.000"]
    assert [clip.attributes["scene"] for clip in clips] == ["1", "2", "2", "4", "4"]
    assert {(clip.attributes["scenes"], clip.attributes["scenes_skipped"]) for clip in clips} == {("4", "1")}


def test_scenes_after_the_last_clip_are_not_called_too_short(tmp_path):
    path = write_scenes(tmp_path / "v.mp4", 13, 22, 5, 20)
    clips = cut_video(path, segment(), options(scenes=SceneOptions(), max_clips_per_row=2))
    assert [clip.attributes["scenes_skipped"] for clip in clips] == ["0", "0"]


@pytest.mark.parametrize("stride", [None, 2])
def test_a_video_with_no_scene_that_is_long_enough_says_so(tmp_path, stride):
    path = write_scenes(tmp_path / "v.mp4", 5, 6, 5)
    with pytest.raises(VideoError, match=r"has no scene that is long enough: the longest of 3 has 0\.75 s"):
        cut_video(path, segment(), options(scenes=SceneOptions(), stride=stride))
    with pytest.raises(VideoError, match=r"has no scene of 5 s or more"):
        cut_video(path, segment(), options(scenes=SceneOptions(min_scene_s=5), stride=stride))


# Frame rates


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), octaves=st.integers(0, 3), frames=st.integers(1, 6), end=st.floats(1, 20))
def test_rates_fall_by_octaves_and_clips_follow_one_another(tmp_path, seed, octaves, frames, end):
    path = tmp_path / "v.mp4"
    if not path.exists():
        long_video(path)
    wanted = options(num_frames=frames, octaves=octaves, seed=seed, max_clips_per_row=64)
    try:
        clips = cut_video(path, segment(end=end), wanted)
    except VideoError:
        assert end < (frames - 0.5) / 4
        return
    at = 0.0
    for clip in clips:
        assert 4 / clip.fps in {2**k for k in range(octaves + 1)}
        assert numbers(clip) == [int((at + k / clip.fps) * vf.FPS + 1e-6) for k in range(frames)]
        at += frames / clip.fps
        assert at - 0.5 / clip.fps <= end
    if len(clips) < 64:
        assert end < at + (frames - 0.5) / 4  # there was no room for another one, even at the full rate


def test_every_rate_is_drawn_as_often_as_another(tmp_path):
    path = long_video(tmp_path / "v.mp4", 80)
    rates = Counter(
        cut_video(path, segment(f"row{k}"), options(num_frames=2, octaves=2, max_clips_per_row=1))[0].fps
        for k in range(150)
    )
    assert set(rates) == {4, 2, 1}
    chi_square = sum((count - 50) ** 2 / 50 for count in rates.values())
    assert chi_square < 18.4  # two degrees of freedom, one failure in 10,000


def test_where_a_rate_does_not_fit_the_next_higher_one_is_taken(tmp_path):
    path = vf.write_video(tmp_path / "v.mp4", 16)
    for seed in range(20):
        clips = cut_video(path, segment(), options(octaves=6, seed=seed))
        assert [clip.fps for clip in clips] in ([2], [4, 4])  # 2 s hold four frames at 2 fps, none at 1 fps


def test_a_stride_takes_every_nth_frame_whatever_their_times(tmp_path):
    times = [0, 100, 150, 1000, 1040, 1080, 1500, 1510, 1900, 2000, 2500, 2600]
    path = vf.write_video(tmp_path / "v.mkv", 12, timestamps_ms=times)
    clips = cut_video(path, segment(), options(num_frames=3, stride=2))
    assert shown(clips) == [[0, 2, 4], [6, 8, 10]]
    assert [clip.fps for clip in clips] == [pytest.approx(2 / 1.04), pytest.approx(2 / 1.0)]
    assert [clip.attributes["start_s"] for clip in clips] == ["0.000", "1.500"]


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi", "v.ts"])
def test_the_rate_of_a_stride_is_the_file_s_over_the_stride(tmp_path, name):
    path = long_video(tmp_path / name, 64, keyframe_interval=16)
    for stride in (1, 3, 4):
        clips = cut_video(path, segment(start=2.0), options(stride=stride, max_clips_per_row=3))
        assert [clip.fps for clip in clips] == [pytest.approx(8 / stride)] * 3
        for k, clip in enumerate(clips):
            assert numbers(clip) == [16 + stride * (4 * k + j) for j in range(4)]


def test_a_stride_does_not_pass_over_what_is_missing(tmp_path):
    path = long_video(tmp_path / "v.mkv", 64)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(VideoError, match=r"is cut short"):
        cut_video(path, segment(), options(stride=2))


# Shapes and crops


@pytest.mark.parametrize(
    ("aspect_ratio", "expected"),
    [
        (1.0, (64, 64)),
        (4 / 3, (64, 96)),
        (16 / 9, (64, 96)),
        (9 / 16, (96, 64)),
        (0.1, (96, 64)),
        (1.2, (64, 64)),
    ],
)
def test_a_picture_goes_to_the_nearest_aspect_ratio(aspect_ratio, expected):
    assert nearest_size(aspect_ratio, ((64, 64), (64, 96), (96, 64))) == expected


def test_the_first_of_two_equally_near_sizes_is_taken():
    assert nearest_size(1.0, ((64, 32), (32, 64))) == (64, 32)
    assert nearest_size(1.0, ((32, 64), (64, 32))) == (32, 64)
    assert nearest_size(2.0, ((16, 32), (32, 64))) == (16, 32)


def test_the_picture_s_shape_is_that_after_rotation(tmp_path):
    sizes = ((16, 32), (32, 16))
    path = vf.write_video(tmp_path / "v.mp4", 16)
    assert cut_video(path, segment(), options(sizes=sizes))[0].video.shape == (4, 16, 32, 3)
    turned = vf.set_display_matrix(path, 0, 1, -1, 0)
    assert cut_video(turned, segment(), options(sizes=sizes))[0].video.shape == (4, 32, 16, 3)


def stripes(k: int, height: int, width: int) -> np.ndarray:
    columns = np.linspace(20, 230, width).astype(np.uint8)
    return np.broadcast_to(columns[None, :, None], (height, width, 3))


@pytest.mark.parametrize("changes", [{}, {"stride": 1}])
def test_a_random_crop_is_one_for_all_frames_and_its_own_for_each_clip(tmp_path, changes):
    path = vf.write_video(tmp_path / "v.mp4", 64, height=32, width=128, picture=stripes)
    wanted = options(sizes=((32, 32),), crop="random", seed=3, fps=8, max_clips_per_row=12, **changes)
    clips = cut_video(path, segment(), wanted)
    assert len(clips) == 12
    lefts = [clip.video[:, 16, 0, 0].astype(int) for clip in clips]
    assert all(np.ptp(left) <= 2 for left in lefts)
    assert len({int(left[0]) // 5 for left in lefts}) > 5
    assert np.ptp([left[0] for left in lefts]) > 80  # of 158 grey levels
    centre = cut_video(path, segment(), options(sizes=((32, 32),), fps=8))
    assert {abs(int(clip.video[0, 16, 16, 0]) - 125) < 4 for clip in centre} == {True}


def test_the_same_segment_and_options_make_the_same_clips_in_any_order(tmp_path):
    path = write_scenes(tmp_path / "v.mp4", 20, 30)
    wanted = options(octaves=2, crop="random", scenes=SceneOptions(), seed=7)
    once = cut_video(path, segment(), wanted)
    cut_video(path, segment("other"), wanted)
    again = cut_video(path, segment(), wanted)
    assert [(clip.clip_id, clip.attributes, clip.fps) for clip in once] == [
        (clip.clip_id, clip.attributes, clip.fps) for clip in again
    ]
    assert all((one.video == other.video).all() for one, other in zip(once, again, strict=True))


@pytest.mark.parametrize("changes", [{"num_frames": 0}, {"fps": 0}, {"fps": math.nan}, {"max_clips_per_row": 0},
                                     {"sizes": ()}, {"sizes": ((0, 4),)}, {"stride": 0}, {"octaves": -1},
                                     {"octaves": 1, "stride": 2}, {"crop": "left"}])  # fmt: skip
def test_options_that_make_no_clip_are_refused(changes):
    with pytest.raises(UserError):
        options(**changes)


# Images


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
    (clip,) = cut_image(tmp_path / name, segment("7-i"), options(sizes=((20, 30),)))
    assert (clip.clip_id, clip.fps, clip.attributes) == ("7-i-000", None, {"path": "v.mp4"})
    assert (clip.video.shape, clip.video.dtype) == ((1, 20, 30, 3), np.uint8)
    assert np.abs(clip.video[0, :, :13].astype(int) - (200, 60, 30)).max() < 14
    assert np.abs(clip.video[0, :, 17:].astype(int) - (30, 60, 200)).max() < 14


def test_an_image_is_shrunk_by_averaging_as_videos_are(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "i.png")
    (clip,) = cut_image(tmp_path / "i.png", segment(), options(sizes=((12, 16),)))
    boxed = np.asarray(Image.fromarray(noise).resize((16, 12), Image.Resampling.BOX))
    assert np.abs(clip.video[0].astype(int) - boxed).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_exif_is_applied(tmp_path, orientation):
    corners = np.zeros((32, 48, 3), np.uint8)
    corners[:16, :24], corners[:16, 24:], corners[16:, :24], corners[16:, 24:] = 40, 90, 140, 200
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(corners).save(tmp_path / "i.jpg", exif=exif, quality=95)
    (clip,) = cut_image(tmp_path / "i.jpg", segment(), options(sizes=((32, 48), (48, 32))))
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
    (clip,) = cut_image(path, segment(), options(sizes=((40, 60),)))
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
    (clip,) = cut_image(tmp_path / "i.png", segment(), options(sizes=((40, 60),)))
    halves = [clip.video[0, :, :30].max(), clip.video[0, :, 30:].max()]
    assert min(halves) == 0
    assert max(halves) > 180


def test_the_first_picture_of_an_animation_is_taken(tmp_path):
    pictures = [Image.fromarray(vf.grey_picture(k, 20, 30)) for k in (3, 9, 12)]
    for name in ("i.gif", "i.webp", "i.png"):
        pictures[0].save(tmp_path / name, save_all=True, append_images=pictures[1:], duration=100)
        (clip,) = cut_image(tmp_path / name, segment(), options())
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
        cut_image(tmp_path / "i.png", segment(), options())
    assert re.search(reason, caught.value.reason), caught.value.reason


@pytest.mark.parametrize("name", ["i.png", "i.jpg", "i.webp", "i.gif", "i.tif", "i.bmp", "i.avif"])
def test_an_image_that_is_cut_short_is_refused(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(VideoError):
            cut_image(tmp_path / name, segment(), options())


# Damage


@pytest.mark.parametrize(
    "name", ["i.png", "i.jpg", "i.webp", "i.gif", "i.tif", "i.bmp", "i.tga", "i.ppm", "i.avif"]
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_image_never_raises_anything_else(tmp_path, name, data):
    path = tmp_path / name
    exif = Image.Exif()
    exif[0x0112] = 6
    extra = {} if name in ("i.gif", "i.bmp", "i.tga", "i.ppm") else {"exif": exif}
    Image.fromarray(two_colours(24, 36)).save(path, **extra)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        (clip,) = cut_image(path, segment(), options())
        assert clip.video.shape == (1, *SIZE, 3)
    except VideoError:
        pass


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi", "v.ts", "v.gif"])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_video_never_raises_anything_else(tmp_path, name, data):
    path = tmp_path / f"whole-{name}"
    if not path.exists():
        codec = {"codec": "gif", "pix_fmt": "rgb8"} if name == "v.gif" else {}
        write_scenes(path, 10, 14, keyframe_interval=8, **codec)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 12))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content
    damaged = tmp_path / name
    damaged.write_bytes(content)
    changes = data.draw(st.sampled_from([{}, {"stride": 2}, {"octaves": 2}, {"scenes": SceneOptions()}]))
    start = data.draw(st.sampled_from([math.nan, 0.3, 1.6]))
    try:
        for clip in cut_video(damaged, segment(start=start), options(num_frames=2, **changes)):
            assert clip.video.shape == (2, *SIZE, 3)
    except VideoError:
        pass


def test_a_file_of_unusual_figures_gives_clips_or_says_why(tmp_path):
    files = [
        vf.write_video(tmp_path / "tiny.mkv", 16, height=1, width=1, codec="ffv1", pix_fmt="yuv444p"),
        vf.write_video(tmp_path / "fast.mkv", 20, timestamps_ms=list(range(20))),
        vf.write_video(tmp_path / "slow.mkv", 3, timestamps_ms=[0, 3_600_000, 7_200_000]),
        vf.write_video(tmp_path / "one.mp4", 1),
    ]
    for path in files:
        for changes in ({"fps": 1e5}, {"fps": 1e-4}, {"fps": 8}, {"stride": 1}, {"stride": 10**9}):
            with contextlib.suppress(VideoError):
                for clip in cut_video(path, segment(), options(num_frames=2, max_clips_per_row=2, **changes)):
                    assert clip.video.shape == (2, *SIZE, 3)
                    assert clip.fps is None or 0 < clip.fps < math.inf
    assert probe(files[2]).duration_s > 7000
