"""The whole path on gpt-oss-20b's real shapes: train, save, resume, export, load the export.

    python benchmarks/full_size.py [--size tiny|20b] [--folder DIR] [--stages make ...] [--out DIR]

Stages, each a process of its own: make a synthetic checkpoint; load it, dequantised; 3 steps of
train-grpo with the default settings but short completions; 1 more step by resume; export to MXFP4;
load the export with stock transformers and compare its logits with base + adapter by PEFT. Prints
seconds and peak memory of each. The weights are random, so its answers are noise and the reward is
one that noise can earn. The 20b needs a CUDA GPU with 80 GB, 28 GB of disk and the package
installed (`pip install --no-deps --no-build-isolation -e .` where there is no network).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring

HERE = Path(__file__).resolve().parent
NEEDED = ("torch", "transformers", "trl", "peft", "datasets", "pydantic")
STEPS = 3
COMPLETION = {"20b": 64, "tiny": 8}  # tokens
# With 64 completions of the 20b's vocabulary a CPU would take minutes for what the test is after.
FEWER: dict[str, Any] = {"num_generations": 4, "gradient_accumulation_steps": 2}


def lower_case(decision, rewards_K, completion, row) -> float:
    """Reward: the share of lower-case letters, which completions of random weights differ in."""
    text = completion.transcript()
    return sum(map(str.islower, text)) / max(1, len(text))


def make(folder: Path, size: str) -> dict[str, Any]:
    """Write the synthetic checkpoint."""
    from make_checkpoint import write_checkpoint

    write_checkpoint(folder / "base", size)
    return {"bytes": measuring.size_of(folder / "base")}


def load(folder: Path, size: str) -> dict[str, Any]:
    """Load it as training does, the experts dequantised."""
    from gptoss_tools.models.loading import load_model

    model = load_model(folder / "base")
    return {"parameters": sum(p.numel() for p in model.parameters()), "dtype": str(model.dtype)}


def train(folder: Path, size: str) -> dict[str, Any]:
    """Take three steps with the default settings, but short completions."""
    from gptoss_tools.settings import TrainSettings
    from gptoss_tools.training.train import train as run

    outcome = run(
        TrainSettings.model_validate(
            {
                "model": str(folder / "base"),
                "data": [str(HERE.parent / "data" / "train")],
                "output_dir": str(folder / "run"),
                "max_steps": STEPS,
                "max_completion_length": COMPLETION[size],
                "reward": "full_size:lower_case",
                **(FEWER if size == "tiny" else {}),
            }
        ),
        on_step=said,
    )
    return {"steps": outcome.steps, "steps_seconds": outcome.seconds}


def resume(folder: Path, size: str) -> dict[str, Any]:
    """Go on for one step."""
    from gptoss_tools.settings import ResumeSettings
    from gptoss_tools.training.train import resume as go_on

    settings = ResumeSettings.model_validate({"run": str(folder / "run"), "max_steps": STEPS + 1})
    outcome = go_on(settings, on_step=said)
    return {"steps": outcome.steps, "resumed_from": outcome.resumed_from}


def said(step: Any) -> None:
    """Keep each step's figures in the raw output."""
    print(step, flush=True)


def export(folder: Path, size: str) -> dict[str, Any]:
    """Merge the adapter into the MXFP4 checkpoint."""
    from gptoss_tools.export.merge import export_mxfp4

    report = export_mxfp4(folder / "run" / "adapter", folder / "base", folder / "export")
    facts = {"bytes": report.bytes_total, "ratio": report.ratio, "kept": report.kept}
    return facts | {"copied_by": report.copied_by}


