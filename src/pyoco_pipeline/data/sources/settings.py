"""Settings of each source, as they are written below `ingest.<kind>`; the fields are the options of `open_source`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pyoco_pipeline.training.settings import Seed, Settings, Share

Names = Annotated[tuple[str, ...], Field(min_length=1)]
Media = Literal["video", "image"]
Validate = Literal["train", "test", "drop"]


class SourceSettings(Settings):
    """Where a source lies."""

    root: str  # a folder, relative to the project, or s3://bucket/folder, gs://...; nothing outside is read
    max_copy_mb: float = Field(4096, gt=0)  # 10^6 bytes; largest file copied out of a store, a tar or a table


class VideoFolderSettings(SourceSettings):
    """A folder of videos or images with a captions table."""

    captions_file: (
        str  # .csv, .jsonl or .parquet inside root; columns path, caption, and if wanted start, end, split
    )
    test_share: Share = 0.1  # of the files, where the table has no split column
    media: Media = "video"


class UCF101Settings(SourceSettings):
    """UCF-101 as downloaded."""

    split: Literal[1, 2, 3] = 1  # which of the official train/test splits
    videos: str = "UCF-101"  # folder of the classes, below root
    lists: str = "ucfTrainTestlist"  # folder of classInd.txt, trainlist0N.txt, testlist0N.txt
    prompts_file: str | None = None  # table with the columns class, caption; None: the class's name in words


class MSRVTTSettings(SourceSettings):
    """MSR-VTT as downloaded."""

    annotations: Names = ("train_val_videodatainfo.json", "test_videodatainfo.json")
    videos: Names = ("TrainValVideo", "TestVideo")  # folders, below root, searched for <video_id>.mp4
    sentences: Literal["all", "first", "random"] = "all"  # of the 20 captions of a clip
    validate_split: Validate = "train"  # what becomes of the 497 clips of the official validation split
    # Ids of the test clips (.txt, a line each; or .csv with video_id and, if wanted, sentence): 1k-A and the like.
    test_list: str | None = None
    originals: bool = False  # the files are whole videos, to be cut at the annotations' times
    seed: Seed = 0  # of sentences: random


class WebVidSettings(SourceSettings):
    """A CSV of videos in WebVid's columns, with the files beside it."""

    train: Names = ("results_2M_train.csv",)  # tables
    test: tuple[str, ...] = ()  # such as results_2M_val.csv; (): test_share of the training tables
    videos: str = "videos"  # folder, below root, of <page_dir>/<videoid>.mp4
    extension: str = "mp4"
    test_share: Share = 0.1  # of the files, without test tables


class WebDatasetSettings(SourceSettings):
    """Tars of captioned files."""

    shards: Names = ("*.tar",)  # patterns below root: *, ?, ** and {0000..0012} or {a,b}
    test_shards: tuple[str, ...] = ()  # patterns of the test split; (): test_share of the samples
    media: Media = "video"
    caption_field: str | None = (
        None  # key of <key>.json that holds the caption; None: <key>.txt is the caption
    )
    test_share: Share = 0.1  # of the samples, without test_shards


class HFDatasetSettings(SourceSettings):
    """A `datasets` folder on disk: of save_to_disk, or of Parquet files."""

    media: Media = "video"
    media_column: str  # a Video or Image feature, bytes, or paths below root
    caption_column: str  # text, or lists of texts
    validate_split: Validate = "train"  # what becomes of a validation split
    test_share: Share = 0.1  # of the rows, where the data have no named splits


class LaionSettings(SourceSettings):
    """What img2dataset or video2dataset wrote: Parquet tables with files or bytes."""

    tables: Names = ("*.parquet",)  # patterns below root
    media: Media = "image"
    caption_column: str | None = None  # None: the first of caption, TEXT, text, txt
    bytes_column: str | None = None  # None: jpg, png, webp, mp4 or image, where the tables have one of them
    path_column: str | None = None  # None: files are <table without .parquet>/<key>.<extension>
    extension: str = "jpg"  # of files by key
    test_share: Share = 0.1  # of the files


SETTINGS: dict[str, type[SourceSettings]] = {
    "video_folder": VideoFolderSettings,
    "ucf101": UCF101Settings,
    "msrvtt": MSRVTTSettings,
    "webvid": WebVidSettings,
    "webdataset": WebDatasetSettings,
    "hf_dataset": HFDatasetSettings,
    "laion": LaionSettings,
}
