from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from gptoss_tools.chat.harmony import render
from gptoss_tools.chat.prompt_templates import load_template
from gptoss_tools.data.instruction_rows import Conversation, Instruction, Rendered
from gptoss_tools.data.prompter import choose_prompter
from gptoss_tools.errors import ConfigError, DataError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CAPITAL = Instruction("Name the capital.", "France", "Paris")
SUM = Instruction("Add 2 and 2.", "", "4")
TALK = Conversation(
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "So long"},
    )
)
HARMONY = "<|start|>user<|message|>go<|end|><|start|>assistant"


def tokenizer(chat_template=None, eos="<|im_end|>"):
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[])), eos_token=eos
    )
    fast.chat_template = chat_template
    return fast


def prompter(name="auto", chat_template=None, harmony=False, **options):
    return choose_prompter(
        name, tokenizer(chat_template), harmony=harmony, date="2025-01-31", **options
    )


def test_alpaca_writes_the_published_prompt_and_ends_the_answer():
    prompt, answer = prompter("alpaca").pair(CAPITAL)
    assert prompt == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName the capital.\n\n### Input:\nFrance\n\n### Response:\n"
    )
    assert answer == "Paris<|im_end|>"
    prompt, _ = prompter("alpaca").pair(SUM)
    assert "### Input" not in prompt and prompt.endswith("Add 2 and 2.\n\n### Response:\n")


def test_moe_peft_answers_after_output_and_plain_adds_nothing():
    assert prompter("moe_peft").pair(CAPITAL)[0] == (
        "### Instruction:\nName the capital.\n\n### Input:\nFrance\n\n### Output:\n"
    )
    assert prompter("plain").pair(Instruction("2+2", "", " 4")) == ("2+2", " 4<|im_end|>")


@pytest.mark.parametrize("name", ["alpaca", "moe_peft"])
def test_the_answer_is_found_again_in_a_text_that_repeats_the_prompt(name):
    template = load_template(name)
    whole = template.generate_prompt("Add.", "2 and 2", "4\n\n### Instruction: none")
    assert template.get_response(whole) == "4\n\n### Instruction: none"
    assert template.get_response("only an answer") == "only an answer"


def test_braces_in_an_instruction_are_text():
    assert "f{x} {input}" in load_template("alpaca").generate_prompt("f{x} {input}")


def test_a_template_may_be_a_file_of_ones_own(tmp_path):
    own = {
        "prompt_input": "Q: {instruction} ({input})\nA:",
        "prompt_no_input": "Q: {instruction}\nA:",
        "response_split": "A:",
    }
    path = tmp_path / "own.json"
    path.write_text(json.dumps(own), encoding="utf-8")
    assert prompter(str(path)).pair(CAPITAL)[0] == "Q: Name the capital. (France)\nA:"
    for change, complaint in [
        ({"prompt_input": "{instruction}A:"}, "prompt_input must name {instruction} and {input}"),
        ({"prompt_no_input": "{instruction} {x}A:"}, "prompt_no_input must name {instruction}, "),
        ({"prompt_no_input": "{instruction"}, "prompt_no_input: "),
        ({"response_split": "B:"}, "prompt_input does not hold the response_split"),
        ({"response_split": 3}, "must hold the texts"),
    ]:
        path.write_text(json.dumps({**own, **change}), encoding="utf-8")
        with pytest.raises(ConfigError, match=complaint):
            load_template(str(path))
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_template(str(path))
    with pytest.raises(ConfigError, match="'vicuna' is unknown") as caught:
        load_template("vicuna")
    assert "alpaca, moe_peft, plain" in caught.value.hint


def test_auto_is_the_chat_template_where_there_is_one_and_alpaca_elsewhere():
    assert prompter(chat_template=CHATML).pair(SUM)[0].startswith("<|im_start|>user")
    assert prompter().pair(SUM)[0].startswith("Below is")
    assert prompter(harmony=True).pair(SUM)[0].startswith("<|start|>system")
    with pytest.raises(ConfigError, match="the tokenizer has no chat template"):
        prompter("chat")


