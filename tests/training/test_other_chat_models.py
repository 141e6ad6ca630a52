"""Chat models other than gpt-oss go through the same commands, by their own chat templates."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import run_lab
import torch
from transformers import AutoModelForCausalLM, GPT2Config, MistralConfig, Qwen2Config

import chat_lab
from gptoss_tools.chat.families import chat_of
from gptoss_tools.core.runs import open_run
from gptoss_tools.data.decisions import load_table
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.evaluation.policy import load_policy
from gptoss_tools.models.loading import load_model, load_tokenizer
from gptoss_tools.settings import DecodingSettings, ResumeSettings, SftSettings, TrainSettings
from gptoss_tools.training.configuring import build_dataset, make_config
from gptoss_tools.training.grpo import DecisionTrainer
from gptoss_tools.training.train import Interrupted, plan, resume, train

torch.set_num_threads(1)  # sums in one order, whatever the machine
FAMILIES = ("llama", "qwen")


@pytest.fixture(scope="session", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def folder(family, tmp_path_factory) -> Path:
    """A model and a table of prompts as they come, in a form of their own in each row."""
    place = tmp_path_factory.mktemp(family)
    chat_lab.furnish(place / "model", family)
    write_table(place / "table.jsonl")
    return place


def write_table(path: Path, rows: int = 4) -> None:
    told = {"role": "system", "content": "Answer with [k], the number of one action."}
    lines = []
    for row in range(rows):
        prompt = [told, {"role": "user", "content": f"hour {row}, load 120 kW"}]
        values = {"q_action_0": row, "q_action_1": 1.5, "reward_action_0": 0.25}
        lines.append({"prompt": prompt, **values, "reward_action_1": 0.75, "episode": row % 2})
    lines[1]["prompt"] = f"system: {told['content']}\nuser: hour 1, load 120 kW"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def settings(folder: Path, name: str, **changes) -> TrainSettings:
    own = {
        "model": str(folder / "model"),
        "data": [str(folder / "table.jsonl")],
        "output_dir": str(folder / name),
        "date": "2025-01-31",
        "max_steps": 3,
        "save_steps": 1,
        "prompts_per_step": 2,
        "reward": "grpo_lab:hash_reward",
    }
    return TrainSettings(**{**run_lab.SMALL, **own, **changes})


@pytest.fixture(scope="session")
def whole(folder) -> Path:
    """Three steps in one go."""
    return Path(train(settings(folder, "whole")).run)


def completions(run: Path):
    import pandas as pd

    return pd.read_csv(run / "completions.csv")


def test_a_run_writes_prompts_and_reads_answers_as_the_model_does(whole, family):
    rows = completions(whole)
    end = chat_lab.ENDS[family]
    begin = {"llama": "<|begin_of_text|>", "qwen": "<|im_start|>system\n"}[family]
    assert rows["prompt"].str.startswith(begin).all()
    assert rows["prompt"].str.contains("number of one action").all()
    assert set(rows["reason"]) <= {"truncated", "unparsable", "no_final", "ok", "out_of_range"}
    ended = rows["completion"].fillna("").str.contains(end, regex=False)
    assert (rows.loc[~ended, "reason"] == "truncated").any() or ended.all()
    assert (whole / "adapter" / "adapter_model.safetensors").is_file()


def test_two_steps_and_one_more_are_three_steps_to_the_bit(whole, folder):
    def stop(progress):
        if progress.step == 1:  # the signal comes after the record, so one step follows
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(settings(folder, "parts"), on_step=stop)
    parts = folder / "parts"
    assert [c.step for c in open_run(parts).checkpoints()][-1] == 2
    resume(ResumeSettings(run=str(parts)))
    assert run_lab.same_bits(whole / "adapter", parts / "adapter")
    assert (parts / "completions.csv").read_text() != ""
    assert completions(parts)["completion"].equals(completions(whole)["completion"])


def scorer(folder: Path, architecture=None) -> DecisionTrainer:
    """A trainer whose adapter is no longer nothing."""
    wanted = settings(folder, "unused", max_steps=1, share_prompts=True)
    known = load_tokenizer(folder / "model")
    table = load_table(wanted.data, prompts=chat_of(known, date="2025-01-31"))
    data, _ = build_dataset(table, known, wanted)
    base = load_model(folder / "model", device="cpu") if architecture is None else architecture
    made = DecisionTrainer.build(
        wanted,
        model=base,
        tokenizer=known,
        dataset=data,
        args=make_config(wanted, str(folder / "unused"), rows=len(data)),
    )
    with torch.no_grad():
        for name, weight in made.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    return made


def assert_same_scores(made: DecisionTrainer) -> None:
    """Two groups of three ragged completions, scored as they are and with shared prompts."""
    torch.manual_seed(1)
    prompt = torch.randint(0, 250, (2, 9)).repeat_interleave(3, dim=0)
    prompt_mask = torch.ones_like(prompt)
    prompt_mask[:3, :4] = 0
    answer = torch.randint(0, 250, (6, 7))
    answer_mask = (torch.arange(7) < torch.tensor([[7], [3], [1], [5], [7], [2]])).long()
    ids, mask = torch.cat([prompt, answer], 1), torch.cat([prompt_mask, answer_mask], 1)
    found = []
    for made.share_prompts in (False, True):
        logps, entropies, _ = made._get_per_token_logps_and_entropies(
            made.model, ids, mask, 7, compute_entropy=True
        )
        found.append((logps * answer_mask, entropies * answer_mask))
    (logps, entropies), (shared_logps, shared_entropies) = found
    assert logps.abs().sum() > 1
    torch.testing.assert_close(shared_logps, logps, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(shared_entropies, entropies, atol=2e-5, rtol=1e-4)


def test_shared_prompts_score_as_separate_ones_do(folder):
    assert_same_scores(scorer(folder))


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("kind", [MistralConfig, Qwen2Config])
def test_windows_of_other_families_score_alike_with_shared_prompts(folder, kind, window):
    sizes = chat_lab.SIZES | {"vocab_size": len(load_tokenizer(folder / "model"))}
    if kind is Qwen2Config:
        sizes |= {"use_sliding_window": window is not None, "max_window_layers": 1}
    torch.manual_seed(0)
    other = AutoModelForCausalLM.from_config(kind(**sizes, sliding_window=window or 4096))
    assert_same_scores(scorer(folder, other))


def test_a_run_with_shared_prompts_goes_its_steps(folder):
    outcome = train(settings(folder, "shared", share_prompts=True))
    assert outcome.steps == 3 and outcome.adapter.is_dir()


def test_models_that_can_think_are_told_not_to(folder, family):
    held = {"eval_steps": 1, "eval_data": [str(folder / "table.jsonl")], "eval_batch_size": 4}
    wanted = settings(folder, "quiet", max_steps=1, reasoning_effort="none", **held)
    if family == "llama":  # its template has no switch
        with pytest.raises(ConfigError, match="no switch for it"):
            train(wanted)
        return
    outcome = train(wanted)
    assert outcome.regret is not None
    assert completions(outcome.run)["prompt"].str.endswith("<think>\n\n</think>\n\n").all()


def test_shared_prompts_are_refused_where_nobody_has_checked_them(folder, tmp_path):
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=400, n_positions=512)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    load_tokenizer(folder / "model").save_pretrained(tmp_path / "model")
    wanted = settings(folder, "refused", model=str(tmp_path / "model"), share_prompts=True)
    with pytest.raises(ConfigError, match="nobody has checked it for gpt2"):
        train(wanted)


def test_exact_actions_are_refused_where_no_channel_tells_where_answers_begin(folder):
    changes = {"action_gradient": "exact", "reward": "decision", "invalid_reward": "worst"}
    with pytest.raises(ConfigError, match="by gpt-oss's channels"):
        train(settings(folder, "refused", **changes))


def test_answers_are_the_most_likely_tokens_whatever_the_checkpoint_prefers(folder, family):
    policy = load_policy(str(folder / "model"))
    assert policy.model.generation_config.repetition_penalty == 1.3
    text = policy.chat.of_text("system: Be brief.\nuser: hour 3?")
    ids = policy.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    expected: list[int] = []
    with torch.no_grad():
        while len(expected) < 12 and not set(expected) & set(policy.chat.stops):
            expected.append(int(policy.model(ids).logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[expected[-1]]])], dim=1)
    decoding = DecodingSettings(max_new_tokens=12)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hour 3?"},
    ]
    forms = ["system: Be brief.\nuser: hour 3?", messages, text]
    answers = list(policy.answer(forms, 2, decoding=decoding))
    assert [answer.text for answer in answers] == [policy.chat.decode(expected)] * 3
    stream = policy.stream(messages, 2, decoding=decoding)
    said = "".join(piece for _, piece in stream)
    assert stream.answer.text == answers[0].text and said.strip() in stream.answer.text


def test_the_commands_answer_evaluate_and_show(gptoss, whole, folder):
    data = ["--data", str(folder / "table.jsonl")]
    short = ["--max-new-tokens", "6", "--json"]
    code, out, err = gptoss("generate", whole, *data, *short, "--out", "answers.jsonl")
    assert code == 0, err
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(answers) == 4 and all(a["tokens"] <= 6 for a in answers)
    code, out, err = gptoss("generate", folder / "model", "--prompt", "hour 3?", *short[:2])
    assert code == 0, err
    code, out, err = gptoss("test-adapter", whole, *data, "--row", "2", *short)
    assert code == 0 and json.loads(out)["tokens"] <= 6, err
    code, out, err = gptoss("evaluate", whole, *data, *short)
    assert code == 0, err
    found = json.loads(out)
    assert found["n_rows"] == 4 and {p["name"] for p in found["policies"]} >= {"policy", "base"}
    code, out, err = gptoss("export", whole, "--out", "merged", "--json")
    assert code == 0 and json.loads(out)["format"] == "merged", err
    code, out, err = gptoss("verify-export", "merged", "--json")
    assert code == 0, err
    code, out, err = gptoss("test-adapter", whole, *data, "--row", "2", *short)
    said = json.loads(out)["channels"]
    code, out, err = gptoss("test-adapter", "merged", *data, "--row", "2", *short)
    assert code == 0 and json.loads(out)["channels"] == said, err


def test_supervised_training_learns_the_best_actions_in_the_model_s_own_form(
    folder, family, tmp_path
):
    wanted = SftSettings(
        model=str(folder / "model"),
        data=[str(folder / "table.jsonl")],
        output_dir=str(tmp_path / "sft"),
        max_steps=2,
        max_length=256,
        date="2025-01-31",
        device="cpu",
    )
    foreseen = plan(wanted)
    chat = chat_of(load_tokenizer(folder / "model"), date="2025-01-31")
    assert foreseen["first_prompt"] == chat.of_text(
        "system: Answer with [k], the number of one action.\nuser: hour 0, load 120 kW"
    )
    assert foreseen["first_answer"] == f"[1]{chat_lab.ENDS[family]}"  # 1.5 is more than 0
    assert train(wanted).steps == 2


def test_a_plan_loads_no_model_and_asks_no_hub(folder):
    facts = plan(settings(folder, "planned"))
    assert facts["rows"] == 4 and facts["memory_bytes"] > 0 and facts["data_sha256"]
    facts = plan(settings(folder, "elsewhere", model="nobody/nothing"))
    assert facts["rows"] == 4
    assert facts["memory_bytes"] is None and facts["data_sha256"] is None


def test_experts_that_a_model_has_not_are_refused_by_a_plan_too(folder):
    for ask in (plan, train):
        with pytest.raises(ConfigError, match="cannot stay packed in MXFP4: the model holds none"):
            ask(settings(folder, "refused", experts="packed"))


def test_a_base_model_is_refused_before_its_weights_load(folder, tmp_path):
    shutil.copytree(folder / "model", tmp_path / "base")
    for name in ("chat_template.jinja", "model.safetensors"):
        (tmp_path / "base" / name).unlink()
    for ask in (
        lambda: load_policy(str(tmp_path / "base")),
        lambda: train(settings(folder, "refused", model=str(tmp_path / "base"))),
    ):
        with pytest.raises(ConfigError, match="nor a chat template"):
            ask()


def test_a_prompt_that_the_template_cannot_hold_is_named_by_its_row(folder, tmp_path, family):
    rows = (folder / "table.jsonl").read_text().replace("hour 2", chat_lab.ENDS[family])
    (tmp_path / "table.jsonl").write_text(rows)
    with pytest.raises(DataError, match=r"table.jsonl row 3: message 2 \(user\) contains"):
        train(settings(folder, "refused", data=[str(tmp_path / "table.jsonl")]))
