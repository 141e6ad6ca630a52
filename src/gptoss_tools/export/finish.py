"""What every exported checkpoint gets once its weights are written, before it takes its name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from gptoss_tools.export.experts import parameters_of
from gptoss_tools.export.plan import ExportPlan
from gptoss_tools.export.record import ExportReport, LogitGap, write_record
from gptoss_tools.export.serving import write_serving

LARGEST_COMPARED = 1_000_000_000
"""Parameters of the largest model whose logits are compared: it is loaded twice, in float32."""


def finish(
    plan: ExportPlan, folder: Path, report: ExportReport, format: Literal["mxfp4", "bf16", "merged"]
) -> None:
    """Compare logits where the model is small, write SERVING.md and export.json."""
    report.logits = _compared(plan, folder)
    write_serving(
        folder,
        format=format,
        base_name=plan.base_name,
        adapter_dir=plan.adapter_dir,
        base_dir=plan.base.folder,
    )
    write_record(plan.adapter_dir, folder, report)


def _compared(plan: ExportPlan, folder: Path) -> LogitGap:
    count = parameters_of(plan.base)
    if count > LARGEST_COMPARED:
        size = f"{count / 1e9:.1f} billion parameters, {count * 4e-9:.0f} GB in float32"
        return LogitGap(skipped=f"the model has {size}")
    if not (folder / "tokenizer.json").is_file():
        return LogitGap(skipped="the base has no tokenizer.json")
    from gptoss_tools.export.logits import compare_logits  # loads transformers and PEFT

    return compare_logits(folder, plan.base.folder, plan.adapter_dir)
