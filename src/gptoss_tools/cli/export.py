"""gptoss export."""

from __future__ import annotations

from pathlib import Path

from ..console import align, out
from ..errors import RunFolderError
from ..load import Loaded
from ..settings import ExportSettings
from .common import build_tiny_first, cache_dir, hub_token
from .options import command


@command(
    "export",
    ExportSettings,
    positional="target",
    examples=[
        "gptoss export runs/first --out exports/first",
        "gptoss export runs/first/adapter-best --base openai/gpt-oss-20b --dry-run",
        "gptoss export runs/first --format gguf --out exports/first-gguf",
        "gptoss export runs/first --push --repo-id me/first",
    ],
)
def export(settings: ExportSettings, loaded: Loaded) -> None:
    """Merge an adapter into its base checkpoint, for serving.

    Works from files, without loading the model. In the base's own layout (mxfp4) everything but the
    attention weights that LoRA touched is copied byte for byte. Says how much of the adapter
    survives rounding.
    """
    token = repo_id = None
    if settings.push:  # asked before anything heavy loads
        from ..export.hub import require_push

        token = hub_token()
        repo_id = require_push(token, settings.repo_id)
    from ..evaluation.sources import find_source
    from ..export.formats import export as write
    from ..models.names import TINY
    from ..models.snapshot import checkpoint_folder

    source = find_source(settings.target, settings.base)
    if source.adapter is None:
        here = source.run or source.base == TINY or Path(source.base).is_dir()
        raise RunFolderError(
            f"{settings.target} is {'a model, not an adapter' if here else 'no folder here'}",
            hint="name a run, a checkpoint or an adapter folder; --base names the model",
        )
    build_tiny_first(source.base)
    base = checkpoint_folder(source.base, cache_dir=cache_dir())
    folder = Path(settings.out or Path("exports") / (source.run or source.adapter).name)
    with out.progress("bytes", None, every=1 << 30) as update:
        report = write(
            settings.format,
            source.adapter,
            base,
            folder,
            dtype=settings.gguf_dtype,
            requantize_experts=settings.requantize_experts,
            overwrite=settings.overwrite,
            dry_run=settings.dry_run,
            on_progress=lambda what, done, total: update(done, total=total, doing=what),
        )
    for warning in report.warnings:
        out.warning(warning)
    record = report.to_record()
    if repo_id is not None and not settings.dry_run:
        from ..export.card import evaluation_of
        from ..export.hub import push
        from ..models.names import resolve_model

        found = None
        if source.run is not None:
            name = resolve_model(source.base, cache_dir=cache_dir())
            found = evaluation_of(source.run, source.adapter, name, out.warning)
        record["url"] = push(folder, repo_id, token=token, evaluation=found)
    rows = [
        {
            "tensors": one.name,
            "changed by": f"{one.ratio:.3%}",
            "kept after rounding": f"{one.kept:.1%}",
            "error beside the change": f"{one.error:.2f}",
        }
        for one in report.by_kind()
    ]
    lines = [align(rows)] if rows else []
    lines += [str(report.logits)] if report.logits else []
    size = f"{report.bytes_total / 1e6:.1f} MB"
    if report.bytes_rewritten:
        size += f", of which {report.bytes_rewritten / 1e6:.1f} MB rewritten"
    said = "would write" if settings.dry_run else "wrote"
    out.result(
        record,
        "\n".join([f"{said} {folder}: {size}", *lines]),
    )
    if not settings.dry_run:
        out.hint(f"gptoss verify-export {folder}")
