"""Checkpoints that appear whole and bring everything back: a mixin before transformers' Trainer.

A checkpoint is `step-000020` in `args.output_dir`, moved there once all of it is written. Beside
Trainer's own files it holds what Trainer forgets between two log lines and whatever `extra_state`
adds, so that a run that goes on logs and ends with the same bits. Which ones stay: `checkpoints`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from transformers import TrainerCallback

from gptoss_tools.core.publish import publish
from gptoss_tools.errors import RunFolderError
from gptoss_tools.models.adapters import restore_mixlora, save_trained
from gptoss_tools.models.loading import quiet
from gptoss_tools.models.mixlora import is_mixlora

STATE_NAME = "rollout_state_{rank}.pt"


class SteadySaves:
    """Put it before a Trainer: `class X(SteadySaves, Trainer)`.

    `allow_changes` lets a resume go on without the state that would make it exact.
    """

    # What is used of Trainer, which declares these as unions of everything it can be given.
    args: Any
    model: Any
    state: Any
    accelerator: Any
    processing_class: Any
    allow_changes: bool = False
    _restored: dict[str, Any] | None = None

    def extra_state(self) -> dict[str, Any]:
        """Plain tensors and numbers to keep in checkpoints; override with `load_extra_state`."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` gave, its tensors on this process's device."""

    def layout(self) -> list[int]:
        """The batch layout: a checkpoint of another one cannot be gone on with exactly."""
        args = self.args
        sizes = (args.per_device_train_batch_size, args.gradient_accumulation_steps)
        return [args.world_size, *sizes]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Replaces TRL's README at every save: the run folder describes itself."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Replaces Trainer's: an adapter alone where there is one, a loadable layout otherwise."""
        folder = Path(output_dir or self.args.output_dir)
        with quiet():
            save_trained(self.model, folder, state_dict)
        self.processing_class.save_pretrained(str(folder))
        torch.save(self.args, folder / "training_args.bin")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Extends Trainer's, which knows PEFT's adapters and whole models, by MixLoRA."""
        if is_mixlora(resume_from_checkpoint):
            restore_mixlora(self.accelerator.unwrap_model(self.model), resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Extends Trainer's: add the state, and let the folder appear whole, as step-NNNNNN."""
        name = f"step-{self.state.global_step:06d}"
        home = Path(self.args.output_dir)
        staging = home / f".tmp-save-{name}"  # one name on all processes
        if self.accelerator.is_main_process:
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.args.output_dir = str(staging)
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self.args.output_dir = str(home)
        folder = staging / f"checkpoint-{self.state.global_step}"
        torch.save(self._all_state(), folder / STATE_NAME.format(rank=self.args.process_index))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            publish(folder, home / name, step=self.state.global_step)
            shutil.rmtree(staging, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Extends Trainer's: restore what it does not save."""
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE_NAME.format(rank=self.args.process_index)
        state: Any = None
        if path.is_file():
            # Not map_location: a rank's device may be "cpu:0", which torch.load does not know.
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            if loaded["layout"] == self.layout():
                state = send_to_device(loaded, self.args.device)
        if state is not None:
            self.load_extra_state(state)
            self._restored = state["loss"]
            # Trainer resets its running loss after this, and offers no later place to put it back.
            self.add_callback(_PutBack(self))  # type: ignore[attr-defined]
        elif not self.allow_changes:
            raise RunFolderError(
                f"{checkpoint} was not written by a run of this batch layout",
                hint="use the same processes and batch settings, or --allow-changes",
            )

    def _all_state(self) -> dict[str, Any]:
        names = ("_tr_loss", "_total_loss_scalar", "_globalstep_last_logged")
        loss = {name: getattr(self, name) for name in names}
        return {**self.extra_state(), "layout": self.layout(), "loss": loss}


class _PutBack(TrainerCallback):
    """Put back the running loss between two log lines, which Trainer has just reset."""

    def __init__(self, trainer: SteadySaves):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Once."""
        for name, value in (self.trainer._restored or {}).items():
            setattr(self.trainer, name, value)
        self.trainer._restored = None
