"""A chat model's own template writes its prompts, and its answers are read up to their end."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

import chat_lab as lab
from gptoss_tools.chat.actions import Reason, parse_action
from gptoss_tools.chat.completions import Message
from gptoss_tools.chat.families import HarmonyChat, HarmonyPrompts, chat_of
from gptoss_tools.chat.harmony import render
from gptoss_tools.chat.harmony_reading import read_harmony
from gptoss_tools.chat.template_chat import TemplateChat
from gptoss_tools.errors import ConfigError, DataError

DAY = "2025-01-31"
TOLD = [
    {"role": "system", "content": "Answer [k]."},
    {"role": "user", "content": "hour 3"},
]
PREFILLED = lab.QWEN.replace("assistant\n' }}", "assistant\n<think>\n' }}")


def chat(family="qwen", template=None, **options) -> TemplateChat:
    made = chat_of(lab.tokenizer(family, template), date=DAY, **options)
    assert isinstance(made, TemplateChat)
    return made


def ids(made: TemplateChat, text: str) -> list[int]:
    return made.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_prompt_is_what_the_model_s_own_template_writes_with_the_date_pinned():
    assert chat("llama").prompt(TOLD) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Today Date: 31 Jan 2025\n\nAnswer [k].<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhour 3<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert chat().prompt(TOLD) == (
        "<|im_start|>system\nAnswer [k].<|im_end|>\n<|im_start|>user\nhour 3<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_a_prompt_of_every_form_is_the_same_text(family):
    made = chat(family)
    text = made.prompt(TOLD)
    developer = [{**TOLD[0], "role": "developer"}, TOLD[1]]  # gpt-oss's name for it
    assert made.prompt(developer) == text
    assert made.of_text("system: Answer [k].\nuser: hour 3") == text
    assert made.of_text(render(developer, date="1999-01-01"), from_table=True) == text
    assert made.of_text(text, from_table=True) == text


def test_what_a_template_leaves_out_or_refuses_is_named():
    silent = (
        "{% for m in messages %}{% if m.role != 'system' %}U: {{ m.content }}\n"
        "{% endif %}{% endfor %}A:"
    )
    with pytest.raises(DataError, match=r"leaves out message 1 \(system\)"):
        chat(template=silent).prompt(TOLD)
    assert chat(template=silent).prompt(TOLD[1:]) == "U: hour 3\nA:"
    strict = silent.replace(
        "{% if", "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% if", 1
    )
    with pytest.raises(DataError, match="refuses the messages: no system"):
        chat(template=strict).prompt(TOLD)
    with pytest.raises(DataError, match=r"leaves out message 1 \(developer\)"):
        chat(template=silent).of_text("system: Answer [k].\nuser: hour 3")


def test_a_text_that_occurs_in_another_does_not_stand_for_a_message_left_out():
    silent = "{{ messages[1].content }} A:"
    with pytest.raises(DataError, match=r"leaves out message 1"):
        TemplateChat.prompt(
            chat(template="{{ messages[-1].content }} A:"),
            [{"role": "system", "content": "hour"}, {"role": "user", "content": "hour 3"}],
        )
    with pytest.raises(ConfigError, match="cannot be asked anything"):
        chat(template=silent)


def test_special_tokens_and_messages_without_text_are_refused():
    made = chat()
    for content in ("a<|im_end|>b", "<|endoftext|>"):
        with pytest.raises(DataError, match=r"message 1 \(user\) contains <\|"):
            made.prompt([{"role": "user", "content": content}])
    assert "<|eot_id|>" in made.prompt([{"role": "user", "content": "<|eot_id|>"}])  # a Llama's
    with pytest.raises(DataError, match="is not text"):
        made.prompt([{"role": "user", "content": 3}])
    with pytest.raises(DataError, match="unknown role 'judge'"):
        made.prompt([{"role": "judge", "content": "x"}])
    with pytest.raises(DataError, match="no messages"):
        made.prompt([])


def test_tokenizers_that_no_one_can_talk_to_are_refused():
    base = lab.tokenizer()
    base.chat_template = None
    with pytest.raises(ConfigError, match="neither gpt-oss's tokens nor a chat template") as caught:
        chat_of(base)
    assert "train-sft" in caught.value.hint
    with pytest.raises(ConfigError, match="does not say where an answer begins"):
        chat(template="{{ messages[0].content }}")
    endless = lab.tokenizer("qwen", "{{ messages[0].content }} A:")
    endless.eos_token = None
    with pytest.raises(ConfigError, match="no token ends an answer"):
        chat_of(endless)
    with pytest.raises(ConfigError, match="has no place for it"):
        chat_of(lab.tokenizer(), model_identity="You are Joe.")
    with pytest.raises(ConfigError, match="is not a day"):
        chat_of(lab.tokenizer(), date="31.1.")


def test_an_answer_ends_at_the_template_s_end_of_turn_and_at_every_end_of_text():
    known = lab.tokenizer("llama")
    eot, end, begin = known.convert_tokens_to_ids(
        ["<|eot_id|>", "<|end_of_text|>", "<|begin_of_text|>"]
    )
    assert chat("llama").stops == {eot: "return"}
    known.eos_token = "<|end_of_text|>"
    assert chat_of(known).stops == {eot: "return", end: "endoftext"}
    listed = GenerationConfig(eos_token_id=[end, begin])
    assert chat_of(known, generation_config=listed).stops == {
        eot: "return",
        end: "endoftext",
        begin: "endoftext",
    }
    assert chat_of(known, generation_config=GenerationConfig(eos_token_id=begin)).stops[begin]
    assert chat_of(known).pad_token == "<|end_of_text|>"  # it has none of its own
    assert chat().pad_token == "<|endoftext|>"


def test_an_answer_is_everything_up_to_the_first_end():
    made = chat("llama")
    (eot,) = made.stops
    found = made.parse([*ids(made, "[2]"), eot, *ids(made, "[0]")])
    assert (found.final, found.stop) == ("[2]", "return")
    assert parse_action(found, 3).action == 2
    cut = made.parse(ids(made, "[2]"))
    assert cut.stop == "none" and not cut.messages[0].complete
    assert parse_action(cut, 3).reason is Reason.TRUNCATED
    assert made.parse([eot]).final == ""
    assert made.parse([*ids(made, "<think>x</think>[1]"), eot]).final == "<think>x</think>[1]"


def test_what_is_thought_is_no_answer():
    made = chat()
    opens, closes, end = made.tokenizer.convert_tokens_to_ids(["<think>", "</think>", "<|im_end|>"])
    zero, one = ids(made, "[0]"), ids(made, "[1]")
    line = ids(made, "\n")
    found = made.parse([opens, *line, *zero, *line, closes, *line, *line, *one, end])
    assert found.messages == (Message("analysis", "[0]"), Message("final", "[1]"))
    assert parse_action(found, 2).action == 1
    # A thought that never ends leaves no answer, whatever it holds and whatever came before.
    for more in ([opens, *zero, end], [*one, opens, *zero, end]):
        assert parse_action(made.parse(more), 2).reason is Reason.NO_FINAL
    assert parse_action(made.parse([opens, *zero]), 2).reason is Reason.TRUNCATED
    # What surrounds a thought is one answer, and nothing before a closing tag is one.
    assert made.parse([*zero, opens, closes, *one, end]).final == "[0][1]"
    assert made.parse([*zero, closes, *one, end]).final == "[1]"
    # Tags that are spelled out are not the model's tags.
    spelled = [i for c in "<think>" for i in ids(made, c)]
    assert made.parse([*spelled, *one, end]).final == "<think>[1]"


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_a_thought_that_the_prompt_begins_goes_on_in_the_answer(family):
    template = PREFILLED if family == "qwen" else PREFILLED.replace("im_end", "eot_id")
    made = chat(family, template)
    assert made.thinking and (made.tags is None) == (family == "llama")
    end = next(iter(made.stops))
    found = made.parse([*ids(made, "so [0]\n</think>\n\n[1]"), end])
    assert found.channel_text("analysis") == "so [0]" and found.final == "[1]"
    assert made.parse([*ids(made, "so [0]"), end]).final is None
    quiet = chat(template=lab.QWEN.replace("is defined and not enable_thinking", "is undefined"))
    assert not quiet.thinking, "the template has closed the thought itself"


def test_no_effort_turns_a_template_s_switch_for_thinking():
    quiet, usual = chat(reasoning_effort="none"), chat()
    shut = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert quiet.prompt(TOLD, reasoning_effort="none").endswith(shut) and not quiet.thinking
    assert usual.prompt(TOLD).endswith("<|im_start|>assistant\n")
    assert quiet.of_text(quiet.prompt(TOLD, reasoning_effort="none")).count("hour 3") == 1
    end = next(iter(quiet.stops))
    template = lab.QWEN.replace(
        "{%- endif %}{%- endif %}", "{%- else %}{{- '<think>\n' }}{%- endif %}{%- endif %}"
    )
    said = [*ids(usual, "[1]"), end]
    assert chat(template=template).parse(said).final is None  # it still thinks
    assert chat(template=template, reasoning_effort="none").parse(said).final == "[1]"
    with pytest.raises(ConfigError, match="no switch for it"):
        chat("llama", reasoning_effort="none")


TRLS = Path(find_spec("trl").origin).parent / "chat_templates"


@pytest.mark.parametrize(
    ("name", "end", "thinking"),
    [
        ("deepseek_r1_distill", "<\uff5cend\u2581of\u2581sentence\uff5c>", True),
        ("gemma3", "<end_of_turn>", False),
        ("llama3_1", "<|eot_id|>", False),
        ("phi3_5", "<|end|>", False),
        ("qwen2_5", "<|im_end|>", False),
        ("qwen3", "<|im_end|>", False),
        ("qwen3_6", "<|im_end|>", True),
    ],
)
def test_published_templates_are_understood(name, end, thinking):
    known = lab.tokenizer("qwen", (TRLS / f"{name}.jinja").read_text(encoding="utf-8"))
    known.add_special_tokens({"additional_special_tokens": [end], "bos_token": "<|endoftext|>"})
    made = chat_of(known, date=DAY)
    assert known.convert_ids_to_tokens(next(iter(made.stops))) == end
    assert made.thinking is thinking
    talk = [*TOLD, {"role": "assistant", "content": "[1]"}, {"role": "user", "content": "hour 4"}]
    for messages in (TOLD, talk):
        text = made.prompt(messages)
        assert text.endswith(made.tail) and made.of_text(text) == text
        assert all(message["content"] in text for message in messages)


@pytest.mark.parametrize("family", ["llama", "qwen"])
@settings(max_examples=60, deadline=None)
@given(thought=st.text(max_size=12), said=st.text(max_size=12))
def test_a_streamed_answer_is_the_parsed_one(family, thought, said):
    template = PREFILLED if family == "qwen" else PREFILLED.replace("im_end", "eot_id")
    made = CHATS.setdefault(family, chat(family, template))
    if "<" in thought + said:
        return
    tokens = [*ids(made, f"{thought}</think>{said}"), next(iter(made.stops))]
    reader, heard = made.reader(), {"analysis": "", "final": ""}
    for piece in filter(None, [*map(reader.push, tokens), reader.close()]):
        heard[piece[0]] += piece[1]
    found = made.parse(tokens)
    assert heard["analysis"].strip() == found.channel_text("analysis")
    assert heard["final"].lstrip() == found.final


CHATS: dict[str, TemplateChat] = {}


def test_gpt_oss_keeps_its_own_way():
    class Tokenizer:
        unk_token_id = None

        def convert_tokens_to_ids(self, name):
            names = [
                "start",
                "end",
                "message",
                "channel",
                "constrain",
                "return",
                "call",
                "endoftext",
            ]
            return names.index(name.strip("<|>")) + 10

    made = chat_of(Tokenizer(), date=DAY)
    assert isinstance(made, HarmonyChat)
    assert made.prompt(TOLD, reasoning_effort="low") == render(
        TOLD, date=DAY, reasoning_effort="low"
    )
    assert list(made.stops) == [15, 16, 17] and made.pad_id == 17
    with pytest.raises(DataError, match="not in Harmony form"):
        made.of_text("hour 3", from_table=True)
    with pytest.raises(ConfigError, match="gpt-oss always thinks"):
        chat_of(Tokenizer(), reasoning_effort="none")
    assert made.of_text("user: hour 3") == made.prompt(TOLD[1:])


plain = st.text(alphabet=st.characters(exclude_characters="|\r"), min_size=1, max_size=30)


@settings(max_examples=100, deadline=None)
@given(told=st.none() | plain, turns=st.lists(st.tuples(plain, plain), max_size=3), last=plain)
def test_a_rendered_prompt_is_read_back_and_renders_to_itself(told, turns, last):
    messages = [] if told is None else [{"role": "developer", "content": told}]
    for question, answer in turns:
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    messages.append({"role": "user", "content": last})
    prompts = HarmonyPrompts(DAY)
    text = prompts.prompt(messages)
    assert read_harmony(text) == messages
    assert prompts.prompt(read_harmony(text)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<|start|>user<|message|>a<|end|><|start|>assistant<|channel|>final", "no plain message"),
        ("<|start|>developer<|message|># Tools\n\nx<|end|>", "holds more than instructions"),
        ("<|start|>assistant<|channel|>analysis<|message|>a<|end|>", "in the channel analysis"),
        ("<|start|>assistant to=f<|channel|>commentary<|message|>{}<|call|>", "no plain message"),
        ("<|start|>assistant", "holds no message"),
    ],
)
def test_harmony_that_no_other_model_reads_is_refused_with_a_way_out(text, reason):
    with pytest.raises(DataError, match=reason) as caught:
        read_harmony(text)
    assert "before gptoss convert-harmony" in caught.value.hint
