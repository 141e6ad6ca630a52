"""The model card of an export: where it comes from, how it was trained, what rounding left, how
well it decides.

Written from export.json and, where the run was evaluated, from RUN/evaluation/evaluation.json. No
file name or folder of this machine goes into it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_LIBRARY = {"adapter": "peft", "gguf": "gguf"}
_WHAT = {
    "mxfp4": "merged into {base}. The experts are the base's own MXFP4 bytes; only the weights "
    "that the adapter changes differ.",
    "bf16": "merged into {base}, with the experts dequantised to bfloat16.",
    "merged": "merged into {base}. Weights that the adapter leaves alone are the base's bytes.",
    "gguf": "merged into {base}, as one GGUF file for llama.cpp and Ollama. The experts keep the "
    "base's own MXFP4 values.",
    "adapter": "to be used with {base}: with PEFT and vLLM as it is, with llama.cpp as a GGUF.",
}
_REQUANTISED = "merged into {base}, experts included: these were merged and rounded to MXFP4 again."


def evaluation_of(
    run: Path, adapter: Path, base: str, tell: Callable[[str], None] | None = None
) -> dict[str, Any] | None:
    """Return RUN/evaluation/evaluation.json if it measured this adapter on this base, else None.

    `base` is the resolved name that the evaluation used too. `tell` hears why a file that is there
    is left out.
    """
    # Loads torch, for which a refused upload should not have to wait.
    from gptoss_tools.models.snapshot import fingerprint

    path = run / "evaluation" / "evaluation.json"
    tell = tell or (lambda text: None)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        weights = (adapter / "adapter_model.safetensors").read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        tell(f"{path} cannot be read, so the model card goes without it: {error}")
        return None
    of_base = fingerprint(base) or hashlib.sha256(base.encode()).hexdigest()
    measured = hashlib.sha256(of_base.encode() + weights).hexdigest()
    if not isinstance(found, dict) or found.get("policy_sha256") != measured:
        tell(f"{path} is of other weights, so the model card goes without it: gptoss evaluate")
        return None
    return found


def model_card(
    repo_id: str, record: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None
) -> str:
    """README.md for an export whose export.json is `record`."""
    base = str(record.get("base") or "a gpt-oss model")
    form = str(record.get("format") or "mxfp4")
    parts = [
        _metadata(base, form),
        [f"# {repo_id.rsplit('/', 1)[-1]}", "", _opening(base, form, record)],
        ["## Use", "", *_use(repo_id, base, form)],
        _evaluation(evaluation) if evaluation else [],
        _training(record.get("training") or {}),
        _rounding(record) if "kept" in record else [],
    ]
    if "adapter_sha256" in record:
        parts.append([f"Adapter SHA-256: `{record['adapter_sha256']}`"])
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _metadata(base: str, form: str) -> list[str]:
    relation = "adapter" if form == "adapter" else "finetune"
    on_hub = base.count("/") == 1
    return [
        "---",
        *([f"base_model: {base}", f"base_model_relation: {relation}"] if on_hub else []),
        f"library_name: {_LIBRARY.get(form, 'transformers')}",
        "pipeline_tag: text-generation",
        f"tags: [gpt-oss, grpo, {'lora' if form == 'adapter' else form}]",
        "---",
    ]


def _opening(base: str, form: str, record: Mapping[str, Any]) -> str:
    experts = any(".experts." in str(row.get("name")) for row in record.get("tensors") or ())
    what = _REQUANTISED if form == "mxfp4" and experts else _WHAT.get(form, "merged into {base}.")
    rewards = (record.get("training") or {}).get("reward")
    aim = "on a table of decisions"
    if rewards not in (None, "decision", ["decision"]):
        names = [rewards] if isinstance(rewards, str) else rewards
        aim = f"for the {'reward' if len(names) == 1 else 'rewards'} {', '.join(names)}"
    return f"A LoRA adapter, trained with GRPO {aim}, {what.format(base=base)}"


def _use(repo_id: str, base: str, form: str) -> list[str]:
    model = base if form == "adapter" else repo_id
    code = [
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{model}")',
        f'model = AutoModelForCausalLM.from_pretrained("{model}", dtype="auto")',
        "```",
    ]
    if form == "adapter":
        code.insert(1, "from peft import PeftModel")
        code.insert(-1, f'model = PeftModel.from_pretrained(model, "{repo_id}")')
    if form == "gguf":
        code = ["```sh", f"hf download {repo_id} --local-dir .", "ollama create mine", "```"]
    return [
        *code,
        "",
        "Prompts must have the form of the training data: Harmony, with the same developer message",
        "and reasoning effort.",
    ]


def _evaluation(found: Mapping[str, Any]) -> list[str]:
    """Held-out figures; regret is in the unit of Q, see docs/evaluation.md."""
    regret, reward = found.get("regret") or {}, found.get("reward") or {}
    rows = [
        ("regret (mean)", _number(regret.get("mean"), regret.get("ci95"))),
        ("regret of the base", _number(regret.get("base"))),
        ("best action chosen", _share(found.get("top1"))),
        ("invalid answers", _share((found.get("invalid") or {}).get("total"))),
        ("reward (mean)", _number(reward.get("mean"), reward.get("ci95"))),
        ("reward of the base", _number(reward.get("base"))),
    ]
    if found.get("rewards") and not regret:
        apart = found["rewards"].items()
        rows += [(name, _number(part.get("mean"), part.get("ci95"))) for name, part in apart]
        return [
            "## Evaluation",
            "",
            f"On {found.get('n_rows')} held-out prompts (data SHA-256 "
            f"`{found.get('data_sha256')}`), answered greedily;",
            "brackets hold 95 % bootstrap intervals.",
            "",
            *_table(rows),
        ]
    return [
        "## Evaluation",
        "",
        f"On {found.get('n_rows')} held-out decisions in {found.get('n_episodes')} episodes "
        f"(data SHA-256 `{found.get('data_sha256')}`). Regret is what the best action was worth",
        "more than the chosen one, an invalid answer counting as the worst; brackets hold 95 %",
        "bootstrap intervals over episodes.",
        "",
        *_table(rows),
    ]


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    shown = [f"| {name} | {value} |" for name, value in rows if value]
    return ["| figure | value |", "|---|---|", *shown]


def _number(value: Any, interval: Any = None) -> str:
    if not isinstance(value, int | float):
        return ""
    text = f"{value:.4g}"
    if isinstance(interval, list) and len(interval) == 2 and None not in interval:
        text += f" [{interval[0]:.4g}, {interval[1]:.4g}]"
    return text


def _share(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, int | float) else ""


def _training(settings: Mapping[str, Any]) -> list[str]:
    rows = [f"| {key} | {_cell(value)} |" for key, value in settings.items()]
    return ["## Training", "", "| setting | value |", "|---|---|", *rows] if rows else []


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _rounding(record: Mapping[str, Any]) -> list[str]:
    return [
        "## Rounding",
        "",
        f"The adapter changes the weights it touches by {record['ratio']:.3%} of their norm;",
        f"{record['kept']:.1%} of that change is left after rounding to the stored type.",
        *(f"\nNote: {warning}." for warning in record.get("warnings") or ()),
    ]
