from __future__ import annotations

import json

import pytest

from gptoss_tools import settings as declared
from gptoss_tools.cli.app import load_command
from gptoss_tools.errors import ConfigError
from gptoss_tools.load import COMMAND_SETTINGS, load


def resolve(**kwargs):
    kwargs.setdefault("environ", {})
    return load(declared.TrainSettings, "train-grpo", **kwargs)


def write(text: str) -> None:
    with open("gptoss.toml", "w", encoding="utf-8") as file:
        file.write(text)


def test_without_anything_the_values_are_the_seed_recipe():
    s = resolve().settings
    assert (s.model, s.lora_r, s.lora_alpha, s.lora_target_modules) == (
        "openai/gpt-oss-20b",
        4,
        8,
        ["all-linear"],
    )
    assert (s.num_generations, s.gradient_accumulation_steps, s.prompts_per_step) == (16, 4, 1)
    assert (s.max_steps, s.save_steps, s.learning_rate, s.seed) == (200, 20, 5e-5, 42)
    assert (s.loss_type, s.scale_rewards, s.invalid_reward) == ("dr_grpo", "none", "worst")
    assert (s.max_prompt_length, s.max_completion_length) == (1000, 4000)
    assert declared.CalcRewardSettings().tau == 0.05


def test_flag_beats_variable_beats_command_table_beats_top_level_beats_default():
    write(
        "lora_r = 1\nlora_alpha = 1\nmax_steps = 1\nseed = 1\n"
        "[train-grpo]\nlora_r = 2\nlora_alpha = 2\nmax_steps = 2\n"
    )
    loaded = resolve(
        flags={"lora_r": "4"}, environ={"GPTOSS_LORA_R": "3", "GPTOSS_LORA_ALPHA": "3"}
    )
    s = loaded.settings
    assert (s.lora_r, s.lora_alpha, s.max_steps, s.seed, s.epsilon) == (4, 3, 2, 1, 0.2)
    assert [
        loaded.origins[n] for n in ("lora_r", "lora_alpha", "max_steps", "seed", "epsilon")
    ] == [
        "--lora-r",
        "GPTOSS_LORA_ALPHA",
        "gptoss.toml [train-grpo]",
        "gptoss.toml",
        "default",
    ]
    assert loaded.explicit == {"lora_r", "lora_alpha"}


@pytest.mark.parametrize("text", ["q_proj,v_proj", '["q_proj", "v_proj"]', " q_proj , v_proj ,"])
def test_a_list_variable_is_json_or_names_with_commas(text):
    loaded = resolve(environ={"GPTOSS_LORA_TARGET_MODULES": text})
    assert loaded.settings.lora_target_modules == ["q_proj", "v_proj"]


def test_the_seeds_variables_work_and_ours_win_over_them():
    environ = {"GRPO_LOG_COMPLETIONS": "0", "GRPO_STEPS_PER_GENERATION": "2"}
    assert resolve(environ=environ).settings.log_completions is False
    assert resolve(environ=environ).settings.steps_per_generation == 2
    environ["GPTOSS_STEPS_PER_GENERATION"] = "8"
    assert resolve(environ=environ).settings.steps_per_generation == 8
    export = load(declared.ExportSettings, "export", environ={"HF_REPO_ID": "me/mine"})
    assert export.settings.repo_id == "me/mine"


@pytest.mark.parametrize(
    ("flags", "environ", "toml", "words"),
    [
        ({"lora_r": "0"}, {}, "", ["`lora_r`", "--lora-r", "greater than or equal to 1"]),
        ({"max_steps": "many"}, {}, "", ["`max_steps`", "'many'", "integer"]),
        ({}, {"GPTOSS_NUM_GENERATIONS": "1"}, "", ["(from GPTOSS_NUM_GENERATIONS)"]),
        ({}, {}, "lora_r = 'x'", ["(from gptoss.toml)"]),
        ({}, {}, "[train-grpo]\ntop_p = 2", ["(from gptoss.toml [train-grpo])"]),
        ({"loss_type": "ppo"}, {}, "", ["`loss_type`", "dr_grpo"]),
        ({"learning_rate": "inf"}, {}, "", ["`learning_rate`", "finite"]),
        ({"seed": "-1"}, {}, "", ["`seed`", "greater than or equal to 0"]),
        ({"seed": "4294967296"}, {}, "", ["`seed`", "less than 4294967296"]),
        ({"device": "xpu"}, {}, "", ["`device`", "cuda"]),
        ({"delimiter": "ab"}, {}, "", ["`delimiter`", "1 character"]),
        ({"date": "2026-13-01"}, {}, "", ["`date`", "not a day of the form YYYY-MM-DD"]),
        ({}, {}, "[trainer]\nlearning_rate = 1", ["[trainer] repeats `learning_rate`"]),
        (
            {"lora_dropout": "0.1", "lora_target_modules": ["all-linear", "experts"]},
            {},
            "",
            ["lora_dropout must be 0"],
        ),
    ],
)
def test_a_bad_value_names_the_setting_and_where_it_came_from(flags, environ, toml, words):
    write(toml)
    with pytest.raises(ConfigError) as raised:
        resolve(flags=flags, environ=environ)
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    ("toml", "hint"),
    [
        ("learning_rte = 1", "learning_rate"),
        ("[train-grop]\nseed = 1", "train-grpo"),
        ("[train-grpo]\nlora_rank = 1", "lora_r"),
    ],
)
def test_an_unknown_toml_key_is_refused_with_the_near_miss(toml, hint):
    write(toml)
    with pytest.raises(ConfigError) as raised:
        resolve()
    assert f"`{hint}`" in raised.value.hint


