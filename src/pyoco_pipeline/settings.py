"""Kedro's project settings."""

import warnings

from pyoco_pipeline.hooks import MlflowHooks
from pyoco_pipeline.inputs_hook import InputsHook
from pyoco_pipeline.locks_hook import LocksHook

# The dot in base.model is its namespace's, as Kedro itself writes it.
warnings.filterwarnings("ignore", message="One or more dataset names contain '.'", category=UserWarning)

# Kedro calls the last one first: inputs are checked, and folders locked, before a tracked run is opened.
HOOKS = (MlflowHooks(), LocksHook(), InputsHook())

# An environment that sets noise.alpha keeps noise.kind: parameters are merged key by key.
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "merge_strategy": {"parameters": "soft"},
}
