"""The settings of a session: train-grpo's own, and the few things that only a notebook has.

An unknown name is refused with the one that was probably meant, as on the command line.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, SecretStr, ValidationError, model_validator

from gptoss_tools.errors import ConfigError
from gptoss_tools.load import near_miss
from gptoss_tools.settings import TrainSettings, hint_of

ELSEWHERE = {
    "answer_end": "answer_tags",
    "answer_start": "answer_tags",
    "batch_size": "prompts_per_step",
    "checkpoint_dir": "output_dir",
    "experiment_name": "output_dir or run_name",
    "lora_rank": "lora_r",
    "max_tokens": "max_completion_length",
    "num_batches": "max_steps",
    "num_steps": "max_steps",
    "openrubrics_max": "data: prepare the rows wanted once, then name the table",
    "reasoning_end": "reasoning_tags",
    "reasoning_start": "reasoning_tags",
    "save_to_drive": "mount_drive and zip_export",
    "system_prompt": "data: prompts held as messages have their own system message",
    "total_generation_steps": "max_completion_length",
    "train_fraction": "data and eval_data: two tables, split once",
    "use_openrubrics": "data: prepare the rows wanted once, then name the table",
}
"""What other programs call things, the original of this interface first, and what to give here."""


class SessionSettings(TrainSettings):
    """train-grpo from a notebook."""

    mount_drive: bool = Field(
        False, description="Keep runs and exports on Google Drive, where there is one (Colab)."
    )
    zip_export: bool = Field(False, description="Also pack the exported adapter into one file.")
    export_dir: str | None = Field(
        None, description="Folder of the exported adapter (default: exports/RUN-adapter)."
    )
    test_question: str | None = Field(
        None, description="Prompt that tries the model out (default: the first held-out one)."
    )
    quiet: bool = Field(False, description="Show nothing.")
    hf_token: SecretStr | None = Field(
        None, exclude=True, description="Token of the Hugging Face Hub; kept out of everything."
    )
    wandb_api_key: SecretStr | None = Field(
        None, exclude=True, description="Key of Weights & Biases; kept out of everything."
    )
    openai_api_key: SecretStr | None = Field(
        None, exclude=True, description="Key of the judge; kept out of everything."
    )

    @model_validator(mode="after")
    def _here_and_now(self) -> SessionSettings:
        if self.modal or self.dry_run:
            name = "modal" if self.modal else "dry_run"
            raise ConfigError(
                f"`{name}` has no meaning in a session",
                f"gptoss train-grpo takes --{name.replace('_', '-')}",
            )
        return self

    def __init__(self, **values: Any) -> None:
        """Raise ConfigError, in one sentence, for an unknown name or a wrong value."""
        for name in values:
            if name not in type(self).model_fields:
                raise ConfigError(f"`{name}` is not a setting", _meant(name))
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = f"`{first['loc'][0]}`: " if first["loc"] else ""
            said = first["msg"].removeprefix("Value error, ")
            raise ConfigError(where + said, hint_of(error)) from None

    @classmethod
    def of(cls, config: TrainSettings) -> SessionSettings:
        """Return `config`, or the session's settings that say the same."""
        if isinstance(config, cls):
            return config
        return cls(**{name: getattr(config, name) for name in config.model_fields_set})

    def training(self, **changes: Any) -> TrainSettings:
        """Return what the run is made of: no secret and nothing of the notebook is among it."""
        own = {name: getattr(self, name) for name in TrainSettings.model_fields}
        return TrainSettings.model_validate({**own, **changes})

    def origins(self) -> dict[str, str]:
        """Say of each setting of the run whether it was given."""
        given = self.model_fields_set
        return {n: "session" if n in given else "default" for n in TrainSettings.model_fields}


def _meant(name: str) -> str:
    if name in ELSEWHERE:
        return f"did you mean {ELSEWHERE[name]}?"
    close = near_miss(name, sorted(SessionSettings.model_fields))
    return f"did you mean {close}?" if close else "`gptoss train-grpo -h` lists the settings"