def test_a_chat_template_gives_prompt_and_answer_up_to_its_end_token():
    chat = prompter(chat_template=CHATML)
    assert chat.pair(CAPITAL) == (
        "<|im_start|>user\nName the capital.\n\nFrance<|im_end|>\n<|im_start|>assistant\n",
        "Paris<|im_end|>",
    )
    prompt, answer = chat.pair(TALK)
    assert prompt.endswith(
        "Hello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )
    assert answer == "So long<|im_end|>"


def test_a_chat_template_prints_the_pinned_date():
    dated = "{{ strftime_now('%d %b %Y') }} " + CHATML
    assert prompter(chat_template=dated).pair(SUM)[0].startswith("31 Jan 2025 <|im_start|>")


def test_chat_templates_that_refuse_or_rewrite_are_data_errors():
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    with pytest.raises(DataError, match="refuses the messages: no system"):
        prompter(chat_template=strict).pair(TALK)
    counting = "{{ messages | length }}{{ messages[-1].content }}"
    with pytest.raises(DataError, match="writes the prompt differently before an answer"):
        prompter(chat_template=counting).pair(SUM)


def test_harmony_answers_in_the_final_channel_as_gpt_oss_s_template_does():
    prompt, answer = prompter(harmony=True).pair(TALK)
    options = {"date": "2025-01-31", "add_generation_prompt": False}
    assert prompt + answer == render(list(TALK.messages), **options)
    assert answer == "<|channel|>final<|message|>So long<|return|>"
    assert "Current date: 2025-01-31" in prompt


def test_harmony_puts_thinking_into_the_analysis_channel_as_gpt_oss_s_template_does():
    messages = (
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "4", "thinking": "two and two"},
    )
    prompt, answer = prompter(harmony=True).pair(Conversation(messages))
    options = {"date": "2025-01-31", "add_generation_prompt": False}
    assert prompt + answer == render(list(messages), **options)
    assert answer.startswith("<|channel|>analysis<|message|>two and two<|end|>")


def test_other_models_get_thinking_under_the_name_their_templates_know():
    thinking = CHATML.replace(
        "{{ m.content }}",
        "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}",
    )
    messages = (
        {"role": "user", "content": "2+2"},
        {"role": "assistant", "content": "4", "thinking": "two and two"},
    )
    _, answer = prompter(chat_template=thinking).pair(Conversation(messages))
    assert answer == "(two and two)4<|im_end|>"
    with pytest.raises(DataError, match="for which this template has no place"):
        prompter("alpaca").pair(Conversation(messages))


def test_harmony_takes_effort_and_identity():
    chat = prompter(harmony=True, reasoning_effort="high", model_identity="You store cold.")
    prompt, _ = chat.pair(SUM)
    assert "You store cold." in prompt and "Reasoning: high" in prompt


def test_rendered_prompts_stay_and_only_gpt_oss_reads_them():
    chat = prompter(harmony=True)
    assert chat.pair(Rendered(HARMONY, "[1]")) == (
        HARMONY,
        "<|channel|>final<|message|>[1]<|return|>",
    )
    said = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>1"
    assert chat.pair(Rendered(HARMONY, said)) == (HARMONY, said + "<|return|>")
    with pytest.raises(DataError, match="which only gpt-oss"):
        prompter("alpaca").pair(Rendered(HARMONY, "[1]"))


def test_a_chat_template_reads_rendered_prompts_back_and_says_their_answer():
    chat = prompter(chat_template=CHATML)
    prompt = "<|im_start|>user\ngo<|im_end|>\n<|im_start|>assistant\n"
    assert chat.pair(Rendered(HARMONY, "[1]")) == (prompt, "[1]<|im_end|>")
    said = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>1"
    assert chat.pair(Rendered(HARMONY, said)) == (prompt, "1<|im_end|>")  # it has no place for hm


def test_special_tokens_in_the_data_are_refused():
    for chat in (prompter("alpaca"), prompter(chat_template=CHATML)):
        with pytest.raises(DataError, match=r"contains <\|im_end\|>"):
            chat.pair(Instruction("a", "", "b<|im_end|>c"))
    with pytest.raises(DataError, match=r"contains <\|return\|>"):
        prompter(harmony=True).pair(Instruction("a", "", "b<|return|>c"))
    with pytest.raises(DataError, match=r"contains <\|end\|>"):
        prompter(harmony=True).pair(Instruction("a<|end|>", "", "b"))


def test_headings_take_one_question_with_what_stands_before_it():
    one = Conversation(TALK.messages[:3])
    prompt, answer = prompter("plain").pair(one)
    assert (prompt, answer) == ("Be brief.\n\nHi", "Hello<|im_end|>")
    with pytest.raises(DataError, match="does not fit a template of one question"):
        prompter("plain").pair(TALK)
