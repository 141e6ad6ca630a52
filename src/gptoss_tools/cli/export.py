"""gptoss export."""

from __future__ import annotations

from pathlib import Path

from ..console import align, out
from ..load import Loaded
from ..settings import ExportSettings
from .common import cache_dir, hub_token
from .options import command


@command(
    "export",
    ExportSettings,
    positional="target",
    examples=[
        "gptoss export runs/first --out exports/first",
        "gptoss export runs/first --base openai/gpt-oss-20b --dry-run",
        "gptoss export runs/first --push --repo-id me/first",
    ],
)
def export(settings: ExportSettings, loaded: Loaded) -> None:
    """Merge an adapter into its MXFP4 base checkpoint.

    Works from files, without loading the model: everything but the attention weights that LoRA
    touched is copied byte for byte. Says how much of the adapter survives rounding to bfloat16.
    """
    from ..export.hub import push, require_push

    token = hub_token()
    repo_id = require_push(token, settings.repo_id) if settings.push else None
    from ..core.runs import open_run
    from ..evaluation.sources import find_source
    from ..export.merge import export_mxfp4
    from ..models.snapshot import checkpoint_folder

    source = find_source(settings.target, settings.base)
    run = open_run(settings.target)
    base = checkpoint_folder(source.base, cache_dir=cache_dir())
    folder = Path(settings.out or Path("exports") / run.path.name)
    with out.progress("bytes", None, every=1 << 30) as update:
        report = export_mxfp4(
            run.adapter().path,
            base,
            folder,
            overwrite=settings.overwrite,
            dry_run=settings.dry_run,
            on_progress=lambda what, done, total: update(done, total=total, doing=what),
        )
    for warning in report.warnings:
        out.warning(warning)
    record = report.to_record()
    if repo_id is not None and not settings.dry_run:
        record["url"] = push(folder, repo_id, token=token)
    rows = [
        {"tensors": kind, "changed by": f"{ratio:.3%}", "kept after rounding": f"{kept:.1%}"}
        for kind, ratio, kept in report.by_kind()
    ]
    said = "would write" if settings.dry_run else "wrote"
    out.result(
        record,
        f"{said} {folder}: {report.bytes_total / 1e6:.1f} MB, of which "
        f"{report.bytes_rewritten / 1e6:.1f} MB rewritten\n{align(rows)}",
    )
    if not settings.dry_run:
        out.hint(f"gptoss generate {folder} --prompt-file PROMPT.txt")
