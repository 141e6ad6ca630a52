"""Upload an export to the Hugging Face Hub, private unless asked otherwise, with a model card.

Files that the Hub holds already are not sent again, so an upload that broke off can be repeated.
Token and repository come from the caller: this reads no environment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from gptoss_tools.core.publish import write_text
from gptoss_tools.errors import ConfigError, DataError, GptossError, MachineError, first_line

_RECORD = "export.json"
_CARD = "README.md"


def require_push(token: str | None, repo_id: str | None) -> str:
    """Check, before any work, that an upload has a token and a place to go; return the place.

    Raises MachineError without a token, ConfigError without a well-formed repository id.
    """
    if not token:
        raise MachineError(
            "an upload needs a Hugging Face token, and none is set; nothing was done",
            hint="set HF_TOKEN to a token with write permission, or run `hf auth login`",
        )
    if not repo_id:
        raise ConfigError(
            "an upload needs the name of a repository; nothing was done",
            hint="pass --repo-id user/name, or set HF_REPO_ID",
        )
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(
            f"{repo_id!r} is no name for a repository: {error}", hint="write it as user/name"
        ) from error
    return repo_id


def push(
    folder: Path,
    repo_id: str,
    *,
    token: str | None,
    private: bool = True,
    commit_message: str | None = None,
    client: HfApi | None = None,
) -> str:
    """Create the repository if need be, upload `folder`, return the repository's address.

    Adds a model card to the folder if it has none. An existing repository keeps its visibility.
    Raises MachineError where the Hub refuses the token or cannot be reached, GptossError for
    whatever else it answers.
    """
    require_push(token, repo_id)
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} holds no exported model", hint="gptoss export")
    client = client or HfApi(token=token)
    try:
        url = client.create_repo(repo_id, private=private, exist_ok=True, token=token)
        _add_card(folder, url.repo_id)
        client.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            commit_message=commit_message or "Add merged model",
            ignore_patterns=[".*"],
            token=token,
        )
    except HfHubHTTPError as error:
        raise _refused(error, repo_id) from error
    except OfflineModeIsEnabled as error:
        raise MachineError("the Hub is switched off", hint="unset HF_HUB_OFFLINE") from error
    except Exception as error:
        if not (isinstance(error, OSError) or _is_network(error)):
            raise
        raise MachineError(
            f"the Hub cannot be reached: {first_line(error)}",
            hint=f"the export is complete in {folder}; push again when the network is back",
        ) from error
    return str(url)


def _is_network(error: Exception) -> bool:
    """Whether an HTTP library raised it; which one is huggingface_hub's choice."""
    return type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "requests")


def _refused(error: HfHubHTTPError, repo_id: str) -> GptossError:
    status = error.response.status_code if error.response is not None else 0
    if status in (401, 403):
        return MachineError(
            f"the Hub does not let this token write to {repo_id} ({status})",
            hint="use a token with write permission for that user or organisation",
        )
    return GptossError(f"the Hub answered {status} for {repo_id}: {first_line(error)}")


def _add_card(folder: Path, repo_id: str) -> None:
    if not (folder / _CARD).exists():
        try:
            record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            record = {}
        write_text(folder / _CARD, model_card(repo_id, record))


def model_card(repo_id: str, record: Mapping[str, Any]) -> str:
    """README.md for an export whose export.json is `record`: origin, training, rounding, use."""
    base = str(record.get("base") or "a gpt-oss model")
    on_hub = base.count("/") == 1
    training = dict(record.get("training") or {})
    lines = [
        "---",
        *([f"base_model: {base}", "base_model_relation: finetune"] if on_hub else []),
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [gpt-oss, grpo, mxfp4]",
        "---",
        "",
        f"# {repo_id.rsplit('/', 1)[-1]}",
        "",
        f"A LoRA adapter, trained with GRPO on a table of decisions, merged into {base}. The",
        "experts are the base's own MXFP4 bytes; only the weights that the adapter changes differ.",
        "",
        "## Use",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{repo_id}")',
        f'model = AutoModelForCausalLM.from_pretrained("{repo_id}", dtype="auto")',
        "```",
        "",
        f"or `vllm serve {repo_id}`. Prompts must have the form of the training data: Harmony,",
        "with the same developer message and reasoning effort.",
    ]
    if training:
        lines += ["", "## Training", "", "| setting | value |", "|---|---|"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in training.items()]
    if "kept" in record:
        lines += [
            "",
            "## Rounding",
            "",
            f"The adapter changed the weights it touches by {record['ratio']:.3%} of their norm;",
            f"{record['kept']:.1%} of that change is left after rounding to bfloat16.",
            *(f"\nNote: {warning}." for warning in record.get("warnings", ())),
        ]
    if "adapter_sha256" in record:
        lines += ["", f"Adapter SHA-256: `{record['adapter_sha256']}`"]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")
