"""Text that a causal model writes by itself, longer than its window where asked."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from gptoss_tools.models.loading import quiet
from gptoss_tools.models.text_tokenizers import prompt_ids


def write_sample(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str = "",
    *,
    max_new_tokens: int = 300,
    temperature: float = 0.7,
    top_k: int = 50,
    window: int = 1024,
    seed: int = 42,
) -> str:
    """Return the prompt and what the model goes on with, drawn at random; `top_k` 0: all tokens.

    The model never sees more than `window` tokens: when they are full, their newer half stays. Ends
    early where the model ends its text. Torch's random state is left as it was.
    """
    ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=model.device)
    ends, left = tokenizer.eos_token_id, max_new_tokens
    training = model.training
    model.eval()
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), quiet():
        torch.manual_seed(seed)
        while left > 0:
            shown = ids if ids.shape[1] <= window else ids[:, -max(1, window // 2) :]
            asked = min(left, window + 1 - shown.shape[1])
            written = model.generate(
                shown,
                attention_mask=torch.ones_like(shown),
                max_new_tokens=asked,
                do_sample=True,
                temperature=temperature,
                top_k=top_k,
                top_p=1.0,
                eos_token_id=ends,
                pad_token_id=ends if ends is not None else 0,
            )[:, shown.shape[1] :]
            ids = torch.cat([ids, written], dim=1)
            left -= asked
            if written.shape[1] < asked or (ends is not None and int(ids[0, -1]) == ends):
                break
    model.train(training)
    text: Any = tokenizer.decode(ids[0].tolist(), skip_special_tokens=True)
    return text
