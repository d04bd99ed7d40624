"""Published extractors by name: `open_extractor("i3d_tats", "weights/i3d_pretrained_400.pt", "cuda")`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pyoco_pipeline.errors import UserError

if TYPE_CHECKING:
    import torch

    from pyoco_pipeline.evaluation.published.base import Precision, PublishedExtractor
    from pyoco_pipeline.evaluation.published.weights import Published

ExtractorName = Literal[
    "i3d_torchscript", "i3d_tats", "c3d_ucf101", "inception_v3", "clip_vitb32", "videomae_ssv2"
]


@dataclass(frozen=True)
class _Entry:
    """Where an extractor's class is. takes: what may be given as its path."""

    module: str
    class_name: str
    batch_size: int
    takes: Literal["file", "folder", "either"] = "file"


_ENTRIES: dict[str, _Entry] = {
    "i3d_torchscript": _Entry("i3d_torchscript", "I3DTorchScript", 8),
    "i3d_tats": _Entry("i3d", "I3DTats", 8),
    "c3d_ucf101": _Entry("c3d", "C3DUcf101", 8),
    "inception_v3": _Entry("inception", "InceptionFid", 4),
    "clip_vitb32": _Entry("clip", "ClipVitB32", 4, takes="folder"),
    "videomae_ssv2": _Entry("videomae", "VideoMaeSsv2", 4, takes="either"),
}
EXTRACTORS: tuple[str, ...] = tuple(_ENTRIES)


def open_extractor(
    name: str,
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    expected_sha256: str | None = None,
    allow_other_weights: bool = False,
    batch_size: int | None = None,
    precision: Precision = "float32",
) -> PublishedExtractor:
    """The extractor `name` with the weights at `path`, a local file or model folder.

    The file's sha256 is computed before anything in it is read, and compared with the published one where that is
    known, and with `expected_sha256` where given. With `allow_other_weights` a file that is not the published one is
    taken, and the extractor's name says so. batch_size: clips at once. Raises UserError for an unknown name, and for a
    file that is missing, another one, cut short, or of another network.
    """
    if name not in _ENTRIES:
        raise UserError(f"There is no extractor {name!r}: take one of {', '.join(EXTRACTORS)}.")
    from pyoco_pipeline.evaluation.published.weights import check_weights

    entry = _ENTRIES[name]
    module = import_module(f"pyoco_pipeline.evaluation.published.{entry.module}")
    file, published = _locate(entry, module, Path(path))
    weights = check_weights(
        file, published, expected_sha256=expected_sha256, allow_other_weights=allow_other_weights
    )
    make: Callable[..., PublishedExtractor] = getattr(module, entry.class_name)
    return make(weights, device, batch_size=batch_size or entry.batch_size, precision=precision)


def _locate(entry: _Entry, module: Any, path: Path) -> tuple[Path, Published]:
    """The file of weights at `path`, and the published file that it must be."""
    from pyoco_pipeline.evaluation.published.folder import weights_file

    if entry.takes == "file" and path.is_dir():
        raise UserError(f"{path} is a folder: give the path of {module.FILE.file} ({module.FILE.source}).")
    if entry.takes == "file" or (entry.takes == "either" and not path.is_dir()):
        return path, module.FILE
    file = weights_file(path)
    return file, module.FILE if file.name == module.FILE.file else module.CONVERTED
