"""Legacy text to messages, and messages to exactly what gpt-oss's chat template gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_tools.chat.harmony import chat_template, find_special, is_harmony, parse_legacy, render
from gptoss_tools.errors import ConfigError, DataError

# Other work on the machine must not fail a property.
unhurried = settings(deadline=None)

DATE = "2025-11-06"
CONTENT = st.text(st.characters(exclude_characters="|", exclude_categories=("Cs",)), max_size=40)
LINE = st.text(st.characters(exclude_characters=":\r\n", exclude_categories=("Cs",)), max_size=20)


@pytest.fixture(scope="module")
def template_of_transformers():
    """transformers' own rendering of the same template, its clock replaced by a fixed date."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0})))
    tokenizer.chat_template = chat_template().replace('strftime_now("%Y-%m-%d")', f'"{DATE}"')

    def apply(messages, add_generation_prompt=True, **options):
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt, **options
        )

    return apply


@unhurried
@given(
    first=st.sampled_from([None, "system", "developer"]),
    contents=st.lists(CONTENT, min_size=1, max_size=3),
    effort=st.sampled_from(["low", "medium", "high"]),
    identity=st.none() | CONTENT,
    prompt=st.booleans(),
)
def test_prompts_are_byte_for_byte_those_of_transformers(
    template_of_transformers, first, contents, effort, identity, prompt
):
    roles = ["user"] * len(contents)
    if first:
        roles[0] = first
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    options = {"reasoning_effort": effort}
    if identity is not None:
        options["model_identity"] = identity
    expected = template_of_transformers(messages, prompt, **options)
    assert render(messages, date=DATE, add_generation_prompt=prompt, **options) == expected


@unhurried
@given(question=CONTENT, thinking=st.none() | CONTENT, answer=CONTENT, last=st.booleans())
def test_answers_in_the_conversation_are_rendered_as_transformers_does(
    template_of_transformers, question, thinking, answer, last
):
    reply = {"role": "assistant", "content": answer}
    if thinking is not None:
        reply["thinking"] = thinking
    messages = [{"role": "user", "content": question}, reply]
    if not last:
        messages.append({"role": "user", "content": "and then?"})
    expected = template_of_transformers(messages, not last)
    assert render(messages, date=DATE, add_generation_prompt=not last) == expected


def test_the_rendering_of_one_decision_is_the_known_text():
    # Written out by hand after the format in openai/harmony's docs/format.md.
    messages = parse_legacy("system: Answer [k].\nuser: Which?")
    assert render(messages, date="2025-01-02", reasoning_effort="low") == (
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
        "Knowledge cutoff: 2024-06\nCurrent date: 2025-01-02\n\nReasoning: low\n\n"
        "# Valid channels: analysis, commentary, final. Channel must be included for every"
        " message.<|end|><|start|>developer<|message|># Instructions\n\nAnswer [k].\n\n<|end|>"
        "<|start|>user<|message|>Which?<|end|><|start|>assistant"
    )


def test_rendering_needs_neither_trl_nor_transformers_nor_torch_in_memory():
    code = (
        "import sys; from gptoss_tools.chat.harmony import render;"
        "render([{'role': 'user', 'content': 'x'}], date='2025-01-01');"
        "print([m for m in ('trl', 'transformers', 'torch', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("just a question", [("user", "just a question")]),
        ("SYSTEM: be brief\n  User:  go\non", [("developer", "be brief"), ("user", "go\non")]),
        ("system:\nrules\n\nuser:\nstate\n", [("developer", "rules"), ("user", "state")]),
        ("before\nsystem: s\nuser: after", [("developer", "s"), ("user", "before\nafter")]),
        ("user: a\nuser: b\nsystem: s", [("developer", "s"), ("user", "a\nb")]),
        ("system: only rules", [("user", "system: only rules")]),
        ("system: \nuser: go", [("user", "go")]),
        ("system: s\r\nuser: a\r\nb\r\n", [("developer", "s"), ("user", "a\nb")]),
        ("the user: said\nmy system: x", [("user", "the user: said\nmy system: x")]),
    ],
)
def test_legacy_text_is_split_at_markers_that_start_a_line(text, expected):
    assert [(m["role"], m["content"]) for m in parse_legacy(text)] == expected


