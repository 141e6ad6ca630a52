"""What a MixLoRA consists of: its settings, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass

from gptoss_tools.errors import ConfigError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN = ("gate_proj", "up_proj", "down_proj")
FORMS = ("shared", "parallel")


@dataclass(frozen=True)
class MixLoraConfig:
    """Settings of a mixture of LoRA experts (MixLoRA, arXiv 2404.15159); names as published.

    Every token goes to `top_k` of `num_experts` LoRA experts of the FFN, each of rank `r` and
    scaled by lora_alpha / r; attention gets plain LoRA. `form`: `shared` puts the experts on the
    FFN's own projections (the paper's form), `parallel` puts them beside the FFN and touches none
    of its tensors. With `top_k` 1 a token's only weight is always 1, so the router learns from the
    balance loss alone.

    `dual_path` (S2MoE, arXiv 2503.23007) mixes in, in training only, what the FFN makes of a noised
    input; `alpha_scale` and `beta_scale` start the two learned noise scales, `alpha_bal` and
    `beta_unc` weigh its two losses. Raises ConfigError for what cannot work.
    """

    num_experts: int = 4
    top_k: int = 2
    r: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.05
    target_modules: tuple[str, ...] = (*ATTENTION, *FFN)
    router_aux_loss_coef: float = 0.001
    router_init_range: float = 0.02
    jitter_noise: float = 0.0
    form: str = "shared"
    dual_path: bool = False
    alpha_scale: float = 1.0
    beta_scale: float = 1.0
    alpha_bal: float = 0.01
    beta_unc: float = 0.1
    base_model_name_or_path: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, str):
            raise ConfigError("target_modules is one name", hint="give a list of names")
        object.__setattr__(self, "target_modules", tuple(dict.fromkeys(self.target_modules)))
        for name in ("num_experts", "top_k", "r"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}, not a whole number from 1")
        if self.top_k > self.num_experts:
            raise ConfigError(
                f"top_k {self.top_k} is more than num_experts {self.num_experts}",
                hint="a token can go to each expert once: lower top_k or raise num_experts",
            )
        for name in ("lora_alpha", "router_init_range"):
            # A router of zeros would send every token to the same experts.
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, not above 0")
        for name in ("lora_dropout", "jitter_noise"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, not from 0 to below 1")
        for name in (
            "router_aux_loss_coef",
            "alpha_scale",
            "beta_scale",
            "alpha_bal",
            "beta_unc",
        ):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, not 0 or more")
        if self.form not in FORMS:
            raise ConfigError(f"form {self.form!r} is unknown", hint="use " + " or ".join(FORMS))
        known = (*ATTENTION, *FFN)
        if unknown := [name for name in self.target_modules if name not in known]:
            raise ConfigError(
                f"target_modules holds {unknown[0]!r}, which MixLoRA does not serve",
                hint="use some of " + ", ".join(known),
            )
        if not self.ffn_targets:
            raise ConfigError(
                "target_modules names no part of the FFN, so there is nothing to mix",
                hint=f"add some of {', '.join(FFN)}, or use plain LoRA",
            )

    @property
    def attention_targets(self) -> tuple[str, ...]:
        """The attention projections that get plain LoRA."""
        return tuple(name for name in ATTENTION if name in self.target_modules)

    @property
    def ffn_targets(self) -> tuple[str, ...]:
        """The FFN projections that get LoRA experts; in form `parallel` any of them means all."""
        return tuple(name for name in FFN if name in self.target_modules)
