"""The Modelfile beside a GGUF: Ollama's template and parameters, as training had them."""

from __future__ import annotations

import re
from pathlib import Path

from gptoss_tools.core.publish import write_text
from gptoss_tools.core.runs import open_run
from gptoss_tools.export.prompt_form import TODAY, PromptForm

NAME = "Modelfile"
_QUOTES = '"""'

_CONVERSATION = """\
{{- range .Messages }}
{{- if or (eq .Role "system") (eq .Role "developer") }}<|start|>developer<|message|># Instructions

{{ .Content }}

<|end|>
{{- else if eq .Role "user" }}<|start|>user<|message|>{{ .Content }}<|end|>
{{- else if eq .Role "assistant" }}<|start|>assistant<|channel|>final<|message|>{{ .Content }}<|end|>
{{- end }}
{{- end }}<|start|>assistant"""  # noqa: E501

_INTRODUCTION = """\
Serve model.gguf, which lies beside this file, with Ollama:

    ollama create {name} -f Modelfile
    ollama run {name}

There is no ADAPTER line: the adapter is merged into model.gguf, because recent versions of Ollama
are reported to refuse that instruction, and none took LoRA adapters for gpt-oss as safetensors."""

_ABOUT_TEMPLATE = """\
Harmony, as gpt-oss's own chat template writes it for one developer message and a conversation
without tools. System text, from SYSTEM below or from the caller, becomes the developer message, as
in training. The system message is that of training: {day}, reasoning {effort}."""

_ABOUT_PARAMETERS = """\
Draw as training drew. `temperature 0` gives the likeliest answer, which is what `gptoss generate`
and `gptoss evaluate` report unless told to sample."""

_ABOUT_ROOM = """\
Room for a prompt of {prompt} tokens and an answer of {answer}, as in training."""


def write_modelfile(folder: Path, form: PromptForm, name: str) -> None:
    """Write `Modelfile` into `folder`, for the GGUF beside it."""
    write_text(folder / NAME, modelfile(form, name))


def modelfile(form: PromptForm, name: str) -> str:
    """The text of a Modelfile for `./model.gguf`; `name` is what Ollama will call the model."""
    day = "today's date" if form.date is None else f"the date {form.date}"
    settings = form.settings
    parts = [
        _comment(_INTRODUCTION.format(name=name)),
        "FROM ./model.gguf",
        _comment(_ABOUT_TEMPLATE.format(day=day, effort=form.effort), *form.notes)
        + f"\nTEMPLATE {_QUOTES}{_template(form.system)}{_QUOTES}",
        *_system(form.developer),
        _comment(_ABOUT_PARAMETERS)
        + f"\nPARAMETER temperature {settings['temperature']}"
        + f"\nPARAMETER top_p {settings['top_p']}"
        + f"\nPARAMETER top_k {settings['top_k']}"
        + "\nPARAMETER min_p 0.0\nPARAMETER repeat_penalty 1.0",
        _comment(
            _ABOUT_ROOM.format(
                prompt=settings["max_prompt_length"], answer=settings["max_completion_length"]
            )
        )
        + f"\nPARAMETER num_ctx {form.context}"
        + f"\nPARAMETER num_predict {settings['max_completion_length']}",
    ]
    return "\n\n".join(parts) + "\n"


def served_name(adapter_dir: Path) -> str:
    """What servers call the model: the run's name, or the adapter folder's, as Ollama takes it."""
    run = open_run(adapter_dir)
    name = run.path.name if run.config else adapter_dir.resolve().name
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._") or "mine"


def _template(system: str) -> str:
    """Go's template: the system message as text, then the conversation."""
    # What Go or the Modelfile would read as a mark of its own is written as a Go string.
    text = re.sub(r'\{\{|""+', lambda mark: "{{ `" + mark[0] + "` }}", system)
    text = text.replace(TODAY, "{{ currentDate }}", 1)
    return f"<|start|>system<|message|>{text}<|end|>\n{_CONVERSATION}"


def _system(developer: str | None) -> list[str]:
    if developer is None:
        return []
    # The Modelfile has no escapes, and Ollama's reader drops characters that do not print.
    if _QUOTES in developer or not all(c.isprintable() or c in "\n\t" for c in developer):
        lost = "The developer message of training holds characters that no Modelfile can: send it "
        return [_comment(lost + "as system text with every conversation.")]
    comment = _comment("The developer message of training.")
    return [f"{comment}\nSYSTEM {_QUOTES}{developer}{_QUOTES}"]


def _comment(*paragraphs: str) -> str:
    lines = "\n\n".join(paragraphs).splitlines()
    return "\n".join(f"# {line}".rstrip() for line in lines)
