"""The parameters of `export` and `report`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pyoco_pipeline.training.settings import (
    Settings,
)

LICENCE = r"[A-Za-z0-9][A-Za-z0-9.+_-]*"  # an identifier such as apache-2.0, openrail++


class ExportSettings(Settings):
    """What the exported folder holds beside the model."""

    # auto: only the embedded one (88 MB), whose licence is known to allow it.
    include_text_encoder: bool | Literal["auto"] = "auto"
    include_captions: bool = True  # the captions that generate samples, with their embeddings
    # Of the parent model, as the Hub spells it; None: as its own card says.
    license: Annotated[str, Field(pattern=f"^{LICENCE}$")] | None = None


class ReportSettings(Settings):
    """The report."""

    title: str = "pyoco_pipeline"
