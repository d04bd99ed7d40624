"""Captions in, validated by the catalog; clips and text embeddings out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from pyoco_pipeline.config import IngestSettings
from pyoco_pipeline.datasets.folder import FolderWriter


def list_captions(ingest: IngestSettings) -> pd.DataFrame:
    """One row per captioned clip or video, with the number of tokens that the text encoder sees."""
    from pyoco_pipeline.models.text import load_tokenizer, text_encoder_folder

    table = _source(ingest).captions()
    tokenizer = load_tokenizer(text_encoder_folder(ingest.text_encoder))
    captions = table["caption"].fillna("").astype(str).tolist()
    num_tokens = [len(ids) for ids in tokenizer(captions).input_ids]
    return table.assign(num_tokens=num_tokens, tokens_cut=[max(0, n - ingest.max_tokens) for n in num_tokens])


def cut_clips(captions: pd.DataFrame, ingest: IngestSettings) -> FolderWriter:
    """The clips of all captions that passed validation."""
    from pyoco_pipeline.data.write_source import write_source

    folder = ingest.source == "video_folder"
    return partial(
        write_source,
        source=_source(ingest),
        captions=captions,
        shape=(ingest.num_frames, ingest.height, ingest.width),
        max_bad_share=ingest.video_folder.max_bad_share if folder else 0.0,
    )


def embed_captions(captions: pd.DataFrame, ingest: IngestSettings) -> FolderWriter:
    """Token embeddings of the distinct captions, and of the empty one for guidance."""
    from pyoco_pipeline.data.embeddings import write_embeddings
    from pyoco_pipeline.models.text import TextEncoder, text_encoder_folder

    encoder = TextEncoder(text_encoder_folder(ingest.text_encoder), ingest.max_tokens)
    distinct = ["", *sorted(set(captions["caption"]) - {""})]
    tokens, mask = encoder.encode(distinct)
    return partial(
        write_embeddings,
        captions=distinct,
        tokens=tokens,
        mask=mask,
        encoder=ingest.text_encoder,
        encoder_sha256=encoder.sha256,
    )


def _source(ingest: IngestSettings) -> Any:
    size: dict[str, Any] = {
        "num_frames": ingest.num_frames,
        "height": ingest.height,
        "width": ingest.width,
        "fps": ingest.fps,
    }
    if ingest.source == "moving_digits":
        from pyoco_pipeline.data.digits import MovingDigitsSource

        return MovingDigitsSource(**ingest.moving_digits.model_dump(), **size)
    from kedro.utils import find_kedro_project

    from pyoco_pipeline.data.folder import VideoFolderSource

    options = ingest.video_folder.model_dump(exclude={"max_bad_share"})
    options["root"] = (find_kedro_project(Path.cwd()) or Path.cwd()) / options["root"]
    return VideoFolderSource(**options, **size)