@unhurried
@given(system=st.lists(LINE, min_size=1), user=st.lists(LINE, min_size=1), data=st.data())
def test_what_is_joined_with_markers_comes_apart_again(system, user, data):
    rules, state = "\n".join(system), "\n".join(user)
    markers = data.draw(st.sampled_from([("system:", "user:"), ("System: ", "USER:\n")]))
    messages = parse_legacy(f"{markers[0]}{rules}\n{markers[1]}{state}")
    found = {m["role"]: m["content"] for m in messages}
    if state.strip():
        assert found["user"] == state.strip()
        assert found.get("developer", "") == rules.strip()
    else:
        assert list(found) == ["user"]


@unhurried
@given(CONTENT, CONTENT)
def test_rendered_prompts_are_recognised_and_plain_ones_are_not(system, user):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    assert is_harmony(render(messages, date=DATE))
    assert not is_harmony(user)
    assert not is_harmony(f"{user}<|start|>user<|message|>") or not user.strip()


def test_text_that_only_looks_like_harmony_is_not():
    assert not is_harmony("<|start|> user")
    assert not is_harmony('"<|start|>system<|message|>x<|end|>"')
    assert is_harmony("<|start|>assistant<|channel|>final<|message|>x")


def test_special_tokens_are_found_and_refused_in_any_content():
    assert find_special("a <|end|> b") == "<|end|>"
    assert find_special("a <| end |> b || <|> c") is None
    with pytest.raises(DataError, match=r"message 1 \(user\) contains <\|end\|>"):
        render([{"role": "user", "content": "a<|end|>b"}], date=DATE)
    with pytest.raises(ConfigError, match="model_identity"):
        render([{"role": "user", "content": "a"}], date=DATE, model_identity="<|end|>")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "no messages"),
        ([{"role": "narrator", "content": "x"}], "unknown role 'narrator'"),
        ([{"role": "user", "content": None}], "is not text"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "is not text"),
        ([{"role": "user", "content": "x"}, {"role": "system", "content": "y"}], "drops elsewhere"),
        ([{"role": "tool", "content": "x"}], "chat template refuses"),
    ],
)
def test_messages_the_template_would_drop_or_break_are_errors(messages, message):
    with pytest.raises(DataError, match=message):
        render(messages, date=DATE)


@pytest.mark.parametrize("date", ["today", "2025-1-2", "20250102", "2025-02-30", ""])
def test_a_date_that_is_no_day_is_refused(date):
    with pytest.raises(ConfigError, match="is not a day"):
        render([{"role": "user", "content": "x"}], date=date)


def test_an_unknown_reasoning_effort_is_refused():
    with pytest.raises(ConfigError, match="unknown to gpt-oss"):
        render([{"role": "user", "content": "x"}], date=DATE, reasoning_effort="ultra")


def test_messages_survive_json():
    messages = parse_legacy("system: é\nuser: \u2028 x")
    again = json.loads(json.dumps(messages, ensure_ascii=False))
    assert render(again, date=DATE) == render(messages, date=DATE)


@pytest.mark.parametrize("rules", ["", "Answer [k].\n\n"])
def test_openai_harmony_renders_the_same_prompt(rules):
    # The template ends instructions with a blank line of its own, hence the one in the library's.
    if not os.environ.get("TIKTOKEN_ENCODINGS_BASE"):
        pytest.skip("openai-harmony needs its vocabulary file: set TIKTOKEN_ENCODINGS_BASE")
    import openai_harmony as oh

    system = oh.SystemContent.new().with_conversation_start_date(DATE)
    theirs = [oh.Message.from_role_and_content(oh.Role.SYSTEM, system)]
    ours = [{"role": "user", "content": "Which?"}]
    if rules:
        developer = oh.DeveloperContent.new().with_instructions(rules)
        theirs.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, developer))
        ours.insert(0, {"role": "developer", "content": rules.removesuffix("\n\n")})
    theirs.append(oh.Message.from_role_and_content(oh.Role.USER, "Which?"))
    encoding = oh.load_harmony_encoding("HarmonyGptOss")
    conversation = oh.Conversation.from_messages(theirs)
    ids = encoding.render_conversation_for_completion(conversation, oh.Role.ASSISTANT)
    assert encoding.decode(ids) == render(ours, date=DATE)
