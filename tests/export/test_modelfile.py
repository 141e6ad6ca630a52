"""The Modelfile tells Ollama what the model was trained on, and nothing else."""

from __future__ import annotations

import csv
import datetime
import re
from dataclasses import replace

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptoss_tools.chat.harmony import render
from gptoss_tools.core.publish import write_json
from gptoss_tools.data.decisions import load_table
from gptoss_tools.export.gguf import export_gguf
from gptoss_tools.export.modelfile import modelfile, served_name
from gptoss_tools.export.prompt_form import form_of, training_form
from gptoss_tools.settings import TrainSettings

MESSAGES = [
    {"role": "developer", "content": "Answer [k].\nNothing else."},
    {"role": "user", "content": "hour 3"},
    {"role": "assistant", "content": "[1]"},
    {"role": "user", "content": "hour 4"},
]


def parse(text: str) -> list[tuple[str, str]]:
    """Instructions and values, read as Ollama's parser does: a value ends at white space unless it
    is quoted, then where the quotes end and white space or the file's end follows."""
    found, at = [], 0
    while match := re.compile(r"\s*(?:#[^\n]*\s*)*([A-Za-z]+)[ \t]+").match(text, at):
        name, at = match[1].lower(), match.end()
        assert name in ("from", "template", "system", "parameter"), name
        if name == "parameter":
            key = re.compile(r"(\w+)[ \t]+").match(text, at)
            name, at = f"parameter {key[1]}", key.end()
        if text.startswith('"""', at):
            end = re.compile(r'"""(?=\s|$)').search(text, at + 3)
            found.append((name, text[at + 3 : end.start()]))
            at = end.end()
        else:
            end = re.compile(r"\n|$").search(text, at)
            found.append((name, text[at : end.start()].strip()))
            at = end.end()
    assert re.fullmatch(r"\s*(#[^\n]*\s*)*", text[at:]), text[at:]
    return found


def go_to_jinja(template: str) -> str:
    """Translate the few Go constructs that the Modelfile uses; both trim at `{{-` alike."""
    ends: list[str] = []

    def action(match: re.Match[str]) -> str:
        dash, inner = match[1], match[2].strip()
        if inner.startswith("`"):  # a Go string, written as Python's
            return "{{" + repr(inner[1:-1]) + "}}"
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

    return re.sub(r"\{\{(-?)( `.*?` |.*?)\}\}", action, template)


def fill(text: str, messages: list[dict[str, str]]) -> str:
    """The prompt that Ollama would write, SYSTEM in front unless the caller brings system text."""
    parts = dict(parse(text))
    if "system" in parts and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": parts["system"]}, *messages]
    template = jinja2.Template(go_to_jinja(parts["template"]))
    return template.render(messages=messages, today=datetime.date.today().isoformat())


@pytest.mark.parametrize("first", ["developer", "system"])
@pytest.mark.parametrize("count", [2, 4])
def test_the_template_writes_what_gpt_oss_s_own_chat_template_writes(first, count):
    messages = [MESSAGES[0] | {"role": first}, *MESSAGES[1:count]]
    today = datetime.date.today().isoformat()
    assert fill(modelfile(form_of([], {}), "x"), messages) == render(messages, date=today)
    settings = {"date": "2026-01-01", "reasoning_effort": "high", "model_identity": "A {{ tank }}."}
    pinned = render(
        messages, date="2026-01-01", reasoning_effort="high", model_identity="A {{ tank }}."
    )
    assert fill(modelfile(form_of([], settings), "x"), messages) == pinned


def test_a_user_s_text_alone_gets_no_developer_message():
    today = datetime.date.today().isoformat()
    assert fill(modelfile(form_of([], {}), "x"), MESSAGES[1:2]) == render(MESSAGES[1:2], date=today)


def test_the_prompts_themselves_say_which_date_and_level_they_pin():
    prompts = [
        render(
            [MESSAGES[0], {"role": "user", "content": f"hour {hour}"}],
            date="2026-01-01",
            reasoning_effort="low",
        )
        for hour in range(3)
    ]
    form = form_of(prompts, {"date": "2026-05-05", "reasoning_effort": "high"})
    developer = MESSAGES[0]["content"]
    assert (form.date, form.effort, form.developer) == ("2026-01-01", "low", developer)
    text = modelfile(form, "x")
    assert dict(parse(text))["system"] == developer
    for hour in range(3):
        assert fill(text, [{"role": "user", "content": f"hour {hour}"}]) == prompts[hour]


def test_prompts_without_a_common_developer_text_give_no_system():
    prompts = [
        render([{"role": "developer", "content": text}, MESSAGES[1]], date="2026-01-01")
        for text in ("one", "two")
    ]
    form = form_of([*prompts, "not Harmony at all"], {})
    text = modelfile(form, "x")
    assert form.developer is None and "system" not in dict(parse(text))
    assert "differ in their developer message" in text
    mixed = form_of([prompts[0], render(MESSAGES[1:2], date="2026-01-01")], {})
    assert mixed.developer is None


