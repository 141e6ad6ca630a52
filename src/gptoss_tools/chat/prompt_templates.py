"""Templates with headings: how an instruction reads where there is no chat template.

alpaca, moe_peft  the published formats; answers follow `### Response:` or `### Output:`
plain             instruction and input as they are
FILE.json         an object with `prompt_input`, `prompt_no_input` and `response_split`
"""

from __future__ import annotations

import json
import string
from dataclasses import dataclass
from pathlib import Path

from gptoss_tools.errors import ConfigError, first_line

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Template:
    """Two prompts, with and without an input, and the text after which the answer begins."""

    prompt_input: str
    prompt_no_input: str
    response_split: str

    def generate_prompt(self, instruction: str, input: str = "", label: str = "") -> str:
        """The prompt, followed by the answer `label` if there is one."""
        if input:
            return self.prompt_input.format(instruction=instruction, input=input) + label
        return self.prompt_no_input.format(instruction=instruction) + label

    def get_response(self, text: str) -> str:
        """The answer in a text that begins with the prompt; the text itself without the mark."""
        mark = self.response_split
        return (text.split(mark, 1)[-1] if mark else text).strip()


def load_template(name: str) -> Template:
    """A template by its name here or its file; ConfigError naming what is wrong with it."""
    path = TEMPLATES / f"{name}.json"
    if not path.is_file():
        path = Path(name)
        if path.suffix != ".json":
            known = ", ".join(sorted(p.stem for p in TEMPLATES.glob("*.json")))
            raise ConfigError(
                f"prompt_template {name!r} is unknown", hint=f"auto, chat, {known}, or FILE.json"
            )
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"prompt_template {path} cannot be read: {first_line(error)}") from None
    wanted = {"prompt_input": {"instruction", "input"}, "prompt_no_input": {"instruction"}}
    names = [*wanted, "response_split"]
    if not isinstance(entry, dict) or not all(isinstance(entry.get(n), str) for n in names):
        raise ConfigError(f"prompt_template {path} must hold the texts {', '.join(names)}")
    for key, fields in wanted.items():
        try:
            found = {
                name for _, name, _, _ in string.Formatter().parse(entry[key]) if name is not None
            }
        except ValueError as error:
            raise ConfigError(
                f"prompt_template {path}, {key}: {error}", hint="write {{ for {"
            ) from None
        if found != fields:
            shown = " and ".join(f"{{{name}}}" for name in sorted(fields, reverse=True))
            raise ConfigError(f"prompt_template {path}, {key} must name {shown}, and nothing else")
        if entry["response_split"] not in entry[key]:
            raise ConfigError(f"prompt_template {path}: {key} does not hold the response_split")
    return Template(*(entry[name] for name in names))
