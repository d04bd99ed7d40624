"""generate: captioned clips from the base stage, lossless for metrics and encoded for people."""

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.pipelines.generate.nodes import sample_clips, write_videos


def create_pipeline(**_: object) -> Pipeline:
    return Pipeline(
        [
            Node(
                sample_clips,
                inputs=["params:generate", "base.model", "clips", "text_embeddings", "latents"],
                outputs="generated_clips",
                name="sample_clips",
            ),
            Node(
                write_videos,
                inputs=["generated_clips", "params:generate"],
                outputs=["videos", "contact_sheet"],
                name="write_videos",
            ),
        ]
    )
