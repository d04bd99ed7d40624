"""The metrics by name: which extractor reads the clips for each, and what is computed from that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "frechet", "kernel", "inception_score", "caption_accuracy", "clip_mean"
]  # clip_mean: of one number per clip


@dataclass(frozen=True)
class Metric:
    """extractor: its name in the registry, "digits3d", "lite0", or None for the pixels themselves.

    array: what is kept of every clip and averaged or scored; ddof: covariances are divided by N - ddof, as the
    extractor's own project does.
    """

    kind: Kind
    extractor: str | None
    array: str = ""
    ddof: int = 1


TABLE: dict[str, Metric] = {
    "fvd_digits3d": Metric("frechet", "digits3d"),
    "is_digits3d": Metric("inception_score", "digits3d", "digit"),
    "caption_accuracy": Metric("caption_accuracy", "digits3d"),
    "fid_lite0": Metric("frechet", "lite0"),
    "temporal_consistency": Metric("clip_mean", "lite0", "consistency"),
    "fvd_i3d_torchscript": Metric("frechet", "i3d_torchscript", ddof=0),
    "kvd_i3d_torchscript": Metric("kernel", "i3d_torchscript"),
    "fvd_i3d_tats": Metric("frechet", "i3d_tats"),
    "kvd_i3d_tats": Metric("kernel", "i3d_tats"),
    "is_c3d": Metric("inception_score", "c3d_ucf101", "probabilities"),
    "fid_inception": Metric("frechet", "inception_v3"),
    "clip_fid_vitb32": Metric("frechet", "clip_vitb32"),
    "clipsim": Metric("clip_mean", "clip_vitb32", "similarity"),
    "frame_consistency_clip": Metric("clip_mean", "clip_vitb32", "consistency"),
    "fvd_videomae": Metric("frechet", "videomae_ssv2", ddof=0),
    "motion_magnitude": Metric("clip_mean", None, "motion"),
}

# What an extractor does to frames as they are stored, for the record.
RESIZE: dict[str | None, str] = {
    None: "none",
    "digits3d": "32x32, squashed, bilinear antialiased",
    "lite0": "96x96, squashed, bilinear antialiased",
    "i3d_torchscript": "224x224, squashed, inside the TorchScript file",
    "i3d_tats": "224x224, squashed, bilinear without antialiasing",
    "c3d_ucf101": "112x112, squashed, bilinear with aligned corners, without antialiasing",
    "inception_v3": "299x299, squashed, TensorFlow 1's bilinear without antialiasing",
    "clip_vitb32": "short side 224, centre crop, Pillow's bicubic antialiased",
    "videomae_ssv2": "network's side, squashed, bilinear without antialiasing",
}
