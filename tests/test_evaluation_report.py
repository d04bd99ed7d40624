"""The report shows intervals and extrapolated distances where metrics.json holds them."""

from pyoco_pipeline.reporting.figures import metric_bars
from pyoco_pipeline.reporting.html import _metric_row

ENTRY = {
    "value": 310.0,
    "floor": 80.0,
    "num_generated": 2048,
    "num_reference": 2048,
    "extractor": "i3d_tats",
}
INTERVAL = {"low": 291.5, "high": 334.2, "confidence": 0.95, "num": 200}


def test_the_table_gives_the_interval_and_the_extrapolated_value():
    plain = _metric_row("fvd_i3d_tats", ENTRY)[1]
    assert "95%" not in plain
    extrapolated = {"value": 287.1, "standard_error": 2.5, "counts": [1000], "values": [1.0]}
    cell = _metric_row("fvd_i3d_tats", {**ENTRY, "interval": INTERVAL, "extrapolated": extrapolated})[1]
    assert all(text in cell for text in ("291", "334", "95%", "287", "2.5", "infinitely many"))


def test_the_figure_draws_the_interval():
    assert metric_bars({"fvd": ENTRY}) != metric_bars({"fvd": {**ENTRY, "interval": INTERVAL}})


def test_new_metrics_say_which_way_is_better():
    assert "closest to real" in _metric_row("motion_magnitude", ENTRY)[0]
    assert "closest to real" in _metric_row("frame_consistency_clip", ENTRY)[0]
