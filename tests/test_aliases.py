"""The variables of the script that pretrain replaces, and `from`, which Python keeps to itself."""

import pytest

from gptoss_tools import settings as declared
from gptoss_tools.aliases import PRETRAIN, WITHOUT_MEANING
from gptoss_tools.errors import ConfigError
from gptoss_tools.load import load


def resolve(environ=None, command="pretrain", **kwargs):
    model = declared.PretrainSettings if command == "pretrain" else declared.TrainSettings
    return load(model, command, environ=environ or {}, **kwargs)


ROWS = [
    ({"MODEL_TYPE": "from_scratch"}, {"model_type": "bigram", "from_": None}),
    ({"MODEL_TYPE": "gpt2"}, {"from_": "openai-community/gpt2"}),
    (
        {"MODEL_TYPE": "gpt2", "GPT2_MODEL_NAME": "gpt2-medium"},
        {"from_": "openai-community/gpt2-medium"},
    ),
    ({"GPT2_MODEL_NAME": "gpt2-medium"}, {"from_": None}),
    ({"USE_LORA": "True"}, {"adapter": "lora", "lora_r": 16, "lora_alpha": 32}),
    ({"USE_LORA": "False"}, {"adapter": "none"}),
    ({"LORA_RANK": "8"}, {"lora_r": 8}),
    ({"LORA_ALPHA": "16.0"}, {"lora_alpha": 16}),
    ({"LORA_DROPOUT": "0.1"}, {"lora_dropout": 0.1}),
    ({"TRAINING_DATA_SOURCE": "a, b.md"}, {"data": ["a, b.md"]}),
    ({"TOKENIZATION_METHOD": "character"}, {"tokenizer": "character"}),
    ({"TOKENIZATION_METHOD": "gpt2"}, {"tokenizer": "openai-community/gpt2"}),
    (
        {"TOKENIZATION_METHOD": "custom_bpe", "CUSTOM_VOCAB_SIZE": "600"},
        {"tokenizer": "bpe", "vocab_size": 600},
    ),
    ({"CUSTOM_VOCAB_SIZE": "600"}, {"vocab_size": None}),
    ({"TOKENIZATION_METHOD": "custom_bpe", "MODEL_TYPE": "gpt2"}, {"tokenizer": "auto"}),
    ({"TRAINING_STEPS": "7"}, {"max_steps": 7}),
    ({"BATCH_SIZE": "3", "BLOCK_SIZE": "9"}, {"windows_per_step": 3, "block_size": 9}),
    ({"LEARNING_RATE": "1e-3"}, {"learning_rate": 1e-3}),
    ({"USE_LR_WARMUP": "False"}, {"warmup_steps": 0}),
    ({"USE_LR_WARMUP": "True"}, {"warmup_steps": None}),
    ({"CHECKPOINT_INTERVAL": "200"}, {"save_steps": 200}),
    ({"ENABLE_OUTPUT_TO_FILE": "False"}, {"enable_output_to_file": False}),
    (
        {"CHECKPOINT_PATH": "runs/x", "RESUME_STEPS": "300"},
        {"resume": "runs/x", "resume_steps": 300},
    ),
    (
        {"CHECKPOINT_PATH": "runs/x", "RESUME_STEPS": "300", "TRAINING_STEPS": "7"},
        {"resume_steps": 300, "max_steps": 5000},
    ),
    ({"RESUME_STEPS": "300"}, {"resume_steps": None}),
    ({"DEVICE": "cpu"}, {"device": "cpu"}),
    (
        {"TEST_MODE": "True", "BATCH_SIZE": "7"},
        {"windows_per_step": 32, "block_size": 64, "hidden_size": 128, "num_hidden_layers": 3}
        | {"max_steps": 1000, "eval_steps": 100, "learning_rate": 3e-4, "eval_batches": 50},
    ),
    ({"TEST_MODE": "True", "CHECKPOINT_PATH": "runs/x"}, {"hidden_size": 256, "max_steps": 5000}),
]


@pytest.mark.parametrize(("environ", "wanted"), ROWS)
def test_each_variable_of_the_script_means_what_it_meant(environ, wanted):
    loaded = resolve(environ)
    found = loaded.settings.model_dump()
    assert {name: found[name] for name in wanted} == wanted
    # what a variable sets counts as given, so that it overrides a checkpoint's own
    changed = {name for name, origin in loaded.origins.items() if origin != "default"}
    assert loaded.explicit == changed
    assert {loaded.origins[name] for name in changed} <= set(environ)


def test_every_variable_is_tried_above_or_told_to_be_without_meaning():
    tried = {name for environ, _ in ROWS for name in environ}
    assert set(PRETRAIN) <= tried
    loaded = resolve({"LOG_DIR": "logs", "ENABLE_CHECKPOINTS": "True"})
    assert [note.split(" has no meaning here: ")[0] for note in loaded.notes] == [
        "ENABLE_CHECKPOINTS",
        "LOG_DIR",
    ]
    assert set(WITHOUT_MEANING["pretrain"]) == {
        *("ENABLE_CHECKPOINTS", "CHECKPOINT_DIR", "LOG_DIR", "OUTPUT_DIR")
    }


def test_our_own_variables_and_flags_win_and_other_commands_do_not_listen():
    environ = {"LEARNING_RATE": "1", "BATCH_SIZE": "1", "GPTOSS_LEARNING_RATE": "2"}
    loaded = resolve(environ, flags={"windows_per_step": "4"})
    assert (loaded.settings.learning_rate, loaded.settings.windows_per_step) == (2.0, 4)
    assert loaded.origins["learning_rate"] == "GPTOSS_LEARNING_RATE"
    del environ["GPTOSS_LEARNING_RATE"]
    other = resolve(environ | {"LOG_DIR": "logs"}, command="train-grpo")
    assert (other.settings.learning_rate, other.notes) == (5e-5, [])


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"MODEL_TYPE": "llama"}, "MODEL_TYPE is 'llama'"),
        ({"TOKENIZATION_METHOD": "words"}, "TOKENIZATION_METHOD is 'words'"),
        ({"DEVICE": "mps"}, "from DEVICE"),
        ({"BATCH_SIZE": "many"}, "from BATCH_SIZE"),
    ],
)
def test_a_wrong_text_is_refused_under_the_variables_name(environ, words):
    with pytest.raises(ConfigError, match=words):
        resolve(environ)


def test_from_is_written_without_its_underscore_behind_every_door(gptoss):
    assert resolve({"GPTOSS_FROM": "gpt2-xl"}).settings.from_ == "openai-community/gpt2-xl"
    assert resolve(flags={"from_": "a/b"}).origins["from_"] == "--from"
    for text in ('from = "a/b"\n', '[pretrain]\nfrom = "a/b"\n'):
        with open("gptoss.toml", "w", encoding="utf-8") as file:
            file.write(text)
        assert resolve().settings.from_ == "a/b"
    code, shown, _ = gptoss("config", "pretrain", "--json")
    assert code == 0 and '"from"' in shown and '"from_"' not in shown
    assert "--from TEXT" in gptoss("pretrain", "-h")[1]
    code, _, stderr = gptoss("pretrain", "--from", "a/b", "--tokenizer", "bpe")
    assert code == 2 and "keeps its tokenizer" in stderr
    with open("gptoss.toml", "w", encoding="utf-8") as file:
        file.write('from_ = "a/b"\n')
    with pytest.raises(ConfigError, match=r"`from_` in gptoss\.toml is not a known key"):
        resolve()
