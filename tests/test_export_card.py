"""The model card: what it says, that it is valid, and that nothing in it is taken for markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCardData
from hypothesis import given
from hypothesis import strategies as st
from tiny import ENCODER_SHA256, make_unet, stage_info

from pyoco_pipeline.config import LICENCE, SamplerSettings
from pyoco_pipeline.errors import UserError
from pyoco_pipeline.exporting import Card, Parent, Sampling, find_parent
from pyoco_pipeline.exporting.card import escape
from pyoco_pipeline.models.shipped import FOLDER as SHIPPED
from pyoco_pipeline.models.text import EMBEDDED

PARENT = Parent("the diffusers model tiny", "openrail++")
METRICS = {
    "metrics": {
        "fvd_digits3d": {
            "value": 81.234, "floor": 7.5, "num_generated": 96, "extractor": "digits3d", "extractor_sha256": "a" * 64,
        },
        "is_digits3d": {
            "value": 5.0, "real": 6.0, "num_generated": 96, "extractor": "digits3d", "extractor_sha256": "a" * 64,
        },
    }
}  # fmt: skip


def make_card(**changes: Any) -> Card:
    info = stage_info(noise={"name": "progressive", "alpha": 2.0}, steps=300, seed=4)
    sampler = SamplerSettings(
        solver="heun", steps=10, guidance_scale=2.0, guidance_interval=(0.3, float("inf"))
    )
    given: dict[str, Any] = {
        "info": info,
        "sampling": Sampling(noise=info.noise, sampler=sampler, fps=8.0, seed=5),
        "parent": PARENT,
        "text_encoder": EMBEDDED,
        "has_text_encoder": True,
        "prompts": ["a red digit"],
    }
    return Card(**(given | changes))


def header(card: Card) -> dict[str, Any]:
    return yaml.safe_load(card.markdown().split("---\n")[1])


def test_the_header_names_prior_alpha_data_and_how_it_was_trained() -> None:
    facts = header(make_card(metrics=METRICS))

    assert facts["license"] == "openrail++"
    assert facts["library_name"] == "diffusers"
    expected = {
        "prior": "progressive",
        "alpha": 2.0,
        "data_sha256": "d" * 64,
        "text_encoder_sha256": ENCODER_SHA256,
        "frames_height_width": [4, 8, 8],
        "fps": 8.0,
        "training_steps": 300,
        "seed": 4,
        "solver": "heun",
        "solver_steps": 10,
        "guidance_scale": 2.0,
        "sampled_with": {"name": "progressive", "alpha": 2.0},
    }
    assert {key: facts["pyoco"][key] for key in expected} == expected
    assert facts["pyoco"]["metrics"]["fvd_digits3d_floor"] == 7.5


def test_the_text_says_the_same_in_words() -> None:
    text = make_card(metrics=METRICS).markdown()

    for part in (
        "| noise prior | progressive, α = 2 |",
        "d" * 64,
        "4 frames of 8×8 at 8 per second",
        "300 steps, seed 4",
        "heun, 10 steps, guidance 2 at sigma 0.3 to inf, seed 5",
        "| fvd\\_digits3d | 81.23 | 7.5 | 96 | digits3d `aaaaaaaaaaaa` |",
        "| is\\_digits3d | 5 | 6 | 96 |",
        "imports the package `pyoco_pipeline`",
    ):
        assert part in text


def test_the_loading_code_is_valid_python_of_five_lines() -> None:
    code = make_card(prompts=['a "red"\n``` digit']).markdown().split("```python\n")[1].split("\n```\n")[0]

    assert len(code.splitlines()) == 5
    compile(code, "card", "exec")


def test_another_prior_in_sampling_than_in_training_is_said() -> None:
    text = make_card(sampling=Sampling(noise={"name": "iid", "alpha": None})).markdown()
    assert "| sampled with another prior | iid |" in text


def test_a_model_that_was_not_evaluated_says_so() -> None:
    card = make_card()
    assert "None: this model was not evaluated" in card.markdown()
    assert "metrics" not in header(card)["pyoco"]


def test_an_unknown_licence_is_no_invented_one() -> None:
    card = make_card(parent=Parent("the diffusers model x", "unknown"))

    assert header(card)["license"] == "other"
    assert header(card)["license_name"] == "unknown"
    assert "The licence of the weights is not stated" in card.markdown()


def test_the_shipped_parent_is_under_this_projects_licence_and_scratch_has_none() -> None:
    assert find_parent("shipped", None, SHIPPED).license == "apache-2.0"
    assert find_parent("scratch", None, SHIPPED).license == "unknown"
    assert find_parent("scratch", "mit", SHIPPED).license == "mit"


def test_a_licence_is_not_taken_from_a_parent_of_another_shape(tmp_path: Path) -> None:
    make_unet().save_pretrained(tmp_path / "stage/unet")
    with pytest.raises(UserError, match=r"pretrain_image\.init=shipped has .*was made from another one"):
        find_parent("shipped", None, tmp_path / "stage")
    with pytest.raises(UserError, match=r"init=/gone is no diffusers folder any more"):
        find_parent("/gone", None, tmp_path / "stage")


@pytest.mark.parametrize(
    ("readme", "license"),
    [
        ("---\nlicense: creativeml-openrail-m\ntags: [a]\n---\n# Model\n", "creativeml-openrail-m"),
        ("---\nlicense: other\nlicense_name: deepfloyd-if-license\n---\n", "deepfloyd-if-license"),
        ("---\ntags: [a]\n---\n", "unknown"),
        ("---\nlicense: 'a\\tb'\n---\n", "unknown"),
        ("---\n: [\n---\n", "unknown"),
        ("no header", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_parents_licence_is_what_its_own_card_says(
    tmp_path: Path, readme: str | None, license: str
) -> None:
    folder = tmp_path / "sd"
    make_unet().save_pretrained(folder / "unet")
    if readme is not None:
        (folder / "README.md").write_text(readme)

    for init in (folder, folder / "unet"):
        parent = find_parent(str(init), None, folder)
        assert (parent.license, parent.description) == (license, "the diffusers model sd")
        assert find_parent(str(init), "mit", folder).license == "mit"


def test_captions_are_text_and_never_markup() -> None:
    hostile = (
        "<img src=x onerror=alert(1)> [click](http://evil) ![i](x) | `code` **bold**\n# heading www.evil.com"
    )
    text = make_card(prompts=["plain", hostile]).markdown()

    assert "\\<img src=x onerror=alert\\(1\\)\\>" in text
    assert "\\[click\\]\\(http\\://evil\\)" in text
    assert "\n# heading" not in text
    assert "www\\.evil.com" in text


@given(st.text(max_size=40))
def test_escaped_text_is_one_line_without_live_markup(text: str) -> None:
    escaped = escape(text)

    assert len(escaped.splitlines()) <= 1
    plain = escaped
    for character in "\\`*_{}[]()<>#|~&$@:":
        plain = plain.replace(f"\\{character}", "")
        assert f"\\{character}" in escaped or character not in text
    assert not set("`*_{}[]()<>#|~&$@:") & set(plain)


@given(st.from_regex(LICENCE, fullmatch=True))
def test_whatever_the_licence_is_called_the_header_is_what_the_hub_reads(license: str) -> None:
    facts = header(make_card(parent=Parent("x", license)))

    assert ModelCardData(**facts).license == ("other" if license == "unknown" else license)