def test_a_near_miss_of_a_variable_is_refused_and_other_prefixed_ones_are_left_alone():
    with pytest.raises(ConfigError) as raised:
        resolve(environ={"GPTOSS_LEARNING_RTE": "1"})
    assert "`GPTOSS_LEARNING_RATE`" in raised.value.hint
    resolve(environ={"GPTOSS_BUILD_METAL": "1", "GPTOSS_DEBUG": "1", "GPTOSS_CACHE": "x"})


def test_settings_of_another_command_at_the_top_level_do_not_disturb():
    write("tau = 0.1\nlora_r = 8")
    assert resolve().settings.lora_r == 8
    assert load(declared.CalcRewardSettings, "calc-reward", environ={}).settings.tau == 0.1


def test_a_named_settings_file_must_exist_and_parse():
    with pytest.raises(ConfigError, match="does not exist"):
        resolve(config="absent.toml")
    write("= 1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        resolve()


# `format` names another set of layouts in every command; lists of inputs differ in their default.
DIFFERENT_ON_PURPOSE = {"format", "paths", "data", "out", "target", "max_steps", "save_steps"}
DIFFERENT_ON_PURPOSE |= {"report_to", "eval_steps"}  # in `resume` without a value of their own
# Imitated answers are drawn, prompts to answer always the same; their shapes differ too.
DIFFERENT_ON_PURPOSE |= {"data_format", "max_examples"}
# Small models and plain text want other defaults, and some of them words of their own.
PRETRAIN_OWN = {
    *("adapter", "lora_r", "lora_alpha", "router_aux_loss_coef", "learning_rate", "warmup_steps"),
    *("lr_scheduler_type", "weight_decay", "gradient_checkpointing", "logging_steps", "dtype"),
    *("temperature", "top_k", "max_new_tokens", "gradient_accumulation_steps"),
}


def test_a_name_means_one_thing_in_every_command():
    seen: dict[str, object] = {}
    for model in COMMAND_SETTINGS.values():
        for name, info in model.model_fields.items():
            own = name in PRETRAIN_OWN and model is declared.PretrainSettings
            if name not in DIFFERENT_ON_PURPOSE and not own:
                meaning = (info.annotation, info.description, info.default)
                assert seen.setdefault(name, meaning) == meaning, f"{model.__name__}.{name}"


def test_the_example_settings_file_holds_only_known_settings_with_their_defaults(repository):
    config = repository / "gptoss.toml"
    commented = config.read_text(encoding="utf-8")
    lines = [
        line.removeprefix("# ") if line.startswith(("# ", "#[")) and _is_setting(line) else ""
        for line in commented.splitlines()
    ]
    active = "\n".join(line.removeprefix("#") for line in lines)
    write(active)
    for command, model in COMMAND_SETTINGS.items():
        fields = model.model_fields.items()
        required = {n: "x" if i.annotation is str else ["x"] for n, i in fields if i.is_required()}
        loaded = load(model, command, flags=required, environ={})
        for name, value in loaded.settings.model_dump().items():
            info = model.model_fields[name]
            if loaded.origins[name].startswith("gptoss.toml") and name != "trainer":
                assert value == info.get_default(call_default_factory=True), name


def _is_setting(line: str) -> bool:
    body = line.lstrip("# ")
    return body.startswith("[") or " = " in body


def test_a_settings_file_may_start_with_a_byte_order_mark_and_may_not_be_a_folder(tmp_path):
    write("\ufefflora_r = 3")
    assert resolve().settings.lora_r == 3
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        resolve(config=str(tmp_path))


def test_a_prompt_of_half_characters_is_refused():
    with pytest.raises(ConfigError, match=r"`prompt`.* not text in the terminal's encoding"):
        load(declared.GenerateSettings, "generate", flags={"prompt": "\udcff"}, environ={})
    kept = load(declared.GenerateSettings, "generate", flags={"prompt": "é中😀"}, environ={})
    assert kept.settings.prompt == "é中😀"


def test_what_is_required_is_an_argument_and_the_hint_says_so():
    """Flags of these names do not exist."""
    for command, model in COMMAND_SETTINGS.items():
        needed = [name for name, info in model.model_fields.items() if info.is_required()]
        assert needed in ([], [load_command(command).positional])
        if needed:
            with pytest.raises(ConfigError, match=f"`{needed[0]}` is required") as caught:
                load(model, command, flags={}, environ={})
            assert str(caught.value.hint).endswith(f"without a flag: {needed[0].upper()}")


SMALL_SIZES = {"hidden_size": 12, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("command", "values", "message", "hint"),
    [
        ("train-grpo", {"date": "tomorrow"}, "YYYY-MM-DD", "2026-01-31"),
        ("train-grpo", {"actions": ["on", "ON"]}, "different names", "q_action_k"),
        ("generate", {"prompt": "\udcff"}, "encoding", "--prompt-file"),
        ("evaluate", {"limit": 3}, "none is named", "--tasks"),
        ("pretrain", {"hidden_size": 10}, "into 4 heads", "multiple of num_attention_heads"),
        ("pretrain", {"num_key_value_heads": 3}, "over 3", "multiple of num_key_value_heads"),
        # 12 / 4 = 3 is odd, and 4 x 4 is the next that is even
        ("pretrain", {"model_type": "gpt-oss", **SMALL_SIZES}, "even", "--hidden-size 16"),
        ("pretrain", {"num_experts_per_tok": 5}, "more than", "--num-experts-per-tok 4 or less"),
        ("pretrain", {"tokenizer": "model"}, "needs a model", "--from"),
        ("pretrain", {"from_": "tiny", "tokenizer": "bpe"}, "keeps", "leave out"),
        ("pretrain", {"adapter": "mixlora"}, "has learned", "--from"),
        ("pretrain", {"vocab_size": 99}, "bpe tokenizer", "--tokenizer bpe"),
        ("train-grpo", {"gpu": "fast one"}, "not a GPU", "Modal"),
        ("train-grpo", {"nodes": 2}, "all GPUs", "--gpu H100:8"),
        ("pipeline", {"detach": True}, "waits", "leave out"),
        ("train-grpo", {"reward_weights": [1, 2]}, "2 numbers for 1", "in their order"),
        ("train-grpo", {"reward": ["exact", "exact"]}, "twice", "once each"),
        ("train-grpo", {"reward": ["format"], "answer_tags": ["a", "a"]}, "tags", "--answer-tags"),
        (
            "train-sft",
            {"adapter": "mixlora", "experts_per_token": 5},
            "more than num_experts",
            "--experts-per-token 4 or less",
        ),
        (
            "train-sft",
            {"adapter": "mixlora", "lora_target_modules": ["q_proj"]},
            "adapts all",
            "--adapter lora",
        ),
        (
            "train-sft",
            {"lora_target_modules": ["experts"], "lora_dropout": 0.1},
            "must be 0",
            "--lora-dropout 0",
        ),
        ("train-grpo", {"trainer": {"top_k": 3}}, "repeats `top_k`", "give --top-k"),
        ("train-grpo", {"adapter": "mixlora", "beta": 0.1}, "beta must be 0", "--beta 0"),
        ("train-grpo", {"stop_at_action": True, "action_pattern": "(x)"}, "needs", "leave out"),
        ("train-grpo", {"zero_signal": "skip", "beta": 0.1}, "needs beta 0", "--zero-signal keep"),
        (
            "train-grpo",
            {"zero_signal": "resample", "scale_rewards": "batch"},
            "do not go together",
            "--zero-signal skip",
        ),
        ("train-grpo", {"share_prompts": True, "adapter": "mixlora"}, "together", "leave out"),
        (
            "train-grpo",
            {"share_prompts": True, "attn_implementation": "sdpa"},
            "share_prompts needs",
            "--attn-implementation auto",
        ),
        ("train-grpo", {"tokens_per_forward": 99}, "needs share_prompts", "leave out"),
        (
            "train-grpo",
            {"action_gradient": "exact", "invalid_reward": "mask"},
            "needs an invalid_reward",
            "--invalid-reward worst",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_what_to_do(
    command, values, message, hint
):
    with pytest.raises(ConfigError, match=message) as caught:
        load(COMMAND_SETTINGS[command], command, flags=values, environ={})
    assert hint in caught.value.hint and hint not in str(caught.value)


def test_one_path_stands_for_a_list_of_it_in_every_command(tmp_path):
    listed = {"data", "eval_data", "paths", "series", "closed_loop", "runs", "folders"}
    met = set()
    for model in COMMAND_SETTINGS.values():
        fields = model.model_fields.items()
        needed = {name: "x" for name, info in fields if info.is_required()}
        for name in listed & set(model.model_fields):
            for path in ("t.jsonl", tmp_path):
                assert getattr(model(**needed | {name: path}), name) == [str(path)]
            assert getattr(model(**needed | {name: ["a", "b"]}), name) == ["a", "b"]
            met.add(name)
    assert met == listed
    write("data = 't.jsonl'")
    assert resolve().settings.data == ["t.jsonl"]


def test_config_shows_the_settings_of_every_command(gptoss):
    for command in COMMAND_SETTINGS:
        code, shown, stderr = gptoss("config", command, "--json")
        assert code == 0, stderr
        required = [name for name, row in json.loads(shown).items() if row["origin"] == "required"]
        assert len(required) <= 1
