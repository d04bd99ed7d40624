"""report: one self-contained HTML page on the run."""

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.cascade.stages import STAGES
from pyoco_pipeline.pipelines.report.nodes import draw_loss_curves, write_report

_SHOWN = (
    "generated_clips",
    "videos",
    "stage_videos",
    "cascade",
    "clips",
    "captions",
    "metrics",
    "parameters",
)


def create_pipeline(**_: object) -> Pipeline:
    histories = {"image": "image_history", **{name: f"{name}.history" for name in STAGES}}
    return Pipeline(
        [
            Node(draw_loss_curves, inputs=histories, outputs="loss_curves", name="draw_loss_curves"),
            Node(
                write_report,
                inputs={
                    "report": "params:report",
                    **{name: name for name in _SHOWN},
                    "model": "base.model",
                    "work": "reporting_folder",
                    **histories,
                },
                outputs="report",
                name="write_report",
            ),
        ]
    )
