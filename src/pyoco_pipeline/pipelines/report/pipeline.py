"""report: one self-contained HTML page on the run."""

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.pipelines.report.nodes import draw_loss_curves, write_report


def create_pipeline(**_: object) -> Pipeline:
    return Pipeline(
        [
            Node(
                draw_loss_curves,
                inputs=["image_history", "base.history"],
                outputs="loss_curves",
                name="draw_loss_curves",
            ),
            Node(
                write_report,
                inputs=[
                    "params:report",
                    "generated_clips",
                    "videos",
                    "clips",
                    "captions",
                    "base.model",
                    "metrics",
                    "image_history",
                    "base.history",
                    "parameters",
                    "reporting_folder",
                ],
                outputs="report",
                name="write_report",
            ),
        ]
    )
