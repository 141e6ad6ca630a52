"""pretrain: a new small language model, or any causal one to go on with, on plain text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from gptoss_tools.errors import ConfigError
from gptoss_tools.settings.groups import (
    AtLeastZero,
    ExpertsSettings,
    Paths,
    Positive,
    Settings,
    TableSettings,
)
from gptoss_tools.settings.remote import RemoteSettings
from gptoss_tools.settings.training import (
    AdapterSettings,
    LoggingSettings,
    OptimizerSettings,
    RunSettings,
)

GPT2 = "openai-community/"  # who keeps what everybody calls gpt2


class NewModelSettings(Settings):
    """The sizes of a new model, under the names of transformers' configs."""

    model_type: Literal["bigram", "gpt2", "gpt-oss"] = Field(
        "bigram",
        description="Kind of new model: bigram is the small decoder of Karpathy's lecture "
        "(docs/pretrain.md), gpt-oss has experts.",
    )
    hidden_size: Positive = Field(256, description="Width of a new model.")
    num_hidden_layers: Positive = Field(4, description="Layers of a new model.")
    num_attention_heads: Positive = Field(4, description="Attention heads of a new model.")
    num_key_value_heads: Positive | None = Field(
        None, description="Heads that keys and values have, gpt-oss only (default: half of them)."
    )
    intermediate_size: Positive | None = Field(
        None,
        description="Width inside the feed-forward parts (default: 4 hidden_size; gpt-oss, for "
        "each expert: hidden_size).",
    )
    num_local_experts: Positive = Field(4, description="Experts of a new gpt-oss.")
    num_experts_per_tok: Positive = Field(
        2, description="Experts of a gpt-oss that each token has."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="Dropout of a new model (gpt-oss: of its attention)."
    )
    block_size: Positive = Field(128, description="Tokens of a window: the longest context.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> NewModelSettings:
        heads, keys = self.num_attention_heads, self.num_key_value_heads
        if self.hidden_size % heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} does not divide into {heads} heads",
                "make hidden_size a multiple of num_attention_heads",
            )
        if keys and heads % keys:
            raise ConfigError(
                f"{heads} attention heads do not divide over {keys} key-value heads",
                "make num_attention_heads a multiple of num_key_value_heads",
            )
        if self.model_type == "gpt-oss" and self.hidden_size // heads % 2:
            raise ConfigError(
                "hidden_size / num_attention_heads must be even for a gpt-oss",
                f"--hidden-size {2 * heads * (self.hidden_size // heads // 2 + 1)}, say",
            )
        if self.num_experts_per_tok > self.num_local_experts:
            raise ConfigError(
                "num_experts_per_tok is more than num_local_experts",
                f"--num-experts-per-tok {self.num_local_experts} or less",
            )
        return self


class SampleSettings(Settings):
    """What the trained model writes at the end."""

    sample_prompt: str | None = Field(
        None,
        description="Text that the sample at the end goes on from (default: 'QUESTION: ' for a "
        "GPT-2 given by --from, else nothing: the model begins a text).",
    )
    max_new_tokens: Positive = Field(300, description="Longest completion, in tokens.")
    temperature: Annotated[float, Field(gt=0)] = Field(0.7, description="Sampling temperature.")
    top_k: Annotated[int, Field(ge=0)] = Field(50, description="Keep this many tokens (0: all).")
    enable_output_to_file: bool = Field(
        True, description="Write output.txt: the settings and the sample, once."
    )


