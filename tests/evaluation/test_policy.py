"""One engine for answers: the same row gives the same answer, whatever stands beside it."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from gptoss_tools.chat.harmony import GENERATION_PROMPT
from gptoss_tools.errors import DataError, RunFolderError
from gptoss_tools.evaluation.decoding import DrawByRow, generation_config
from gptoss_tools.evaluation.policy import Policy, as_harmony, find_source, load_policy
from gptoss_tools.models.loading import load_model
from gptoss_tools.settings import DecodingSettings, PromptSettings

SHORT = {"max_new_tokens": 12}


def answers(policy, prompts, **decoding):
    found = policy.answer(prompts, 4, decoding=DecodingSettings(**(SHORT | decoding)))
    return sorted(found, key=lambda answer: answer.index)


def test_greedy_answers_do_not_depend_on_the_batch(policy, prompts):
    alone = answers(policy, prompts, batch_size=1)
    together = answers(policy, prompts, batch_size=4)
    assert [a.text for a in alone] == [a.text for a in together]
    assert len({a.text for a in alone}) > 1  # or the test could not fail


def test_sampled_answers_depend_on_the_seed_and_the_row_alone(policy, prompts):
    first = answers(policy, prompts, sample=True, batch_size=3, seed=7)
    again = answers(policy, prompts, sample=True, batch_size=11, seed=7)
    other = answers(policy, prompts, sample=True, batch_size=3, seed=8)
    assert [a.text for a in first] == [a.text for a in again]
    assert [a.text for a in first] != [a.text for a in other]


def test_equal_prompts_in_different_rows_are_drawn_apart(policy, prompts):
    texts = [a.text for a in answers(policy, [prompts[0]] * 6, sample=True)]
    assert len(set(texts)) > 1


def test_draws_follow_the_distribution():
    wanted = torch.tensor([0.5, 0.0, 0.2, 0.3])
    rows = 4000
    draw = DrawByRow(seed=3, rows=range(rows), steps=1, prompt_length=5)
    chosen = draw(torch.zeros(rows, 5), wanted.log().expand(rows, 4)).argmax(dim=1)
    share = torch.bincount(chosen, minlength=4) / rows
    # Three standard deviations of a share of 4000 draws: 3 * sqrt(0.25 / 4000) = 0.024.
    assert torch.allclose(share, wanted, atol=0.024)
    assert share[1] == 0


def test_top_k_of_one_is_the_greedy_answer(policy, prompts):
    greedy = [a.text for a in answers(policy, prompts)]
    assert [a.text for a in answers(policy, prompts, sample=True, top_k=1)] == greedy


def test_a_stream_gives_the_same_tokens_as_a_batch(policy, prompts):
    for sample in (False, True):
        decoding = DecodingSettings(sample=sample, **SHORT)
        whole = next(policy.answer([prompts[2]], 4, decoding=decoding))
        stream = policy.stream(prompts[2], 4, decoding=decoding)
        list(stream)
        assert stream.answer.text == whole.text
        assert stream.answer.decision == whole.decision


def test_a_stream_that_is_left_early_stops_its_generation(policy, prompts):
    from gptoss_tools.evaluation.decoding import stream_tokens

    decoding = DecodingSettings(max_new_tokens=100_000)
    encoded = policy.tokenizer(prompts[0])["input_ids"]
    tokens = stream_tokens(lambda **more: policy._call([encoded], [0], decoding, **more))
    next(tokens)
    tokens.close()  # returns only because the thread ended


def test_an_error_inside_a_stream_reaches_the_reader(policy):
    from gptoss_tools.evaluation.decoding import stream_tokens

    def fail(**_):
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        list(stream_tokens(fail))


def test_all_three_ends_of_a_turn_stop_the_generation(policy):
    convert = policy.tokenizer.convert_tokens_to_ids
    ends = {convert(f"<|{name}|>") for name in ("return", "endoftext", "call")}
    assert set(generation_config(policy.chat, 5).eos_token_id) == ends


def test_streamed_text_is_told_apart_by_channel(policy):
    text = (
        "<|channel|>analysis<|message|>wärmer 日本<|end|><|start|>assistant"
        "<|channel|>final<|message|>[2]<|return|>"
    )
    reader = policy.chat.reader()
    pieces = [reader.push(token) for token in policy.tokenizer(text)["input_ids"]]
    said: dict[str, str] = {}
    for channel, piece in filter(None, pieces):
        said[channel] = said.get(channel, "") + piece
    assert said == {"analysis": "wärmer 日本", "final": "[2]"}
    assert not any("\ufffd" in piece for _, piece in filter(None, pieces))


def test_prompts_of_every_form_become_the_same_harmony_text():
    settings = PromptSettings(date="2026-01-01")
    legacy = "system: Answer [k].\nuser: hour 3"
    messages = [
        {"role": "developer", "content": "Answer [k]."},
        {"role": "user", "content": "hour 3"},
    ]
    text = as_harmony(legacy, settings)
    assert text == as_harmony(messages, settings)
    assert text == as_harmony(text + "\n", settings)  # an editor's last line end
    assert text == as_harmony(text.removesuffix(GENERATION_PROMPT), settings)


@pytest.mark.parametrize("ending", ["<|start|>user", "<|start|>assistant<|channel|>final"])
def test_a_harmony_prompt_with_another_end_is_refused(ending, prompts):
    with pytest.raises(DataError, match="ends in"):
        as_harmony(prompts[0].removesuffix(GENERATION_PROMPT) + ending)


def test_the_prompt_at_fault_is_named_before_anything_is_generated(policy, prompts):
    with pytest.raises(DataError, match="prompt 2: the prompt is empty"):
        next(policy.answer([prompts[0], "  "], 4))


def test_targets_are_told_apart(untrained, tmp_path):
    assert find_source("tiny").adapter is None
    assert find_source("openai/gpt-oss-20b").base == "openai/gpt-oss-20b"
    assert find_source(untrained).base == str(untrained)
    for missing in ("runs/latest", "runs/none", "exports/none", tmp_path / "none"):
        with pytest.raises(RunFolderError):
            find_source(missing)
    run = tmp_path / "runs" / "one"
    adapter = run / "adapter"
    adapter.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"settings": {"model": "tiny"}}))
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "/gone/cache/tiny"})
    )
    for target in (run, adapter):
        source = find_source(target)
        assert (source.base, source.adapter.name) == ("tiny", "adapter")
    assert find_source(run, base="other/model").base == "other/model"


def test_an_adapter_changes_the_answers_of_its_base(untrained, policy, prompts, tmp_path):
    model = get_peft_model(load_model(untrained), LoraConfig(r=4, target_modules=["o_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "adapter")
    adapted = load_policy(tmp_path / "adapter")
    assert adapted.source.base == str(untrained)
    assert [a.text for a in answers(adapted, prompts)] != [a.text for a in answers(policy, prompts)]


class Reciter:
    """Stands where the model stands and says the same final message to every prompt."""

    def __init__(self, policy, said):
        tokenizer, self.config, self.device = policy.tokenizer, policy.model.config, "cpu"
        text = f"<|channel|>final<|message|>{said}<|return|>"
        self.answer = torch.tensor(tokenizer(text)["input_ids"])

    def generate(self, input_ids, **_):
        return torch.cat([input_ids, self.answer.expand(len(input_ids), -1)], dim=1)


def test_every_row_is_read_with_its_own_names(policy, prompts):
    reciter = Policy(Reciter(policy, "[High]"), policy.tokenizer, policy.source)
    names = [["low", "high"], ["high", "mid", "low"], ["on", "off"], []]
    found = sorted(reciter.answer(prompts[:4], [2, 3, 2, 4], names=names), key=lambda a: a.index)
    assert [(a.decision.action, str(a.decision.reason)) for a in found] == [
        (1, "ok"),
        (0, "ok"),
        (None, "out_of_range"),
        (None, "unparsable"),  # a numbered row wants [k]
    ]
    with pytest.raises(DataError, match="4 lists of names were given for 2 prompts"):
        next(reciter.answer(prompts[:2], names=names))


def test_a_stream_reads_names_too(policy, prompts):
    reciter = Policy(Reciter(policy, "high"), policy.tokenizer, policy.source)
    reciter._call = lambda prompts, rows, decoding, streamer, **_: (  # what generate hands over
        streamer.put(torch.tensor(prompts)),
        streamer.put(reciter.model.answer),
        streamer.end(),
    )
    stream = reciter.stream(prompts[0], 2, names=["low", "high"])
    assert "".join(piece for _, piece in stream) == "high"
    assert stream.answer.decision.action == 1
