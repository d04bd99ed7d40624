"""report: one self-contained HTML page on the run."""

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.pipelines.report.nodes import write_report


def create_pipeline(**_: object) -> Pipeline:
    return Pipeline(
        [
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
            )
        ]
    )
