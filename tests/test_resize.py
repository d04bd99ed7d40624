"""Ways of resizing against the libraries that define them and where they differ; colours by the stream's tags."""

from itertools import combinations

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures.random_weights import random_clips
from PIL import Image
from published_files import reference

from pyoco_pipeline.data.video import decode_frames
from pyoco_pipeline.evaluation.resize import RESIZES, bilinear_tf1, centre_crop, cover_size, pil_bicubic

SIZES = [(40, 17), (9, 64), (23, 31)]


def picture(height=23, width=31):
    return torch.from_numpy(random_clips(1, 1, height, width)[0])


@pytest.mark.parametrize("size", SIZES)
def test_tf1_bilinear_equals_torch_fidelity(size):
    expected = reference("inception_v3")["resized_{}x{}".format(*size)]
    np.testing.assert_allclose(bilinear_tf1(picture(), size).numpy(), expected, atol=1e-4)


def test_tf1_bilinear_puts_pixel_centres_at_the_top_left():
    ramp = torch.tensor([0, 60, 120, 180], dtype=torch.uint8)[None, None, :, None].expand(1, 1, 4, 3)
    assert bilinear_tf1(ramp, (1, 8))[0, 0, 0].tolist() == [0, 30, 60, 90, 120, 150, 180, 180]
    assert bilinear_tf1(ramp, (1, 2))[0, 0, 0].tolist() == [0, 120]


@pytest.mark.parametrize("size", SIZES)
def test_bicubic_is_pillows_to_the_bit(size):
    frames = picture()
    expected = np.asarray(Image.fromarray(frames[0].numpy()).resize(size[::-1], Image.Resampling.BICUBIC))
    assert torch.equal(
        pil_bicubic(frames, size)[0], torch.from_numpy(expected.copy()).permute(2, 0, 1).float()
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("bilinear", {"align_corners": False}),
        ("bilinear_antialiased", {"align_corners": False, "antialias": True}),
        ("bilinear_corners", {"align_corners": True}),
    ],
)
def test_the_bilinear_ones_are_those_of_torch(name, options, size):
    frames = picture()
    expected = F.interpolate(frames.permute(0, 3, 1, 2).float(), size=size, mode="bilinear", **options)
    torch.testing.assert_close(RESIZES[name](frames, size), expected)


def test_antialiased_bilinear_agrees_with_pillow_within_its_rounding():
    frames = picture()
    for size in SIZES:
        expected = np.asarray(
            Image.fromarray(frames[0].numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
        )
        found = RESIZES["bilinear_antialiased"](frames, size)[0].permute(1, 2, 0).numpy()
        assert np.abs(found - expected).max() <= 1.01


@pytest.mark.parametrize(("first", "second"), combinations(RESIZES, 2))
def test_on_a_picture_of_fine_lines_every_way_is_another(first, second):
    lines = torch.zeros(1, 30, 30, 3, dtype=torch.uint8)
    lines[:, ::3] = 255
    a, b = (RESIZES[name](lines, (14, 14)) for name in (first, second))
    assert (a - b).abs().max() > 10


@pytest.mark.parametrize("name", RESIZES)
def test_every_way_keeps_range_and_is_nothing_at_the_same_size(name):
    frames = picture()
    shrunk = RESIZES[name](frames, (10, 12))
    assert shrunk.shape == (1, 3, 10, 12)
    assert shrunk.dtype == torch.float32
    assert shrunk.min() >= 0
    assert shrunk.max() <= 255
    torch.testing.assert_close(RESIZES[name](frames, (23, 31)), frames.permute(0, 3, 1, 2).float())
    with pytest.raises(ValueError, match="expected uint8"):
        RESIZES[name](frames.float(), (10, 12))


def test_squashing_and_cropping_show_other_parts():
    wide = torch.zeros(1, 20, 40, 3, dtype=torch.uint8)
    wide[:, :, :10] = 255
    squashed = pil_bicubic(wide, (20, 20))
    cropped = centre_crop(pil_bicubic(wide, cover_size(20, 40, 20)), 20)
    assert squashed.shape == cropped.shape
    assert squashed[..., 0].min() > 250
    assert cropped.max() < 5


@pytest.mark.parametrize(
    ("height", "width", "covering"),
    [(240, 320, (224, 298)), (320, 240, (298, 224)), (224, 224, (224, 224)), (100, 101, (224, 226))],
)
def test_the_short_side_is_fitted_and_the_long_one_rounded_down(height, width, covering):
    assert cover_size(height, width, 224) == covering


def test_half_a_pixel_of_cropping_is_rounded_to_even():
    rows = torch.arange(9.0)[:, None].expand(9, 4)
    assert centre_crop(rows[:7], 4)[0, 0] == 2  # 1.5
    assert centre_crop(rows[:5], 4)[0, 0] == 0  # 0.5
    with pytest.raises(ValueError, match="cannot be cropped"):
        centre_crop(rows, 5)


YUV = (120, 90, 200)
MATRICES = {"bt601": (5, 0.299, 0.114), "bt709": (1, 0.2126, 0.0722)}  # code point, weights of red and blue


def rgb_of(yuv, matrix, full):
    """ITU-R BT.601 and BT.709, 8 bits."""
    _, red, blue = MATRICES[matrix]
    y, u, v = (np.array(yuv, float) - [0 if full else 16, 128, 128]) / (
        [255, 255, 255] if full else [219, 224, 224]
    )
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    return np.array([r, (y - red * r - blue * b) / (1 - red - blue), b]).clip(0, 1) * 255


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", MATRICES)
def test_decoding_follows_the_colour_tags_of_the_stream(tmp_path, matrix, full):
    path = tmp_path / "colour.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv444p"
        stream.codec_context.colorspace = MATRICES[matrix][0]
        stream.codec_context.color_range = 2 if full else 1
        for k in range(2):
            planes = np.broadcast_to(np.array(YUV, np.uint8)[:, None, None], (3, 16, 16))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(planes), format="yuv444p")
            frame.colorspace, frame.color_range = MATRICES[matrix][0], 2 if full else 1
            frame.pts = k
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = decode_frames(path, [0.0], 16, 16)
    np.testing.assert_allclose(clip[0, 8, 8], rgb_of(YUV, matrix, full), atol=1.5)


def test_the_four_ways_of_reading_one_colour_differ():
    colours = [rgb_of(YUV, matrix, full) for matrix in MATRICES for full in (False, True)]
    for a, b in combinations(colours, 2):
        assert np.abs(a - b).max() > 5
