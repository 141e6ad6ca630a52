"""When a mixture of LoRA experts beats one LoRA with as many parameters, over several seeds.

    python benchmarks/mixlora.py [--seeds 5] [--steps 300] [--out docs]

A task is a random permutation of 64 symbols: after a task token, the answer to a symbol is its
image. All tasks share the symbols and contradict each other. A small Llama learns old permutations
with all its parameters, is frozen, and an adapter then learns new ones under the same task tokens.
Both kinds of adapter sit on the same projections; LoRA's rank is the smallest that gives it at
least as many parameters. Each kind's learning rate is the best of three on a base apart. Writes
mixlora.json into --out, and the table into mixlora.md there if that exists.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from gptoss_tools.models.mixlora import MixLoraConfig, attach
from gptoss_tools.models.mixlora_config import ATTENTION, FFN

ROOT = Path(__file__).resolve().parents[1]
SYMBOLS, HIDDEN, LENGTH, BATCH = 64, 64, 8, 32
EXPERTS, TOP_K = 4, 2
RATES = (1e-2, 3e-2, 6e-2)
APART = 1000  # the base on which learning rates are chosen
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}


@dataclass(frozen=True)
class Mixture:
    """How many tasks, how wide the frozen FFN, the rank of a MixLoRA expert, where adapters sit."""

    what: str
    tasks: int
    inner: int
    r: int
    targets: tuple[str, ...] = FFN
    rates: tuple[float, ...] = RATES

    def parameters(self) -> int:
        """Trainable parameters of the MixLoRA in one layer."""
        attention = len([name for name in self.targets if name in ATTENTION])
        experts = EXPERTS * self.r * 3 * (HIDDEN + self.inner) + EXPERTS * HIDDEN
        return experts + attention * self.r * 2 * HIDDEN

    def lora_rank(self) -> int:
        """The smallest rank at which LoRA has no fewer."""
        attention = len([name for name in self.targets if name in ATTENTION])
        return math.ceil(self.parameters() / (3 * (HIDDEN + self.inner) + attention * 2 * HIDDEN))


MIXTURES = {
    "conflict": Mixture("16 tasks, narrow FFN (24)", 16, 24, 5),
    "few": Mixture("4 tasks, narrow FFN (24)", 4, 24, 5),
    "one": Mixture("1 task, narrow FFN (24)", 1, 24, 5),
    "attention": Mixture(
        "16 tasks, narrow FFN (24), attention too",
        16,
        24,
        5,
        (*ATTENTION, *FFN),
        (3e-3, 6e-3, 1e-2),
    ),
    "wide": Mixture("16 tasks, wide FFN (96)", 16, 96, 5),
    "ranks": Mixture("16 tasks, narrow FFN (24), small ranks", 16, 24, 2),
}
ARMS = ("LoRA", "MixLoRA")


class Tasks:
    """The permutations of one seed, and batches of questions about them."""

    def __init__(self, count: int, seed: int):
        self.generator = torch.Generator().manual_seed(seed)
        self.images = torch.stack(
            [torch.randperm(SYMBOLS, generator=self.generator) for _ in range(count)]
        )

    def batch(self, size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [size, 1 + LENGTH], a task token first, and each symbol's image."""
        task = torch.randint(len(self.images), (size,), generator=self.generator)
        symbols = torch.randint(SYMBOLS, (size, LENGTH), generator=self.generator)
        images = self.images[task].gather(1, symbols)
        return torch.cat([SYMBOLS + task[:, None], symbols], dim=1), images


def answer_loss(model: Any, ids: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats of the images where their symbols stand."""
    logits = model(input_ids=ids, use_cache=False).logits[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), images.flatten())


def fit(model: Any, tasks: Tasks, steps: int, rate: float, auxiliary: Any = None) -> None:
    """Train whatever learns, with warm-up and a cosine."""
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.0)
    model.train()
    for step in range(steps):
        warm = min(1.0, (step + 1) / (0.1 * steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = answer_loss(model, *tasks.batch())
        if auxiliary is not None:
            loss = loss + auxiliary()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def base_model(mixture: Mixture, seed: int, steps: int) -> PreTrainedModel:
    """A one-layer Llama that knows `tasks` old permutations."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=SYMBOLS + mixture.tasks,
        hidden_size=HIDDEN,
        intermediate_size=mixture.inner,
        num_attention_heads=4,
        num_hidden_layers=1,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config)
    fit(model, Tasks(mixture.tasks, 10_000 + seed), steps, 5e-3)
    return model


