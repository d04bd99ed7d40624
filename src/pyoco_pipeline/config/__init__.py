"""The parameters of the pipelines as typed settings; one model per `conf/*/parameters_<pipeline>.yml`."""

from pyoco_pipeline.config.generate import (
    ChurnSettings,
    ExpertSettings,
    GenerateSettings,
    LaterStageSettings,
    OverlapSettings,
    SamplerSettings,
    VideoSettings,
)
from pyoco_pipeline.config.image import (
    ClipShapeSettings,
    InflateSettings,
    PretrainImageSettings,
    UNetSettings,
)
from pyoco_pipeline.config.ingest import (
    FileSourceSettings,
    FilterSettings,
    ImageSourceSettings,
    IngestSettings,
    MovingDigitsSettings,
    SceneSettings,
)
from pyoco_pipeline.config.output import (
    LICENCE,
    ExportSettings,
    ReportSettings,
)
from pyoco_pipeline.config.stage import (
    FramesConditionSettings,
    LoraSettings,
    LowResolutionConditionSettings,
    StageSettings,
)
from pyoco_pipeline.training.settings import TrainSettings

__all__ = [
    "LICENCE",
    "ChurnSettings",
    "ClipShapeSettings",
    "ExpertSettings",
    "ExportSettings",
    "FileSourceSettings",
    "FilterSettings",
    "FramesConditionSettings",
    "GenerateSettings",
    "ImageSourceSettings",
    "InflateSettings",
    "IngestSettings",
    "LaterStageSettings",
    "LoraSettings",
    "LowResolutionConditionSettings",
    "MovingDigitsSettings",
    "OverlapSettings",
    "PretrainImageSettings",
    "ReportSettings",
    "SamplerSettings",
    "SceneSettings",
    "StageSettings",
    "TrainSettings",
    "UNetSettings",
    "VideoSettings",
]
