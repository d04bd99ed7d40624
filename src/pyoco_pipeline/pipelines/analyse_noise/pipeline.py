"""analyse_noise: which prior, and which α, the clips at hand want (PYoCo, sec. 3)."""

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.pipelines.analyse_noise.nodes import find_prior, invert_frames


def create_pipeline(**_: object) -> Pipeline:
    return Pipeline(
        [
            Node(
                invert_frames,
                inputs=["params:analyse_noise", "image_model", "clips", "latents", "text_embeddings"],
                outputs="noise_maps",
                name="invert_frames",
            ),
            Node(
                find_prior,
                inputs=["params:analyse_noise", "noise_maps"],
                outputs=["noise_analysis", "noise_figures", "noise_snippet", "noise_report"],
                name="find_prior",
            ),
        ]
    )
