"""Classifier-free guidance: the formula, the one call it makes, conditions, and dynamic thresholding."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pyoco_pipeline.diffusion import ClassifierFreeGuidance, threshold_dynamically

X = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABEL = torch.tensor([[3.0], [5.0]])
NULL = torch.tensor([[-1.0]])


class LabelDenoiser:
    """x / σ + label (+ low_res), and a record of the batches it was called with."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor, low_res: Tensor | float = 0.0) -> Tensor:
        self.batches.append(len(x))
        return x / sigma.view(-1, 1, 1, 1, 1) + label.view(-1, 1, 1, 1, 1) + low_res


def guidance(scale: float, **options: Any) -> ClassifierFreeGuidance:
    return ClassifierFreeGuidance(
        LabelDenoiser(), scale, options.pop("null_cond", {"label": NULL}), **options
    )


def expected(scale: float | Tensor, sigma: Tensor, null: Tensor = NULL) -> Tensor:
    label = null + scale * (LABEL - null)
    return X / sigma.view(-1, 1, 1, 1, 1) + label.view(-1, 1, 1, 1, 1)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 2.0, 7.5])
def test_the_result_is_null_plus_scale_times_the_difference_in_one_call(scale: float) -> None:
    guided = guidance(scale)
    sigma = torch.tensor([0.5, 2.0])
    torch.testing.assert_close(guided(X, sigma, label=LABEL), expected(scale, sigma))
    assert guided.denoise.batches == [4]


def test_scale_one_is_a_single_unguided_call() -> None:
    guided = guidance(1.0)
    sigma = torch.ones(2)
    assert torch.equal(guided(X, sigma, label=LABEL), LabelDenoiser()(X, sigma, label=LABEL))
    assert guided.denoise.batches == [2]


def test_outside_of_the_interval_is_a_single_unguided_call() -> None:
    guided = guidance(3.0, interval=(0.3, 5.0))
    for level in (0.1, 0.3, 5.1):
        sigma = torch.full((2,), level)
        assert torch.equal(guided(X, sigma, label=LABEL), LabelDenoiser()(X, sigma, label=LABEL))
    assert guided.denoise.batches == [2, 2, 2]
    for level in (0.31, 5.0):
        sigma = torch.full((2,), level)
        torch.testing.assert_close(guided(X, sigma, label=LABEL), expected(3.0, sigma))
    assert guided.denoise.batches == [2, 2, 2, 4, 4]


def test_the_interval_holds_for_each_clip_by_itself() -> None:
    sigma = torch.tensor([0.1, 1.0])
    result = guidance(3.0, interval=(0.3, 5.0))(X, sigma, label=LABEL)
    torch.testing.assert_close(result, expected(torch.tensor([[1.0], [3.0]]), sigma))


def test_a_null_may_differ_from_clip_to_clip() -> None:
    null, sigma = torch.tensor([[0.0], [10.0]]), torch.ones(2)
    result = guidance(2.0, null_cond={"label": null})(X, sigma, label=LABEL)
    torch.testing.assert_close(result, expected(2.0, sigma, null))


