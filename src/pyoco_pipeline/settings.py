"""Kedro's project settings."""

from pyoco_pipeline.hooks import MlflowHooks
from pyoco_pipeline.inputs_hook import InputsHook

# Kedro calls the last one first: inputs are checked before a tracked run is opened.
HOOKS = (MlflowHooks(), InputsHook())

# An environment that sets noise.alpha keeps noise.kind: parameters are merged key by key.
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft"},
}