def adapt(
    arm: str, base: PreTrainedModel, mixture: Mixture, seed: int, steps: int, rate: float
) -> dict[str, Any]:
    """Train one adapter on a copy of the base; its held-out loss, size and time."""
    model: Any = copy.deepcopy(base)
    torch.manual_seed(seed)
    auxiliary = None
    rank = mixture.r if arm == "MixLoRA" else mixture.lora_rank()
    shared: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0}
    if arm == "MixLoRA":
        config = MixLoraConfig(
            num_experts=EXPERTS, top_k=TOP_K, target_modules=mixture.targets, **shared
        )
        auxiliary = attach(model, config).total_loss
    else:
        model = get_peft_model(model, LoraConfig(target_modules=list(mixture.targets), **shared))
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    tasks = Tasks(mixture.tasks, seed)
    started = time.perf_counter()
    fit(model, tasks, steps, rate, auxiliary)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        loss = answer_loss(model, *tasks.batch(1024)).item()  # questions not drawn before
    return {
        "arm": arm,
        "seed": seed,
        "rate": rate,
        "rank": rank,
        "parameters": parameters,
        "loss": loss,
        "ms_per_step": 1000 * seconds / steps,
    }


def compare(name: str, seeds: int, steps: int) -> dict[str, Any]:
    """Every run of one mixture: learning rates on a base apart, then the seeds."""
    mixture = MIXTURES[name]
    apart = base_model(mixture, APART, 2 * steps)
    tried = [adapt(a, apart, mixture, APART, steps, rate) for a in ARMS for rate in mixture.rates]
    chosen = {
        arm: min((t for t in tried if t["arm"] == arm), key=lambda t: t["loss"])["rate"]
        for arm in ARMS
    }
    runs = []
    for seed in range(seeds):
        base = base_model(mixture, seed, 2 * steps)
        runs += [adapt(arm, base, mixture, seed, steps, chosen[arm]) for arm in ARMS]
    return {"mixture": name, "what": mixture.what, "tried": tried, "runs": runs}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % interval over seeds, by Student's t; 0 for one seed."""
    array = np.array(values)
    half = STUDENT.get(len(array), 2.0) * array.std(ddof=1) / len(array) ** 0.5 if values[1:] else 0
    return float(array.mean()), float(half)


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| mixture | LoRA: rank, parameters | MixLoRA: rank, parameters | LoRA's held-out loss "
        "| MixLoRA's | difference | lower in | time per step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        lora, mixed = ([r for r in result["runs"] if r["arm"] == arm] for arm in ARMS)
        gaps = [m["loss"] - one["loss"] for one, m in zip(lora, mixed, strict=True)]
        cells = [result["what"]]
        cells += [f"{arm[0]['rank']}, {arm[0]['parameters']:,}" for arm in (lora, mixed)]
        cells += [
            "{:.3f} ± {:.3f}".format(*interval([run["loss"] for run in arm]))
            for arm in (lora, mixed)
        ]
        cells.append("{:+.3f} ± {:.3f}".format(*interval(gaps)))
        cells.append(f"{sum(gap < 0 for gap in gaps)} of {len(gaps)}")
        slower = np.median([m["ms_per_step"] for m in mixed]) / np.median(
            [one["ms_per_step"] for one in lora]
        )
        cells.append(f"{slower:.1f} x LoRA's")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(results: list[dict[str, Any]], seeds: int, steps: int, out: Path) -> str:
    """Write mixlora.json and the table in mixlora.md, if there is one; return the table."""
    facts = {
        "seeds": seeds,
        "steps": steps,
        "hardware": f"one CPU core, {platform.machine()}, torch {torch.__version__}",
        "results": results,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "mixlora.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    text = table(results)
    page = out / "mixlora.md"
    if page.exists():
        start, end = "<!-- table -->\n", "<!-- end of table -->"
        head, rest = page.read_text(encoding="utf-8").split(start, 1)
        page.write_text(head + start + text + "\n" + end + rest.split(end, 1)[1], encoding="utf-8")
    return text


def main(arguments: list[str] | None = None) -> None:
    """Run the mixtures, then write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--mixtures", nargs="*", choices=list(MIXTURES), default=list(MIXTURES))
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = []
    for name in options.mixtures:
        started = time.perf_counter()
        results.append(compare(name, options.seeds, options.steps))
        print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    print(write(results, options.seeds, options.steps, options.out))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    main()
