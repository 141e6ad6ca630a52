"""What goes to vLLM before it draws: the weights an adapter changes, and no others.

TRL 1.16's GRPOTrainer merges the adapter and sends the whole model, 42 GB of a 20b, after every
step. vLLM has loaded the same base itself, its experts still in MXFP4, so only the merged weights
of adapted modules differ: 1.3 GB with LoRA on q, k, v and o. Leaves out how they are sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer


def adapted_weights(model: PeftModel) -> set[str]:
    """Names of the base's weights that the adapter changes, as transformers spells them."""
    base = model.get_base_model()
    return {
        f"{name}.weight"
        for name, module in base.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


def send_adapted_only(generation: Any, model: PeftModel) -> None:
    """Let TRL's `VLLMGeneration` push only what the adapter changes.

    Not with its sleep mode, which throws the weights of vLLM away between steps.
    """
    if generation.enable_sleep_mode:
        return
    every, wanted = generation._iter_named_params, adapted_weights(model)

    def adapted() -> Iterator[tuple[str, Any]]:
        # To the end, since TRL takes the adapter out again behind the last one.
        return (pair for pair in every() if pair[0] in wanted)

    generation._iter_named_params = adapted
