"""export: the base stage as a folder that diffusers loads and that samples what `generate` samples."""

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.pipelines.export.nodes import export_model


def create_pipeline(**_: object) -> Pipeline:
    return Pipeline(
        [
            Node(
                export_model,
                inputs=[
                    "params:export",
                    "params:generate",
                    "params:pretrain_image",
                    "base.model",
                    "clips",
                    "text_embeddings",
                    "reporting_folder",
                    "latents",
                ],
                outputs="exported_model",
                name="export_model",
            )
        ]
    )
