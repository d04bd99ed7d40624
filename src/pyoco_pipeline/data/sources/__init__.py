"""Sources of captioned videos and images; each is a small picklable object that holds settings only.

A source has `kind` and `media` ("video" or "image"), and two methods. `captions()` gives a table with a row for
every caption: `row_id`, `path`, `caption` (str or None), `start` and `end` (seconds or NaN), `split` ("train" or
"test"), `path_problem` ("" or what is wrong with the path), and columns of its own. `local_file(path)` is a context
manager that gives the file of a row, for as long as it is open.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # settings are read when pipelines are listed, which must not cost the import of a decoder
    from pyoco_pipeline.data.sources.base import FileSource

SOURCES = {
    "video_folder": "VideoFolderSource",
    "ucf101": "UCF101Source",
    "msrvtt": "MSRVTTSource",
    "webvid": "WebVidSource",
    "webdataset": "WebDatasetSource",
    "hf_dataset": "HFDatasetSource",
    "laion": "LaionSource",
}


def open_source(kind: str, **options: Any) -> FileSource:
    """The source of this kind with these options, the fields of its class in `sources.settings`.

    Raises UserError for options that mean nothing; nothing is read yet.
    """
    module = import_module(f"pyoco_pipeline.data.sources.{kind}")
    source: FileSource = getattr(module, SOURCES[kind])(**options)
    return source
