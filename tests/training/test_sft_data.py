"""Labels computed by hand, truncation, and the order in which examples come."""

import grpo_lab
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gptoss_tools.data.instruction_rows import Conversation, Instruction
from gptoss_tools.data.instructions import Instructions
from gptoss_tools.data.prompter import choose_prompter
from gptoss_tools.errors import DataError
from gptoss_tools.training.sft_data import token_pairs, tokenize_examples
from gptoss_tools.training.sft_passes import PassSampler, steps_of

RETURN = 258  # 256 bytes, then SPECIALS: <|startoftext|>, <|endoftext|>, <|return|>


def prompter(tokenizer, name="plain", harmony=False):
    return choose_prompter(name, tokenizer, harmony=harmony, date="2025-01-31")


def tokens(examples, *, template="plain", harmony=False, **options):
    tokenizer = grpo_lab.byte_tokenizer()
    found = Instructions(examples, [f"a.jsonl row {n}" for n in range(1, len(examples) + 1)])
    options = {"max_length": 1024, **options}
    return tokenize_examples(found, prompter(tokenizer, template, harmony), tokenizer, **options)


def byte_ids(text):
    return [grpo_lab.byte_tokenizer().convert_tokens_to_ids(letter) for letter in text]


def test_only_the_answer_and_its_end_are_learned():
    rows = tokens([Instruction("ab", "", "cd")])
    # a b | c d <|return|>: two tokens are read, three learned
    assert rows.dataset[0] == {
        "input_ids": [*byte_ids("abcd"), RETURN],
        "labels": [-100, -100, *byte_ids("cd"), RETURN],
    }
    assert (rows.tokens, rows.learned, rows.longest, rows.largest_id) == (5, 3, 5, RETURN)


def test_without_completion_only_loss_the_prompt_is_learned_too():
    rows = tokens([Instruction("ab", "", "cd")], completion_only_loss=False)
    assert rows.dataset[0]["labels"] == rows.dataset[0]["input_ids"]
    assert rows.learned == 4  # nothing precedes the first of the five tokens


def test_harmony_learns_the_final_channel_and_not_the_header_before_it():
    talk = Conversation(
        (
            {"role": "user", "content": "2+2"},
            {"role": "assistant", "content": "4", "thinking": "easy"},
        )
    )
    row = tokens([talk], harmony=True, template="chat").dataset[0]
    tokenizer = grpo_lab.byte_tokenizer()
    learned = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(learned) == (
        "<|channel|>analysis<|message|>easy<|end|>"
        "<|start|>assistant<|channel|>final<|message|>4<|return|>"
    )
    read = row["input_ids"][: -len(learned)]
    assert tokenizer.decode(read).endswith("2+2<|end|><|start|>assistant")


def test_long_answers_lose_their_end_and_are_counted():
    rows = tokens([Instruction("ab", "", "cdef"), Instruction("a", "", "b")], max_length=4)
    # 2 + 4 + 1 tokens become 4: the answer has lost e, f and its end
    assert rows.dataset[0]["labels"] == [-100, -100, *byte_ids("cd")]
    assert (rows.cut, rows.dropped, rows.longest) == (1, 0, 4)


def test_prompts_that_leave_no_room_stop_or_are_left_out():
    examples = [Instruction("a", "", "b"), Instruction("abcd", "", "e")]
    with pytest.raises(DataError, match=r"a.jsonl row 2: the prompt has 4 tokens.* 4 of max_len"):
        tokens(examples, max_length=4)
    rows = tokens(examples, max_length=4, long_prompts="drop")
    assert (len(rows), rows.dropped) == (1, 1)
    with pytest.raises(DataError, match="no room"):  # nothing would be left to train on
        tokens(examples[1:], max_length=4, long_prompts="drop")


def test_an_example_that_cannot_be_rendered_is_named():
    bad = Instruction("a", "", "b<|return|>")
    with pytest.raises(DataError, match=r"a\.jsonl row 2: it contains <\|return\|>"):
        tokens([Instruction("a", "", "b"), bad])


def test_the_hash_tells_ids_and_labels_and_their_order():
    one, two = Instruction("ab", "", "c"), Instruction("a", "", "bc")
    hashes = {
        tokens([one, two]).sha256,
        tokens([two, one]).sha256,
        tokens([one, one]).sha256,  # the same ids as `two`, with other labels
        tokens([one, two], completion_only_loss=False).sha256,
    }
    assert len(hashes) == 4
    assert tokens([one, two]).sha256 in hashes


def merging_tokenizer(bos=False):
    """Knows a, b, c, ab and bc, and may begin every text with <s>."""
    vocab = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b"), ("b", "c")]))
    core.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    core.add_special_tokens(["<s>"])
    if bos:
        core.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 5)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")


def test_the_prompt_keeps_the_tokens_it_has_when_the_model_is_asked():
    tokenizer = merging_tokenizer()
    # "a" + "b" as one text would be the token ab, which nobody who is given "a" can write
    assert list(token_pairs([("a", "b")], tokenizer, adds_bos=True)) == [([0], [1])]
    # in "ab" + "bc" no token spans both, so the answer reads as in the whole text
    assert list(token_pairs([("ab", "bc")], tokenizer, adds_bos=True)) == [([3], [4])]


def test_the_tokenizer_s_first_token_stands_before_headings_once_and_never_before_a_chat():
    tokenizer = merging_tokenizer(bos=True)
    assert list(token_pairs([("a", "c")], tokenizer, adds_bos=True)) == [([5, 0], [2])]
    assert list(token_pairs([("<s>a", "c")], tokenizer, adds_bos=True)) == [([5, 0], [2])]
    assert list(token_pairs([("a", "c")], tokenizer, adds_bos=False)) == [([0], [2])]


@given(st.integers(1, 20), st.integers(1, 70), st.integers(0, 5))
def test_every_pass_holds_every_row_once_and_depends_on_its_number_alone(n_rows, total, seed):
    rows = list(PassSampler(n_rows, total, seed))
    assert len(rows) == total
    for begin in range(0, total - n_rows + 1, n_rows):
        assert sorted(rows[begin : begin + n_rows]) == list(range(n_rows))
    assert list(PassSampler(n_rows, total + 9, seed))[:total] == rows


def test_passes_differ_from_each_other_and_from_those_of_another_seed():
    rows = list(PassSampler(10, 20, 1))
    assert rows[:10] != rows[10:]
    assert rows != list(PassSampler(10, 20, 2))


@pytest.mark.parametrize(
    ("epochs", "rows", "per_step", "steps"),
    [(3, 100, 16, 19), (1, 16, 16, 1), (0.5, 10, 4, 2), (1, 3, 16, 1)],
)
def test_steps_hold_all_passes(epochs, rows, per_step, steps):
    # 3 * 100 / 16 = 18.75 -> 19; 16 / 16 = 1; 0.5 * 10 / 4 = 1.25 -> 2; 3 / 16 -> 1
    assert steps_of(epochs, rows, per_step) == steps
