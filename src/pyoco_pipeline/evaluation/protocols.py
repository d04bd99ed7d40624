"""Published evaluation protocols by name: how many clips, which, and measured by what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pyoco_pipeline.errors import UserError

ProtocolName = Literal["ucf101-unconditional", "ucf101-zeroshot", "msrvtt-zeroshot", "stylegan-v", "tats"]


@dataclass(frozen=True)
class Protocol:
    """What a published figure was measured on.

    Of a real video one clip of `num_frames` consecutive frames at a random offset is taken; shorter videos are
    discarded and counted. Of a generated video the first `num_frames` are taken. Real videos are brought to the size of
    the generated ones, covered and cropped about the centre.

    num_generated: clips that are scored; more are drawn from by the seed, fewer are an error or mark the result
    num_reference: real videos that are drawn; None: all of the split
    split: of the real videos, the one that the papers compare with
    metrics: that it is about, where their extractors are given
    ddof: covariances are divided by N - ddof; None: as the extractor's own project does
    num_splits: of the inception score
    prompts: whether the captions of the generated clips are checked against a table of prompts
    source: where the protocol is described
    """

    name: ProtocolName
    num_generated: int
    num_reference: int | None
    split: Literal["train", "test"]
    metrics: tuple[str, ...]
    source: str
    ddof: int | None = None
    num_frames: int = 16
    num_splits: int = 10
    prompts: bool = False

    def check_count(self, found: int, asked: int, what: str, place: str, *, allow_fewer: bool) -> str | None:
        """The warning of too few clips where they are allowed, None of enough; UserError where they are not.

        Clips are never used twice to make up the number.
        """
        if found >= asked:
            return None
        said = f"{place} holds {found:,} {what} where protocol {self.name} asks for {asked:,}"
        if not allow_fewer:
            raise UserError(
                f"{said}: add {asked - found:,}, or set evaluate.allow_fewer, which marks the metric's name."
            )
        return f"{said}: values depend on the count, so these are not comparable with published ones"


_I3D = ("fvd_i3d_torchscript", "kvd_i3d_torchscript", "fvd_i3d_tats", "kvd_i3d_tats")
_PROTOCOLS = (
    Protocol(
        "ucf101-unconditional",
        num_generated=10_000,
        num_reference=None,
        split="train",
        metrics=("is_c3d", *_I3D, "fvd_videomae", "motion_magnitude"),
        source="TGAN2 (Saito et al., 2020) for the inception score of 10,000 clips in 10 splits",
    ),
    Protocol(
        "ucf101-zeroshot",
        num_generated=10_000,
        num_reference=None,
        split="test",
        metrics=("is_c3d", *_I3D, "fvd_videomae", "clipsim", "motion_magnitude"),
        source="PYoCo (Ge et al., 2023): 10,000 clips in proportion to the classes",
        prompts=True,
    ),
    Protocol(
        "msrvtt-zeroshot",
        num_generated=2_990,
        num_reference=None,
        split="test",
        metrics=(
            "clip_fid_vitb32",
            "fid_inception",
            "clipsim",
            "frame_consistency_clip",
            *_I3D,
            "motion_magnitude",
        ),
        source="one caption for each of the 2,990 test clips of MSR-VTT",
        prompts=True,
    ),
    Protocol(
        "stylegan-v",
        num_generated=2_048,
        num_reference=2_048,
        split="train",
        metrics=("fvd_i3d_torchscript", "is_c3d"),
        source="StyleGAN-V (Skorokhodov et al., 2022), fvd2048_16f",
        ddof=0,
    ),
    Protocol(
        "tats",
        num_generated=2_048,
        num_reference=2_048,
        split="train",
        metrics=("fvd_i3d_tats", "kvd_i3d_tats"),
        source="TATS (Ge et al., 2022)",
        ddof=1,
    ),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _PROTOCOLS}
