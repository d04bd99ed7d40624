"""ablate_alpha: which prior, which α, and whether the difference is real."""

from kedro.pipeline import Node, Pipeline

from pyoco_pipeline.pipelines.ablate_alpha.nodes import analyse_study, report_study, run_cells


def create_pipeline(**_: object) -> Pipeline:
    return Pipeline(
        [
            Node(
                run_cells,
                inputs=[
                    "params:ablate_alpha",
                    "params:tracking",
                    "inflated_model",
                    "clips",
                    "latents",
                    "text_embeddings",
                    "alpha_study_work",
                    "reference_statistics",
                    "reporting_folder",
                ],
                outputs="alpha_study_cells",
                name="run_cells",
            ),
            Node(
                analyse_study,
                inputs=["params:ablate_alpha", "alpha_study_cells", "clips"],
                outputs=["alpha_study", "alpha_study_metrics", "alpha_study_curve"],
                name="analyse_study",
            ),
            Node(
                report_study,
                inputs=[
                    "params:ablate_alpha",
                    "alpha_study",
                    "alpha_study_cells",
                    "clips",
                    "alpha_study_work",
                ],
                outputs=["alpha_study_figures", "alpha_study_report"],
                name="report_study",
            ),
        ]
    )
