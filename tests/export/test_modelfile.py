"""The shipped Modelfile: what it tells Ollama is what the model was trained on."""

from __future__ import annotations

import datetime
import re

import jinja2

from gptoss_tools.core.harmony import render
from gptoss_tools.settings import TrainSettings

MESSAGES = [
    {"role": "developer", "content": "Answer [k].\nNothing else."},
    {"role": "user", "content": "hour 3"},
    {"role": "assistant", "content": "[1]"},
    {"role": "user", "content": "hour 4"},
]


def lines(repository) -> list[str]:
    text = (repository / "Modelfile").read_text(encoding="utf-8")
    without_template = re.sub(r'""".*?"""', "...", text, flags=re.DOTALL)
    return [line for line in without_template.splitlines() if line and not line.startswith("#")]


def go_to_jinja(template: str) -> str:
    """Translate the few Go constructs that the Modelfile uses; both trim at `{{-` alike."""
    ends: list[str] = []

    def action(match: re.Match[str]) -> str:
        dash, inner = match[1], match[2].strip()
        condition = re.sub(r'eq \.Role ("\w+")', r"m.role == \1", inner.removeprefix("else "))
        if inner == "range .Messages":
            ends.append("endfor")
            return f"{{%{dash} for m in messages %}}"
        if inner == "end":
            return f"{{%{dash} {ends.pop()} %}}"
        if condition.startswith("if "):
            either = re.fullmatch(r"if or (\(.*?\)) (\(.*?\))", condition)
            condition = f"if {either[1]} or {either[2]}" if either else condition
            if inner.startswith("else "):
                return f"{{%{dash} el{condition} %}}"
            ends.append("endif")
            return f"{{%{dash} {condition} %}}"
        return "{{" + {".Content": "m.content", "currentDate": "today"}[inner] + "}}"

    return re.sub(r"\{\{(-?)(.*?)\}\}", action, template)


def test_the_template_writes_what_gpt_oss_s_own_chat_template_writes(repository):
    text = (repository / "Modelfile").read_text(encoding="utf-8")
    template = go_to_jinja(re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)[1])
    today = datetime.date.today().isoformat()
    for count in (2, 4):
        for first in ("developer", "system"):
            messages = [MESSAGES[0] | {"role": first}, *MESSAGES[1:count]]
            ours = jinja2.Template(template).render(messages=messages, today=today)
            assert ours == render(messages, date=today)
    only_user = jinja2.Template(template).render(messages=MESSAGES[1:2], today=today)
    assert only_user == render(MESSAGES[1:2], date=today)


def test_it_takes_one_gguf_and_no_adapter(repository):
    instructions = [line.split()[0] for line in lines(repository)]
    assert "FROM ./model.gguf" in lines(repository)
    assert set(instructions) == {"FROM", "TEMPLATE", "PARAMETER"}


def test_parameters_match_the_defaults_of_training(repository):
    found = dict(line.split()[1:] for line in lines(repository) if line.startswith("PARAMETER"))
    train = {name: field.default for name, field in TrainSettings.model_fields.items()}
    for name in ("temperature", "top_p", "top_k"):
        assert float(found[name]) == train[name]
    assert int(found["num_predict"]) == train["max_completion_length"]
    assert int(found["num_ctx"]) >= train["max_prompt_length"] + train["max_completion_length"]
