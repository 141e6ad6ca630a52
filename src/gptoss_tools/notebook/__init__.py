"""Training from a notebook or a script: prepare a session, train, export, try it out.

A thin layer over the modules that the command line uses: the same settings, run folders and bits.
docs/notebook.md shows it in use.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # Without ipywidgets tqdm says so when the libraries load, and none of its bars is shown.
    warnings.filterwarnings("ignore", message="IProgress not found")
    from gptoss_tools.notebook.exporting import export_checkpoint
    from gptoss_tools.notebook.helpers import (
        create_reward_functions,
        format_prompt,
        prepare_datasets,
    )
    from gptoss_tools.notebook.session import Session, TrainerState, prepare_session
    from gptoss_tools.notebook.settings import SessionSettings
    from gptoss_tools.notebook.verbs import quick_test, run_full_pipeline, train_grpo

__all__ = [
    "Session",
    "SessionSettings",
    "TrainerState",
    "create_reward_functions",
    "export_checkpoint",
    "format_prompt",
    "prepare_datasets",
    "prepare_session",
    "quick_test",
    "run_full_pipeline",
    "train_grpo",
]
