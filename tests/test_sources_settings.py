"""Each source is opened by its settings, and these are read without a decoder."""

from __future__ import annotations

import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from pyoco_pipeline.data.sources import SOURCES, open_source
from pyoco_pipeline.data.sources.settings import SETTINGS

NEEDED = {
    "video_folder": {"captions_file": "captions.csv"},
    "hf_dataset": {"media_column": "video", "caption_column": "caption"},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_settings_of_a_source_are_its_options(kind, tmp_path):
    settings = SETTINGS[kind](root=str(tmp_path), **NEEDED.get(kind, {}))
    source = open_source(kind, **settings.model_dump())
    assert source.kind == kind
    assert source.media in ("video", "image")
    assert vars(pickle.loads(pickle.dumps(source))).keys() == vars(source).keys()  # noqa: S301
    for name, option in inspect.signature(type(source)).parameters.items():
        field = SETTINGS[kind].model_fields[name]
        assert field.is_required() == (option.default is option.empty)
        assert field.is_required() or field.default == option.default


def test_every_source_has_settings_and_a_misspelt_key_is_refused():
    assert list(SETTINGS) == list(SOURCES)
    with pytest.raises(ValidationError, match="splits"):
        SETTINGS["ucf101"](root="data/01_raw/ucf", splits=1)
    with pytest.raises(ValidationError, match="split"):
        SETTINGS["ucf101"](root="data/01_raw/ucf", split=4)


def test_settings_are_read_without_torch_or_a_decoder():
    code = (
        "import sys, pyoco_pipeline.data.sources.settings\n"
        "print([name for name in ('torch', 'av', 'pandas', 'fsspec', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_settings_that_the_documentation_shows_are_valid():
    text = (Path(__file__).parents[1] / "docs" / "data_sources.md").read_text(encoding="utf-8")
    shown = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    assert [kind for block in shown for kind in block] == list(SOURCES)
    for block in shown:
        for kind, options in block.items():
            open_source(kind, **SETTINGS[kind](**options).model_dump())
