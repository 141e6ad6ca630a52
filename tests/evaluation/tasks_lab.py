"""Task definitions for lm-eval as a user writes them: YAML beside a JSONL file, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from gptoss_tools.evaluation.policy import Policy
from gptoss_tools.models.loading import load_model
from gptoss_tools.models.mixlora import MixLoraConfig, attach, save

QUESTIONS = [
    {"question": f"load {40 + 7 * hour} kW, hour {hour}", "choices": ["[0]", "[1]", "[2]", "[3]"]}
    | {"best": hour % 4, "said": f"level {hour % 3}"}
    for hour in range(12)
]
PROMPT = "Question: {}\nAnswer:"

CHOICE = """
task: {name}
tag: ours
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/rows.jsonl}}
  cache_dir: {folder}/cache
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: best
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: {version}}}
"""
# The value of an example is its log-likelihood, and the metric the perplexity of all.
ENDING = """
task: endings
dataset_path: json
dataset_kwargs:
  data_files: {{test: {folder}/rows.jsonl}}
  cache_dir: {folder}/cache
test_split: test
output_type: loglikelihood
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{said}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
metadata: {{version: 3.0}}
"""
GROUP = """
group: both
task: [levels, levels_again]
aggregate_metric_list:
  - {metric: acc, weight_by_size: true}
metadata: {version: 2.0}
"""


def write_tasks(folder: Path) -> Path:
    """The tasks `levels`, `levels_again` (tag `ours`, group `both`) and `endings`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    for name in ("levels", "levels_again"):
        text = CHOICE.format(name=name, folder=folder, version=1.5)
        (folder / f"{name}.yaml").write_text(text)
    (folder / "endings.yaml").write_text(ENDING.format(folder=folder))
    (folder / "both.yaml").write_text(GROUP)
    return folder


def log_likelihood(policy: Policy, question: dict[str, Any], continuation: str) -> float:
    """Our own sum of the continuation's log-probabilities, from one forward pass without batch."""
    context = PROMPT.format(question["question"])
    n = len(policy.tokenizer(context)["input_ids"])
    ids = torch.tensor([policy.tokenizer(f"{context}{continuation}")["input_ids"]])
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits[0].double()
    log_probabilities = logits.log_softmax(-1)
    return sum(float(log_probabilities[i - 1, ids[0, i]]) for i in range(n, ids.shape[1]))


def random_lora(base: Path, folder: Path) -> Path:
    """LoRA on the attention, its B large and random, as PEFT writes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = get_peft_model(load_model(base), LoraConfig(r=4, target_modules="all-linear"))
        _randomise(model)
    model.save_pretrained(folder)
    return folder


def random_mixlora(base: Path, folder: Path) -> Path:
    """MixLoRA on attention and experts, its B large and random."""
    model = load_model(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        _randomise(attach(model, MixLoraConfig(num_experts=4, top_k=2)))
    save(model, folder)
    return folder


def _randomise(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
