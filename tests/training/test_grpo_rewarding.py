"""From TRL's batched call to decisions, rewards, metrics and records."""

from __future__ import annotations

import math

import grpo_lab as lab
import pytest

from gptoss_tools.errors import ConfigError, DataError, TrainingError
from gptoss_tools.registry import register
from gptoss_tools.training.configuring import build_dataset, make_config, tokenize
from gptoss_tools.training.rewarding import DecisionReward, InvalidWatch

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
    columns = {name: [value] * len(answers) for name, value in (COLUMNS | changes).items()}
    return reward(
        prompts=["P"] * len(answers),
        completions=["stripped text, not to be read"] * len(answers),
        completion_ids=tokenize(TOKENIZER, answers),
        log_metric=log_metric,
        trainer_state=object(),
        **columns,
    )


def test_only_the_final_channel_decides_and_every_other_outcome_has_a_reason():
    reward = DecisionReward(TOKENIZER)
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
    reward = DecisionReward(TOKENIZER)
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
        }
    ]


def test_shares_by_reason_and_by_action_are_logged():
    logged: dict[str, list[float]] = {}
    call(
        DecisionReward(TOKENIZER),
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
