"""From TRL's batched call to decisions, rewards, metrics and records."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import grpo_lab as lab
import pytest

from gptoss_tools.errors import ConfigError, DataError, TrainingError
from gptoss_tools.registry import register
from gptoss_tools.rewards import batch_reward
from gptoss_tools.training.configuring import build_dataset, make_config, phases_of, tokenize
from gptoss_tools.training.rewarding import DecisionReward, InvalidWatch, phase_labels

TOKENIZER = lab.byte_tokenizer()
FINAL = "<|channel|>final<|message|>"
ANSWERS = {
    FINAL + "[1]<|return|>": (1, "ok"),
    f"<|channel|>analysis<|message|>maybe [2]<|end|><|start|>assistant{FINAL}[0]<|return|>": (
        0,
        "ok",
    ),
    "<|channel|>analysis<|message|>surely [2]<|return|>": (None, "no_final"),
    FINAL + "[1]": (None, "truncated"),
    FINAL + "I take [1]<|return|>": (None, "unparsable"),
    FINAL + "[3]<|return|>": (None, "out_of_range"),
}
COLUMNS = {
    "row": 4,
    "n_actions": 3,
    "reward_action_0": 0.1,
    "reward_action_1": 0.7,
    "reward_action_2": 0.2,
    "q_action_0": -5.0,
    "q_action_1": -3.0,
    "q_action_2": None,
}


def call(reward: DecisionReward, answers: list[str], log_metric=None, **changes) -> list:
    columns = {
        name: value if isinstance(value, list) else [value] * len(answers)
        for name, value in (COLUMNS | changes).items()
    }
    return reward(
        prompts=["P"] * len(answers),
        completions=["stripped text, not to be read"] * len(answers),
        completion_ids=tokenize(TOKENIZER, answers),
        log_metric=log_metric,
        trainer_state=object(),
        **columns,
    )


def test_only_the_final_channel_decides_and_every_other_outcome_has_a_reason():
    reward = DecisionReward(TOKENIZER, invalid_reward="mask")
    rewards = call(reward, list(ANSWERS))
    assert [(r["action"], r["reason"]) for r in reward.records] == list(ANSWERS.values())
    assert rewards == [0.7, 0.1, None, None, None, None]


def test_a_number_punishes_invalid_answers():
    rewards = call(DecisionReward(TOKENIZER, invalid_reward=-0.5), list(ANSWERS))
    assert rewards == [0.7, 0.1, -0.5, -0.5, -0.5, -0.5]


def test_an_action_without_a_value_is_masked_even_where_invalid_answers_are_punished():
    reward = DecisionReward(TOKENIZER, invalid_reward=-0.5)
    assert call(reward, [FINAL + "[1]<|return|>"], reward_action_1=None) == [None]
    assert reward.records[0]["reason"] == "ok"


def test_a_record_says_what_was_asked_answered_and_best():
    reward = DecisionReward(TOKENIZER, invalid_reward="mask")
    call(reward, [FINAL + "[0]<|return|>"])
    assert reward.records == [
        {
            "row": 4,
            "prompt": "P",
            "completion": FINAL + "[0]<|return|>",
            "action": 0,
            "reward": 0.1,
            "target_action": 1,
            "reason": "ok",
            "regret": 2.0,  # -3 - -5
            "phase": None,
        }
    ]


def test_shares_by_reason_and_by_action_are_logged():
    logged: dict[str, list[float]] = {}
    call(
        DecisionReward(TOKENIZER, invalid_reward="mask"),
        list(ANSWERS),
        log_metric=lambda name, value: logged.setdefault(name, []).append(value),
    )
    sixth = 1 / 6
    assert logged.pop("regret") == [0.0, 2.0]
    assert {name: values[0] for name, values in logged.items()} == pytest.approx(
        {
            "invalid/share": 4 / 6,
            "invalid/no_final": sixth,
            "invalid/truncated": sixth,
            "invalid/unparsable": sixth,
            "invalid/out_of_range": sixth,
            "masked/share": 4 / 6,
            "action/0": sixth,
            "action/1": sixth,
            "action/2": 0.0,
        }
    )


def test_an_answer_is_read_with_its_rows_names_where_it_has_some():
    reward = DecisionReward(TOKENIZER, invalid_reward="mask")
    answers = [f"{FINAL}{said}<|return|>" for said in ("[Half  Load]", "on", "[1]", "[1]")]
    names = [["off", "half load", "full"], ["off", "on"], ["off", "on"], []]
    rewards = call(reward, answers, actions=names)
    assert [(r["action"], r["reason"]) for r in reward.records] == [
        (1, "ok"),
        (1, "ok"),
        (None, "out_of_range"),
        (1, "ok"),  # a row without names is numbered
    ]
    assert rewards == [0.7, 0.7, None, 0.7]


def phase_metrics(phases: list[str], of_rows: list[str | None]) -> dict[str, list[float]]:
    logged: dict[str, list[float]] = {}
    call(
        DecisionReward(TOKENIZER, phases=phases, invalid_reward="mask"),
        [f"{FINAL}{said}<|return|>" for said in ("[0]", "[1]", "[9]", "[2]", "[0]")],
        log_metric=lambda name, value: logged.setdefault(name, []).append(value),
        phase=of_rows,
    )
    return {name: values for name, values in logged.items() if name.startswith("phase/")}


def test_reward_regret_and_invalid_answers_are_logged_by_phase():
    # [9] is out of range: masked, without regret; [2] has a reward and no value; the last row
    # belongs to no phase
    found = phase_metrics(["day", "night / late"], ["day", "day", "day", "night / late", None])
    assert found == {
        "phase/day/invalid": [0.0, 0.0, 1.0],
        "phase/day/reward": [0.1, 0.7],
        "phase/day/regret": [2.0, 0.0],
        "phase/night_late/invalid": [0.0],
        "phase/night_late/reward": [0.2],
    }


def test_of_several_phases_one_alone_in_a_batch_is_still_logged():
    assert set(phase_metrics(["a", "b"], ["a"] * 5)) == {
        "phase/a/invalid",
        "phase/a/reward",
        "phase/a/regret",
    }


@pytest.mark.parametrize("phases", [[], ["day"]])
def test_a_single_phase_is_the_whole_and_not_logged_again(phases):
    assert phase_metrics(phases, ["day"] * 5) == {}


def test_phases_that_a_metrics_name_cannot_tell_apart_get_numbers():
    assert phase_labels(["a/b", "a b", "日 中", "c"]) == {
        "a/b": "a_b",
        "a b": "a_b_2",
        "日 中": "日_中",
        "c": "c",
    }


def test_of_several_rewards_each_is_logged_and_one_without_a_value_masks():
    reward = DecisionReward(
        TOKENIZER,
        reward=["decision", "format"],
        reward_weights=[2.0, 0.5],
        invalid_reward="mask",
    )
    logged: dict[str, list[float]] = {}
    rewards = call(
        reward,
        [FINAL + "[1]<|return|>", FINAL + "[9]<|return|>"],
        log_metric=lambda name, value: logged.setdefault(name, []).append(value),
    )
    assert rewards == [pytest.approx(2 * 0.7 - 0.5), None]  # no tags: format earns -1
    assert reward.__name__ == "sum"  # TRL logs rewards/sum/mean
    first, second = reward.records
    assert (first["reward_decision"], first["reward_format"]) == (0.7, -1.0)
    assert (second["reward"], second["reward_decision"], second["reward_format"]) == (
        None,
        None,
        -1.0,
    )
    assert logged["rewards/decision/mean"] == [0.7]
    assert logged["rewards/format/mean"] == [-1.0, -1.0]
    assert (logged["masked/decision"], logged["masked/format"]) == ([0.0, 1.0], [0.0, 0.0])
    assert logged["masked/share"] == [0.5]


@batch_reward("lab_counted")
class Counted:
    """Sees the batch at once, and the cells of every row."""

    def __init__(self, settings):
        self.batches = 0

    def __call__(self, answers):
        self.batches += 1
        assert all(answered.row["prompt"] == "P" for answered in answers)
        return [answered.row["level"] + answered.row["row"] for answered in answers]

    def figures(self):
        return {"lab/batches": float(self.batches)}


def test_a_batch_is_scored_at_once_with_the_rows_cells_and_its_figures_are_logged():
    reward = DecisionReward(TOKENIZER, reward="lab_counted")
    logged: dict[str, float] = {}
    cells = ['{"level": 0.5, "row": "of the table"}', '{"level": 2}']
    rewards = call(reward, [FINAL, FINAL], log_metric=logged.__setitem__, cells=cells)
    assert rewards == [4.5, 6.0]  # row 4; a table's own column of that name gives way
    assert logged["lab/batches"] == 1.0
    assert reward.__name__ == "lab_counted" and "reward_lab_counted" not in reward.records[0]


@batch_reward("lab_summing")
class Summing(Counted):
    """Takes any row."""

    def __call__(self, answers):
        self.batches += 1
        return [answered.row["row"] + place for place, answered in enumerate(answers)]


def test_a_step_of_several_batches_logs_the_last_figures_and_not_their_mean(tmp_path):
    changes = {"steps_per_generation": 1, "gradient_accumulation_steps": 2, "max_steps": 2}
    run = lab.trainer(tmp_path, reward="lab_summing", **changes)
    run.train()
    logged = [r["lab/batches"] for r in run.state.log_history if "lab/batches" in r]
    assert logged == [2.0, 4.0]


def test_a_batch_that_is_masked_as_a_whole_is_said_once(caplog):
    reward = DecisionReward(TOKENIZER, reward=["exact", "format"])
    for answers in (["[0]", None], [None, None], [None, None]):
        cells = [json.dumps({"answer": answer}) for answer in answers]
        call(reward, [FINAL + "[0]<|return|>"] * 2, cells=cells)
    assert [record.getMessage() for record in caplog.records] == [
        "no answer of a batch has a reward (exact): masked answers teach nothing"
    ]


@pytest.mark.parametrize(("name", "expected"), [("decision", "mask"), ("format", None)])
def test_only_rewards_of_actions_know_invalid_answers(name, expected):
    assert DecisionReward(TOKENIZER, reward=name, invalid_reward="mask").invalid_reward == expected


@register("reward", "lab_broken")
def broken(decision, rewards_K, completion, row):
    return rewards_K[99]


def test_a_failing_reward_function_is_named_with_its_row():
    reward = DecisionReward(TOKENIZER, reward="lab_broken")
    with pytest.raises(TrainingError, match="reward function broken failed on row 5: IndexError"):
        call(reward, [FINAL + "[0]<|return|>"])


def test_the_watch_warns_when_the_invalid_share_has_doubled_and_doubles_again():
    watch = InvalidWatch()
    # smoothed: 0.1, then 0.8 * 0.1 + 0.2 = 0.28 (>= 0.2), 0.424, 0.539, 0.631 (>= 0.56), ...
    assert [watch.update(s) for s in (0.1, 1.0, 1.0, 1.0, 1.0, 1.0)] == [
        False,
        True,
        False,
        False,
        True,
        False,
    ]


def test_the_watch_keeps_quiet_while_answers_get_better():
    watch = InvalidWatch()
    assert not any(watch.update(0.6 * 0.9**n) for n in range(50))
    assert not watch.update(0.0)


def test_a_watch_goes_on_where_it_was_saved():
    one, other = InvalidWatch(), InvalidWatch()
    one.update(0.2)
    other.load(one.state())
    assert one.update(1.0) == other.update(1.0)
    assert one.state() == other.state()


def test_prompts_reach_the_model_as_they_stand_in_the_table(tmp_path):
    run = lab.trainer(tmp_path)
    prompt = run.train_dataset[0]["prompt"]
    ids, images, fields = run._tokenize_prompts([prompt])
    assert run.processing_class.decode(ids[0]) == prompt
    assert ids[0][0] == run.processing_class.convert_tokens_to_ids("<|start|>")
    assert images is None and fields == {}


def test_a_prompt_that_is_too_long_is_refused_by_row_and_length():
    # specials count one token each, letters one byte each; row 5 has 10 letters:
    # <|start|> user <|message|> 10 x letter <|end|> <|start|> assistant = 1+4+1+10+1+1+9 = 27
    with pytest.raises(DataError, match=r"table.csv row 5: the prompt has 27 tokens.* is 26$"):
        build_dataset(lab.table(5), TOKENIZER, lab.settings(max_prompt_length=26))


def test_long_prompts_can_be_dropped_and_are_counted():
    wanted = lab.settings(max_prompt_length=21, long_prompts="drop")
    dataset, dropped = build_dataset(lab.table(5), TOKENIZER, wanted)
    assert (dataset["row"][:], dropped) == ([0, 1], 3)
    with pytest.raises(DataError, match="all prompts are too long"):
        build_dataset(
            lab.table(5), TOKENIZER, lab.settings(max_prompt_length=1, long_prompts="drop")
        )


def test_phases_and_names_reach_the_dataset():
    table = replace(lab.table(3), names=[["a", "b", "c"], [], ["on", "off"]])
    assert phases_of(build_dataset(table, TOKENIZER, lab.settings())[0]) == []
    table.columns["phase"] = ["night", None, 2]
    dataset, _ = build_dataset(table, TOKENIZER, lab.settings())
    assert dataset["actions"][:] == [["a", "b", "c"], [], ["on", "off"]]
    assert dataset["phase"][:] == ["night", None, "2"]
    assert phases_of(dataset) == ["2", "night"]
    assert not {"actions", "phase"} & set(
        build_dataset(lab.table(3), TOKENIZER, lab.settings())[0].column_names
    )


def test_a_training_logs_the_phases_of_its_table(tmp_path):
    table = replace(lab.table(4), names=[["a", "b", "c"]] * 4)
    table.columns["phase"] = ["day", "night", "day", "night"]
    wanted = lab.settings(reward="lab_unmasked", max_steps=2, prompts_per_step=4)
    dataset, _ = build_dataset(table, TOKENIZER, wanted)
    run = lab.DecisionTrainer.build(
        wanted,
        model=lab.tiny_model(lora=False),
        tokenizer=lab.byte_tokenizer(),
        dataset=dataset,
        args=make_config(wanted, str(tmp_path), rows=4),
    )
    run.train()
    for record in [r for r in run.state.log_history if "reward" in r]:
        # every step draws all four rows, and as many answers in each phase
        phases = [record["phase/day/reward"], record["phase/night/reward"]]
        assert sum(phases) / 2 == pytest.approx(record["reward"], rel=1e-6)
        assert record["phase/day/invalid"] == record["invalid/share"] == 1.0
        assert "phase/day/regret" not in record  # noise is no action


def test_an_action_a_row_does_not_have_is_none_in_the_dataset():
    table = lab.table(2)
    table.rewards[1, 2] = math.nan
    dataset, _ = build_dataset(table, TOKENIZER, lab.settings())
    assert dataset["reward_action_2"][:] == [table.rewards[0, 2], None]


@pytest.mark.parametrize(
    "extra, message",
    [
        ({"shuffle_dataset": True}, "shuffle_dataset is not free"),
        ({"epsilon_hihg": 0.28}, "epsilon_hihg is no argument"),
        ({"entropy_coef": 0.1}, "entropy_coef cannot be combined with loss_type dr_grpo"),
        ({"adam_beta1": "x", "lr_scheduler_kwargs": 3, "optim": "nonsense"}, "TRL refuses"),
    ],
)
def test_trainer_arguments_that_cannot_work_are_refused(tmp_path, extra, message):
    with pytest.raises(ConfigError, match=message):
        make_config(lab.settings(trainer=extra), str(tmp_path))


@pytest.mark.parametrize(
    "extra", [{"entropy_coef": 0.1}, {"use_adaptive_entropy": True}, {"top_entropy_quantile": 0.2}]
)
def test_what_looks_at_every_row_is_refused_where_rows_are_left_out(tmp_path, extra):
    wanted = lab.settings(trainer=extra, loss_type="dapo", zero_signal="skip")
    with pytest.raises(ConfigError, match=f"{next(iter(extra))} needs zero_signal keep"):
        make_config(wanted, str(tmp_path))
    make_config(wanted.model_copy(update={"zero_signal": "keep"}), str(tmp_path))


def test_the_seeds_values_reach_trl(tmp_path):
    wanted = lab.TrainSettings(device="cpu", trainer={"epsilon_high": 0.28})
    config = make_config(wanted, str(tmp_path))
    assert (config.num_generations, config.gradient_accumulation_steps) == (16, 4)
    assert (config.per_device_train_batch_size, config.steps_per_generation) == (16, 4)
    assert config.generation_batch_size == 64  # 4 prompts x 16, one optimizer step
    assert (config.loss_type, config.scale_rewards, config.beta) == ("dr_grpo", "none", 0.0)
    assert (config.learning_rate, config.max_steps, config.save_steps) == (5e-5, 200, 20)
    assert (config.router_aux_loss_coef, config.bf16, config.fp16) == (0.0, False, False)
    assert (config.epsilon_high, config.report_to, config.shuffle_dataset) == (0.28, [], False)


def test_more_prompts_than_rows_are_clipped_in_the_batch(tmp_path):
    config = make_config(lab.settings(prompts_per_step=9), str(tmp_path), rows=5)
    assert config.per_device_train_batch_size == 5 * 4