class PretrainSettings(
    RemoteSettings,
    RunSettings,
    SampleSettings,
    LoggingSettings,
    OptimizerSettings,
    AdapterSettings,
    NewModelSettings,
    ExpertsSettings,
    TableSettings,
):
    """pretrain."""

    data: Paths = Field(
        [], description="Texts: files, folders (their *.txt and *.md) or globs; or tables."
    )
    text_column: str | None = Field(
        None, description="The data are tables (CSV, JSONL, Parquet) with their texts here."
    )
    from_: str | None = Field(
        None,
        description="Model to go on with, folder or Hub id, `tiny`, or gpt2, gpt2-medium, ... "
        "(default: a new one, of the sizes below).",
    )
    tokenizer: str = Field(
        "auto",
        description="auto, character, bpe, model, or a model whose tokenizer to take (auto: the "
        "model's own with --from, else character).",
    )
    vocab_size: Positive | None = Field(
        None, description="Tokens of a new bpe tokenizer (default: by the length of the text)."
    )
    validation_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="Share of the tokens, the last ones, that are measured and not learned."
    )
    windows_per_step: Positive | None = Field(
        None,
        description="Windows per micro-step, over all processes (default: 64; with --from 16).",
    )
    gradient_accumulation_steps: Positive = Field(1, description="Micro-steps per optimizer step.")
    eval_steps: Positive = Field(500, description="Optimizer steps between evaluations.")
    eval_batches: Positive | None = Field(
        None,
        description="Batches of each part that an evaluation measures (default: 50; with --from "
        "20).",
    )
    resume_steps: Positive | None = Field(
        None, description="Train this many steps more than the checkpoint has (not max_steps)."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="Arithmetic (auto: bfloat16 on a GPU, float32 on a CPU). Weights that learn "
        "are float32.",
    )
    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N."
    )

    # What these groups say for the other trainings is not what small models want.
    adapter: Literal["none", "lora", "mixlora"] = Field(
        "none", description="What learns: the whole model, LoRA, or a mixture of LoRA experts."
    )
    lora_r: Positive = Field(16, description="Rank of the LoRA matrices.")
    lora_alpha: Positive = Field(
        32, description="LoRA scale: the update is multiplied by alpha / r."
    )
    router_aux_loss_coef: AtLeastZero = Field(
        0.001, description="Weight of the load-balance loss of MixLoRA and of a new gpt-oss."
    )
    max_steps: Positive = Field(5000, description="Optimizer steps.")
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Peak learning rate (default: 3e-4; with --from 2e-5)."
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "constant_with_warmup", description="Shape of the learning rate over the steps."
    )
    warmup_steps: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Steps of rising rate (default: 0; with --from 2 % of max_steps, at least 50).",
    )
    weight_decay: AtLeastZero = Field(0.01, description="AdamW weight decay.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, more time."
    )
    save_steps: Positive = Field(500, description="Optimizer steps between checkpoints.")
    logging_steps: Positive = Field(10, description="Optimizer steps between metric records.")

    @field_validator("from_", "tokenizer")
    @classmethod
    def _known_as_gpt2(cls, name: str | None) -> str | None:
        known = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
        return GPT2 + name if name in known else name

    @field_validator("from_")
    @classmethod
    def _none_if_empty(cls, name: str | None) -> str | None:
        return name or None

    @model_validator(mode="after")
    def _goes_together(self) -> PretrainSettings:
        if self.from_ is None and self.tokenizer == "model":
            raise ConfigError("tokenizer `model` needs a model", "--from names one")
        if self.from_ is not None and self.tokenizer not in ("auto", "model"):
            raise ConfigError(
                "a model that goes on learning keeps its tokenizer", "leave out `tokenizer`"
            )
        if self.from_ is None and self.adapter == "mixlora":
            raise ConfigError("a MixLoRA needs a model that has learned", "--from names one")
        if self.vocab_size is not None and self.tokenizer != "bpe":
            raise ConfigError("vocab_size is for a new bpe tokenizer", "--tokenizer bpe")
        return self

    def resolved(self) -> PretrainSettings:
        """Return these settings with every default that depends on others filled in."""
        new = self.from_ is None
        defaults = {
            "tokenizer": "character" if new else "model",
            "windows_per_step": 64 if new else 16,
            "eval_batches": 50 if new else 20,
            "learning_rate": 3e-4 if new else 2e-5,
            "warmup_steps": 0 if new else max(50, self.max_steps // 50),
        }
        chosen = {n: v for n, v in defaults.items() if getattr(self, n) in (None, "auto")}
        return self.model_copy(update=chosen)
