"""Completion tokens to messages: the table of cases, and garbage."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptoss_tools.chat.completions import (
    Completion,
    HarmonyTokens,
    Message,
    parse_completion,
    split_text,
)
from gptoss_tools.errors import ConfigError

# Other work on the machine must not fail a property.
unhurried = settings(deadline=None)

IDS = HarmonyTokens(
    start=200006,
    end=200007,
    message=200008,
    channel=200005,
    constrain=200003,
    return_=200002,
    call=200012,
    endoftext=199999,
)
NAMES = {
    200006: "<|start|>",
    200007: "<|end|>",
    200008: "<|message|>",
    200005: "<|channel|>",
    200003: "<|constrain|>",
    200002: "<|return|>",
    200012: "<|call|>",
    199999: "<|endoftext|>",
}
A = "<|channel|>analysis<|message|>"
F = "<|channel|>final<|message|>"
S = "<|start|>assistant"


def decode(ids):
    return "".join(NAMES.get(i) or chr(i) for i in ids)


def encode(text):
    ids = []
    while text:
        for number, name in NAMES.items():
            if text.startswith(name):
                ids.append(number)
                text = text.removeprefix(name)
                break
        else:
            ids.append(ord(text[0]))
            text = text[1:]
    return ids


# completion, channels and contents of its messages, what stopped it, the answer
CASES = [
    (f"{A}hm<|end|>{S}{F}[2]<|return|>", [("analysis", "hm"), ("final", "[2]")], "return", "[2]"),
    (f"{F}[2]<|return|>", [("final", "[2]")], "return", "[2]"),
    (f"{A}hm<|end|>{S}{F}[2", [("analysis", "hm"), ("final", "[2")], "none", "[2"),
    (f"{A}it is [2]", [("analysis", "it is [2]")], "none", None),
    (f"{A}it is [2]<|return|>", [("analysis", "it is [2]")], "return", None),
    ("[1]<|return|>", [(None, "[1]")], "return", None),
    (f"{F}[1]<|end|>", [("final", "[1]")], "end", "[1]"),
    (f"{F}[1]<|end|><|return|>", [("final", "[1]")], "return", "[1]"),
    (f"{F}[1]<|return|><|endoftext|><|endoftext|>", [("final", "[1]")], "return", "[1]"),
    (f"{F}[1]<|endoftext|>", [("final", "[1]")], "endoftext", "[1]"),
    (f"{F}[1]<|end|>{S}{F}[2]<|return|>", [("final", "[1]"), ("final", "[2]")], "return", "[2]"),
    (
        f"{A}hm <|channel|>final<|message|>[2]<|return|>",
        [("analysis", "hm <|channel|>final<|message|>[2]")],
        "return",
        None,
    ),
    (
        "<|channel|>final <|constrain|>json<|message|>[2]<|return|>",
        [("final", "[2]")],
        "return",
        "[2]",
    ),
    (
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        [("commentary", "{}")],
        "call",
        None,
    ),
    (
        f"{A}x<|end|><|start|>user<|channel|>final<|message|>[2]<|return|>",
        [("analysis", "x"), ("final", "[2]")],
        "return",
        None,
    ),
    (f"{F}[1]<|end|>rubbish{F}[2]<|return|>", [("final", "[1]")], "return", "[1]"),
    (
        f"{A}x<|end|>{S}<|channel|>fin",
        [("analysis", "x"), (None, "assistant<|channel|>fin")],
        "none",
        None,
    ),
    (f"{S}{F}[3]<|return|>", [("final", "[3]")], "return", "[3]"),
    ("<|channel|>finale<|message|>[3]<|return|>", [("finale", "[3]")], "return", None),
    ("<|message|>[3]<|return|>", [(None, "[3]")], "return", None),
    ("", [], "none", None),
    ("<|return|>", [], "return", None),
]


@pytest.mark.parametrize(("text", "messages", "stop", "final"), CASES)
def test_a_completion_is_read_by_channel(text, messages, stop, final):
    found = parse_completion(encode(text), IDS, decode)
    assert [(m.channel, m.content) for m in found.messages] == messages
    assert (found.stop, found.final) == (stop, final)


@pytest.mark.parametrize("text", [case[0] for case in CASES])
def test_logged_text_is_read_like_the_tokens(text):
    assert split_text(text) == parse_completion(encode(text), IDS, decode)


def test_header_fields_and_completeness_are_kept():
    found = split_text(f" to=functions.f{A}x<|end|>{S}<|channel|>final json<|message|>y")
    assert found.messages[0] == Message("analysis", "x", recipient="functions.f")
    assert found.messages[1] == Message("final", "y", content_type="json", complete=False)
    assert found.channel_text("analysis") == "x"
    assert found.transcript() == "[analysis] x\n[final] y"


@unhurried
@given(st.lists(st.sampled_from([*NAMES, *map(ord, "assistant final[2] analysis to=\n")])))
def test_no_sequence_of_tokens_breaks_the_reader(ids):
    found = parse_completion(ids, IDS, decode)
    assert isinstance(found, Completion)
    stops = [i for i in ids if i in (200002, 200012, 199999)]
    expected = {200002: "return", 200012: "call", 199999: "endoftext"}[stops[0]] if stops else None
    assert found.stop == expected if stops else found.stop in ("end", "none")


@unhurried
@given(st.text(max_size=30), st.sampled_from(["[0]", "[1] ", "no"]))
def test_the_analysis_never_decides_the_answer(thought, answer):
    text = thought.replace("<|", "")
    assert split_text(f"{A}{text}<|end|>{S}{F}{answer}<|return|>").final == answer
    assert split_text(f"{A}{text}<|return|>").final is None


def test_special_tokens_are_looked_up_by_name():
    class Tokenizer:
        unk_token_id = 0

        def __init__(self, known):
            self.known = known

        def convert_tokens_to_ids(self, token):
            return self.known.get(token, 0)

    known = {name: number for number, name in NAMES.items()}
    assert HarmonyTokens.from_tokenizer(Tokenizer(known)) == IDS
    with pytest.raises(ConfigError, match=r"no <\|call\|> token"):
        HarmonyTokens.from_tokenizer(Tokenizer({k: v for k, v in known.items() if "call" not in k}))


@pytest.mark.parametrize("text", [case[0] for case in CASES])
def test_openai_harmony_reads_the_same_messages(text):
    if not os.environ.get("TIKTOKEN_ENCODINGS_BASE"):
        pytest.skip("openai-harmony needs its vocabulary file: set TIKTOKEN_ENCODINGS_BASE")
    from openai_harmony import HarmonyError, Role, StreamableParser, load_harmony_encoding

    encoding = load_harmony_encoding("HarmonyGptOss")
    ids = encoding.encode(text, allowed_special="all")
    ours = parse_completion(ids, IDS, encoding.decode)
    for position, token in enumerate(ids):
        if token in IDS.stops:
            ids = ids[:position]
            break
    parser = StreamableParser(encoding, role=Role.ASSISTANT, strict=False)
    try:
        for token in ids:
            parser.process(token)
        parser.process_eos()
    except HarmonyError:
        pass  # what was read before the error stands
    theirs = [(m.channel, "".join(c.text for c in m.content)) for m in parser.messages]
    named = [(m.channel, m.content) for m in ours.messages if m.channel is not None]
    assert named == [pair for pair in theirs if pair[0] is not None]