def stock(folder: Path, size: str) -> dict[str, Any]:
    """Load the export with transformers alone; compare with base + adapter, unmerged."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import Mxfp4Config

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    text = "Hour 08: load 20 kW, carbon 234 g, tank 150 of 300 kWh."
    tokens = AutoTokenizer.from_pretrained(folder / "export")(text, return_tensors="pt").input_ids

    def open_model(path: Path) -> tuple[Any, float]:
        start = time.perf_counter()
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, device_map=device, quantization_config=Mxfp4Config(dequantize=True)
        )
        return model, time.perf_counter() - start

    @torch.no_grad()
    def logits(model: Any) -> torch.Tensor:
        return model(tokens.to(device)).logits.float().cpu()

    model, seconds = open_model(folder / "export")
    ours = logits(model)
    del model
    base, _ = open_model(folder / "base")
    plain = logits(base)
    unmerged = logits(PeftModel.from_pretrained(base, str(folder / "run" / "adapter")))
    return {
        "load_seconds": seconds,
        "logits_spread": float(unmerged.std()),
        "adapter_changes_logits_by": float((unmerged - plain).abs().max()),
        "export_differs_from_unmerged_by": float((ours - unmerged).abs().max()),
    }


STAGES = {
    stage.__name__: stage
    for stage in (make, load, train, resume, export, stock)  # in this order
}


def worker(stage: str, folder: Path, size: str) -> None:
    """Run one stage here and print its figures as the last line."""
    import torch

    start = time.perf_counter()
    facts = STAGES[stage](folder, size)
    facts["seconds"] = time.perf_counter() - start
    if torch.cuda.is_available():
        facts["peak_gpu"] = torch.cuda.max_memory_allocated()
        facts["peak_gpu_reserved"] = torch.cuda.max_memory_reserved()
        facts["gpu"] = torch.cuda.get_device_name()
    print(json.dumps(facts))


def table(rows: list[dict[str, Any]]) -> str:
    """The stages as a Markdown table."""
    lines = ["| stage | seconds | peak GPU memory | peak RSS | |", "|---|---|---|---|---|"]
    hidden = {"stage", "seconds", "wall_seconds", "peak_rss", "gpu", "peak_gpu"}
    for row in rows:
        gpu = f"{row['peak_gpu'] / 1e9:.1f} GB" if "peak_gpu" in row else "none"
        facts = (f"{key} {show(value)}" for key, value in row.items() if key not in hidden)
        lines.append(
            f"| {row['stage']} | {row['seconds']:.1f} | {gpu} | {row['peak_rss'] / 1e9:.2f} GB "
            f"| {', '.join(facts)} |"
        )
    return "\n".join(lines)


def show(value: Any) -> str:
    """A figure as people read it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def require(size: str) -> None:
    """Say what this machine lacks before anything is written."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"missing packages: {', '.join(missing)}")
    import torch

    if size == "20b" and not torch.cuda.is_available():
        print("--size 20b needs a CUDA GPU, and none is visible; --size tiny runs on a CPU")
        raise SystemExit(3)


def main() -> None:
    """Run the stages one after the other; keep what they say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=("20b", "tiny"), default="tiny")
    parser.add_argument("--folder", type=Path, help="where to work, kept (default: temporary)")
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--out", type=Path, help="for figures and raw output (20b: results/)")
    parser.add_argument("--worker", choices=STAGES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.folder, options.size)
        return
    require(options.size)
    name, rows = f"full_size-{options.size}", []
    with contextlib.ExitStack() as stack:
        home = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        out = options.out or (HERE / "results" if options.size == "20b" else home)
        out.mkdir(parents=True, exist_ok=True)
        log = stack.enter_context((out / f"{name}.log").open("w", encoding="utf-8"))
        for stage in options.stages:
            command = [sys.executable, Path(__file__).resolve(), "--worker", stage]
            child = measuring.run([*command, "--size", options.size, "--folder", home])
            log.write(f"== {stage}\n{child.said}\n")
            log.flush()
            facts = json.loads(child.said.splitlines()[-1])
            rows.append({"stage": stage, "peak_rss": child.peak_rss, **facts})
            rows[-1]["wall_seconds"] = child.seconds  # with the start of Python and its imports
            print(f"{stage}: {facts['seconds']:.1f} s", file=sys.stderr, flush=True)
        record = {"size": options.size, "machine": measuring.machine(home), "stages": rows}
        text = json.dumps(record, indent=2) + "\n"
        (out / f"{name}.json").write_text(text, encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
