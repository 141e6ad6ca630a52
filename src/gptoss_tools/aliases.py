"""Variables of the scripts that these commands replace, and what they mean here.

Each row turns a variable's text into texts of settings, `{}` where it changes nothing. GPTOSS_*
variables and flags win over all of them. Only `load` reads the environment; this is its table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from .errors import ConfigError

Environ = Mapping[str, str]
Meaning = Callable[[str, Environ], dict[str, str]]


def names(field: str) -> Meaning:
    """The variable is this setting under another name."""
    return lambda text, environ: {field: text}


def is_true(text: str) -> bool:
    """Whether a switch is on; the scripts compare with the word True."""
    return text.strip().lower() in ("true", "1", "yes", "on")


def _model_type(text: str, environ: Environ) -> dict[str, str]:
    if text == "from_scratch":
        return {"model_type": "bigram"}
    if text == "gpt2":
        return {"from_": environ.get("GPT2_MODEL_NAME") or "gpt2"}
    raise ConfigError(f"MODEL_TYPE is {text!r}", "from_scratch or gpt2; or use --model-type")


def _tokenization(text: str, environ: Environ) -> dict[str, str]:
    known = {"character": "character", "gpt2": "gpt2", "custom_bpe": "bpe"}
    if text not in known:
        raise ConfigError(f"TOKENIZATION_METHOD is {text!r}", f"one of {', '.join(known)}")
    # A model that goes on has a tokenizer of its own.
    return {} if environ.get("MODEL_TYPE") == "gpt2" else {"tokenizer": known[text]}


def _vocabulary(text: str, environ: Environ) -> dict[str, str]:
    learned = environ.get("TOKENIZATION_METHOD") == "custom_bpe"
    return {"vocab_size": text} if learned and environ.get("MODEL_TYPE") != "gpt2" else {}


def _training_steps(text: str, environ: Environ) -> dict[str, str]:
    resumed = environ.get("CHECKPOINT_PATH") and environ.get("RESUME_STEPS")
    return {} if resumed else {"max_steps": text}


def _test_mode(text: str, environ: Environ) -> dict[str, str]:
    if not is_true(text) or environ.get("CHECKPOINT_PATH"):
        return {}
    return {
        "hidden_size": "128",
        "num_hidden_layers": "3",
        "num_attention_heads": "4",
        "dropout": "0.2",
        "block_size": "64",
        "windows_per_step": "32",
        "max_steps": "1000",
        "eval_steps": "100",
        "eval_batches": "50",
        "learning_rate": "3e-4",
    }


# Later rows win over earlier ones.
PRETRAIN: dict[str, Meaning] = {
    "MODEL_TYPE": _model_type,
    "USE_LORA": lambda text, environ: {"adapter": "lora" if is_true(text) else "none"},
    "LORA_RANK": names("lora_r"),
    "LORA_ALPHA": lambda text, environ: {"lora_alpha": text.removesuffix(".0")},
    "LORA_DROPOUT": names("lora_dropout"),
    "TRAINING_DATA_SOURCE": lambda text, environ: {"data": json.dumps([text])},
    "TOKENIZATION_METHOD": _tokenization,
    "CUSTOM_VOCAB_SIZE": _vocabulary,
    "TRAINING_STEPS": _training_steps,
    "BATCH_SIZE": names("windows_per_step"),
    "BLOCK_SIZE": names("block_size"),
    "LEARNING_RATE": names("learning_rate"),
    "USE_LR_WARMUP": lambda text, environ: {} if is_true(text) else {"warmup_steps": "0"},
    "CHECKPOINT_INTERVAL": names("save_steps"),
    "ENABLE_OUTPUT_TO_FILE": names("enable_output_to_file"),
    "CHECKPOINT_PATH": names("resume"),
    "RESUME_STEPS": lambda text, environ: (
        {"resume_steps": text} if environ.get("CHECKPOINT_PATH") else {}
    ),
    "DEVICE": names("device"),
    "TEST_MODE": _test_mode,
}
ALIASES: dict[str, dict[str, Meaning]] = {"pretrain": PRETRAIN}

_PLACE = "checkpoints, logs and output are in the run folder: --output-dir"
WITHOUT_MEANING: dict[str, dict[str, str]] = {
    "pretrain": {
        "ENABLE_CHECKPOINTS": "every run keeps checkpoints: --save-steps says how many",
        "CHECKPOINT_DIR": _PLACE,
        "LOG_DIR": _PLACE,
        "OUTPUT_DIR": _PLACE,
    }
}
"""Variables that change nothing here, and why; the user is told."""


def aliased(command: str, environ: Environ) -> dict[str, tuple[str, str]]:
    """Return {setting: (text, variable)} for the variables that are set and mean something."""
    found: dict[str, tuple[str, str]] = {}
    for variable, meaning in ALIASES.get(command, {}).items():
        if text := environ.get(variable):
            found |= {name: (value, variable) for name, value in meaning(text, environ).items()}
    return found


def unheeded(command: str, environ: Environ) -> list[str]:
    """Return a sentence for each variable that is set and has no meaning here."""
    known = WITHOUT_MEANING.get(command, {})
    return [
        f"{name} has no meaning here: {why}" for name, why in known.items() if environ.get(name)
    ]