def test_a_condition_without_a_null_is_kept_in_both_halves() -> None:
    low_res, sigma = torch.full((2, 1, 3, 4, 4), 100.0), torch.ones(2)
    result = guidance(2.0)(X, sigma, label=LABEL, low_res=low_res)
    torch.testing.assert_close(result, expected(2.0, sigma) + 100, rtol=1e-5, atol=1e-4)
    result = guidance(2.0)(X, sigma, label=LABEL, low_res=100.0)
    torch.testing.assert_close(result, expected(2.0, sigma) + 100, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("null_cond", "cond", "message"),
    [
        ({"label": NULL}, {}, r"conditions are \[\]: expected \['label'\] too"),
        ({"label": NULL}, {"label": "cat"}, "condition label is str"),
        (
            {"label": NULL},
            {"label": torch.zeros(3, 1)},
            r"condition label has shape \(3, 1\): expected \(2, …\)",
        ),
        ({"label": torch.zeros(1, 2)}, {"label": LABEL}, r"null_cond\['label'\] has shape \(1, 2\)"),
        ({"label": torch.zeros(3, 1)}, {"label": LABEL}, r"null_cond\['label'\] has shape \(3, 1\)"),
    ],
)
def test_conditions_that_do_not_fit_are_named(null_cond: dict, cond: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        guidance(2.0, null_cond=null_cond)(X, torch.ones(2), **cond)


def test_scale_and_interval_are_checked_at_once() -> None:
    with pytest.raises(ValueError, match="scale is nan"):
        guidance(math.nan)
    for interval in ((2.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="interval is"):
            guidance(2.0, interval=interval)


# Dynamic thresholding


def ramp(top: float, values: int = 1000) -> Tensor:
    """A clip (1, 1, 2, 5, 100) with |x0| at top/1000, 2 top/1000, … top, in some order, of both signs."""
    magnitudes = top * torch.arange(1, values + 1) / values
    signs = torch.where(torch.arange(values) % 2 == 0, 1.0, -1.0)
    order = torch.randperm(values, generator=torch.Generator().manual_seed(1))
    return (magnitudes * signs)[order].view(1, 1, 2, 5, 100)


@pytest.mark.parametrize(("percentile", "s"), [(0.995, 3.98), (0.5, 2.0), (1.0, 4.0), (1e-9, 1.0)])
def test_pixels_beyond_the_percentile_saturate_and_the_others_are_scaled(percentile: float, s: float) -> None:
    x0 = ramp(4.0)
    result = threshold_dynamically(x0, percentile)
    torch.testing.assert_close(result, (x0 / s).clamp(-1, 1))
    assert result.abs().max() == 1


def test_a_clip_within_the_range_is_untouched() -> None:
    x0 = ramp(1.0)
    assert torch.equal(threshold_dynamically(x0, 0.9), x0)


def test_few_pixels_beyond_the_range_are_clipped_without_scaling_the_others() -> None:
    x0 = ramp(1.0)
    x0[0, 0, 0, 0, :3] = 9.0
    assert torch.equal(threshold_dynamically(x0, 0.99), x0.clamp(-1, 1))


def test_every_clip_has_one_threshold_of_its_own_for_all_of_its_frames() -> None:
    clips = torch.cat([ramp(1.0), ramp(4.0), ramp(0.5)])
    clips[2, :, 0] *= 8  # one frame far out
    together = threshold_dynamically(clips, 0.9)
    for i in range(3):
        assert torch.equal(together[i], threshold_dynamically(clips[i : i + 1], 0.9)[0])
    inside = together[2].abs() < 1
    ratio = (clips[2] / together[2])[inside]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    assert ratio[0] > 1


@pytest.mark.parametrize(
    ("scale", "interval"), [(7.5, (0.0, math.inf)), (1.0, (0.0, math.inf)), (7.5, (2.0, 3.0))]
)
def test_the_result_is_thresholded_whether_guided_or_not(scale: float, interval: tuple[float, float]) -> None:
    sigma = torch.ones(2)
    plain = guidance(scale, interval=interval)(X, sigma, label=LABEL)
    assert plain.abs().max() > 1
    result = guidance(scale, interval=interval, dynamic_threshold=0.9)(X, sigma, label=LABEL)
    torch.testing.assert_close(result, threshold_dynamically(plain, 0.9))
    assert result.abs().max() == 1


@pytest.mark.parametrize("percentile", [0.0, -0.1, 1.001, 99.5, math.nan])
def test_a_percentile_out_of_range_is_refused(percentile: float) -> None:
    for refused in (
        lambda: guidance(2.0, dynamic_threshold=percentile),
        lambda: threshold_dynamically(X, percentile),
    ):
        with pytest.raises(ValueError, match=r"dynamic_threshold is .*: expected a percentile in \(0, 1\]"):
            refused()