def test_prompts_of_several_days_are_told():
    prompts = [render(MESSAGES[1:2], date=f"2026-01-0{day}") for day in (2, 1)]
    form = form_of(prompts, {})
    assert form.date == "2026-01-01" and "differ in their system message" in form.notes[0]
    assert "differ in their system message" in modelfile(form, "x")


@given(st.text(st.characters(exclude_categories=["Cs", "Co", "Cn"]), min_size=1, max_size=40))
def test_any_developer_text_survives_or_is_left_out_with_the_reason(text):
    written = modelfile(replace(form_of([], {}), developer=text), "x")
    parts = dict(parse(written))
    if "system" in parts:
        assert parts["system"] == text
    else:
        assert "no Modelfile can" in written
        assert '"""' in text or not all(c.isprintable() or c in "\n\t" for c in text)


def test_parameters_are_those_of_the_run():
    settings = {"temperature": 0.7, "top_p": 0.9, "top_k": 40}
    settings |= {"max_prompt_length": 700, "max_completion_length": 324}
    parts = dict(parse(modelfile(form_of([], settings), "x")))
    assert {key: float(value) for key, value in parts.items() if key.startswith("parameter")} == {
        "parameter temperature": 0.7,
        "parameter top_p": 0.9,
        "parameter top_k": 40,
        "parameter min_p": 0,
        "parameter repeat_penalty": 1,
        "parameter num_ctx": 1024,  # 700 + 324 exactly
        "parameter num_predict": 324,
    }
    settings["max_prompt_length"] = 701
    assert dict(parse(modelfile(form_of([], settings), "x")))["parameter num_ctx"] == "2048"


def make_run(folder, make_adapter, prompts=(), **settings):
    """A run folder as training leaves it, as far as an export looks."""
    made = make_adapter(folder / "adapter")
    resolved = TrainSettings.model_validate(settings).model_dump(mode="json")
    write_json(folder / "config.json", {"settings": resolved})
    with (folder / "completions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "prompt", "completion"])
        writer.writerows([1, prompt, "<|channel|>final<|message|>[0]"] for prompt in prompts)
    return made


def test_an_export_takes_form_and_name_from_its_run(base, make_adapter, tmp_path):
    prompts = [render(MESSAGES[:2], date="2026-01-01", reasoning_effort="low")] * 3
    folder = tmp_path / "Cold Store 3"
    made = make_run(folder, make_adapter, prompts, temperature=0.5, max_completion_length=100)
    assert served_name(made) == "cold-store-3"
    export_gguf(made, base, tmp_path / "out")
    text = (tmp_path / "out" / "Modelfile").read_text()
    parts = dict(parse(text))
    assert "ollama create cold-store-3 -f Modelfile" in text
    assert parts["from"] == "./model.gguf" and parts["system"] == MESSAGES[0]["content"]
    assert parts["parameter temperature"] == "0.5" and parts["parameter num_predict"] == "100"
    assert "Current date: 2026-01-01\n\nReasoning: low\n" in parts["template"]
    assert str(tmp_path) not in text


def test_without_logged_prompts_the_run_s_settings_count(make_adapter, tmp_path):
    made = make_run(tmp_path / "run", make_adapter, date="2026-02-02", reasoning_effort="high")
    (tmp_path / "run" / "completions.csv").unlink()
    form = training_form(made)
    assert (form.date, form.effort, form.developer) == ("2026-02-02", "high", None)
    (tmp_path / "run" / "completions.csv").write_text('step,prompt\n1,"cut off')
    assert training_form(made) == form


def test_an_adapter_of_no_run_gets_the_defaults_and_today_s_date(adapter):
    form = training_form(adapter)
    assert form.date is None and form.effort == "medium" and form.context == 8192
    assert "Current date: {{ currentDate }}" in modelfile(form, served_name(adapter))


def test_the_shipped_modelfile_is_what_an_export_of_the_shipped_table_writes(repository):
    table = load_table(repository / "data" / "train")
    written = modelfile(form_of(table.prompts, {}), "first")
    text = (repository / "Modelfile").read_text(encoding="utf-8")
    about, example = text[: -len(written)], text[-len(written) :]
    assert example == written
    assert all(line.startswith("#") or not line for line in about.splitlines())
    parts = dict(parse(text))
    assert set(parts) >= {"from", "template", "system"} and "adapter" not in parts
    messages = [{"role": "user", "content": "hour 3"}]
    assert fill(text, messages).startswith(table.prompts[0].split("<|start|>user")[0])
