"""The exact action gradient is the gradient of the expected reward, with less chance in it."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import grpo_lab as lab
import pytest
import torch
from torch import nn

from gptoss_tools.training.exact_actions import against_the_others

FINAL = "<|channel|>final<|message|>"
THOUGHT = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant" + FINAL
# What the toy says, token by token, with the chances it learns. Eleven actions; row 0 of the table.
SAID = [
    FINAL + "[0]<|return|>",
    FINAL + "[1]<|call|>",
    FINAL + "[10]<|return|>",
    FINAL + "[11]<|return|>",  # out of range
    THOUGHT.format("a") + "[0]<|return|>",
    THOUGHT.format("a") + "[1]<|return|>",
    FINAL + "none<|return|>",
    "<|channel|>analysis<|message|>b<|return|>",  # never comes to an answer
    THOUGHT.format("a") + "[10]",  # its end is beyond the limit
    FINAL + " [1]<|return|>",  # valid, and not written down
    FINAL + "[0]<|end|><|start|>assistant" + FINAL + "[1]<|return|>",  # second thoughts
]


class Toy(nn.Module):
    """A categorical choice after every beginning of SAID; reads its input through the masks."""

    def __init__(self, prompts: list[list[int]], said: list[list[int]]):
        super().__init__()
        self.config = SimpleNamespace(sliding_window=None)
        self.dtype = torch.float64
        self.prompts = prompts
        self.next: dict[tuple, list[int]] = {}
        for ids in said:
            for place, token in enumerate(ids):
                choices = self.next.setdefault(tuple(ids[:place]), [])
                choices += [token] if token not in choices else []
        self.offset = dict(
            zip(self.next, itertools.accumulate(map(len, self.next.values())), strict=True)
        )
        size = sum(map(len, self.next.values()))
        draw = torch.Generator().manual_seed(3)
        self.logits = nn.Parameter(torch.randn(size, generator=draw, dtype=torch.float64))

    def logp(self, begun: tuple, token: int) -> torch.Tensor:
        choices = self.next.get(begun, [])
        if token not in choices:
            return torch.tensor(-1e9, dtype=torch.float64)
        end = self.offset[begun]
        return self.logits[end - len(choices) : end].log_softmax(0)[choices.index(token)]

    def chance(self, ids: list[int]) -> torch.Tensor:
        return torch.stack([self.logp(tuple(ids[:i]), t) for i, t in enumerate(ids)]).sum().exp()

    def forward(self, *, input_ids, attention_mask, position_ids, shift_labels, fused_lm_head):
        out = []
        for row, labels in enumerate(shift_labels.tolist()):
            seen = attention_mask["full_attention"][row, 0] == 0
            for place, label in enumerate(labels):
                out.append(torch.zeros((), dtype=torch.float64))
                if label != -100:
                    order = position_ids[row][seen[place]].argsort()
                    text = input_ids[row][seen[place]][order].tolist()
                    prompt = next(p for p in self.prompts if text[: len(p)] == p)
                    out[-1] = self.logp(tuple(text[len(prompt) :]), label)
        logps = torch.stack(out).view(shift_labels.shape)
        return SimpleNamespace(log_probs=logps, entropy=torch.zeros_like(logps))


def furnish(folder, texts: list[str], **changes):
    """A trainer of eleven actions, a policy that says these texts, and their tokens."""
    tokenizer = lab.byte_tokenizer()
    said = [tokenizer(text=text)["input_ids"] for text in texts]
    run = lab.trainer(
        folder,
        action_gradient="exact",
        n_actions=11,
        reward="decision",
        invalid_reward=-0.5,
        num_generations=2,
        max_completion_length=max(map(len, said)),  # [10] cannot end behind a thought
        **changes,
    )
    assert len(said[8]) == run.max_completion_length
    run.current_gradient_accumulation_steps = 1
    prompt = tokenizer(text=run.train_dataset[0]["prompt"])["input_ids"]
    return run, Toy([prompt], said), said


def rewards_of(run, said) -> list[float]:
    """What the reward function pays for each."""
    row = run.train_dataset[0]
    columns = {name: [value] * len(said) for name, value in row.items() if name != "prompt"}
    run.reward([row["prompt"]] * len(said), [""] * len(said), said, **columns)
    return [record["reward"] for record in run.reward.records]


def drawn(run, said: list[list[int]]) -> dict:
    """The batch of these completions, and their records, as generation would leave them."""
    rewards_of(run, said)
    prompt = run.processing_class(text=run.train_dataset[0]["prompt"])["input_ids"]
    ids = nn.utils.rnn.pad_sequence([torch.tensor(s) for s in said], batch_first=True)
    lengths = torch.tensor([len(s) for s in said]).unsqueeze(1)
    return {
        "prompt_ids": torch.tensor([prompt] * len(said)),
        "prompt_mask": torch.ones(len(said), len(prompt), dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": (torch.arange(ids.size(1)) < lengths).long(),
        "num_items_in_batch": lengths.sum(),
    }


def gradient(run, policy, batch) -> torch.Tensor:
    """The ascent direction of one step, for one completion's worth of tokens as weight."""
    loss = run._compute_loss(policy, batch)
    (found,) = torch.autograd.grad(loss, policy.logits)
    return -found * run.max_completion_length


def estimates(
    run, policy, said, level=0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list]:
    """Of every group of two: how likely, its exact gradient, its sampled one, its reasonings."""
    with torch.no_grad():
        chances = torch.stack([policy.chance(ids) for ids in said])
    torch.testing.assert_close(chances.sum(), torch.ones((), dtype=torch.float64))
    weights, exact, sampled, thoughts = [], [], [], []
    for i, j in itertools.combinations_with_replacement(range(len(said)), 2):
        batch = drawn(run, [said[i], said[j]])
        run.odd_answers = [level, 1.0]
        batch |= run.credit(policy, batch, [run.train_dataset[0]] * 2)
        exact.append(gradient(run, policy, batch))
        rewards = torch.tensor([record["reward"] for record in run.reward.records])
        batch |= {"advantages": against_the_others(rewards, 2), "gains": 0 * batch["gains"]}
        sampled.append(gradient(run, policy, batch))
        weights.append(chances[i] * chances[j] * (1 if i == j else 2))
        cuts = batch["decided"].tolist()
        begun = (tuple(said[n][:cut]) for n, cut in zip((i, j), cuts, strict=True))
        thoughts.append(tuple(sorted(begun)))
    return torch.stack(weights).unsqueeze(1), torch.stack(exact), torch.stack(sampled), thoughts


def variance(weights, found) -> float:
    return float((weights * (found - (weights * found).sum(0)) ** 2).sum())


def brute_force(policy, said, rewards) -> torch.Tensor:
    """The gradient of the expected reward over everything that can be said."""
    chances = torch.stack([policy.chance(ids) for ids in said])
    expected = chances @ torch.tensor(rewards, dtype=torch.float64)
    return torch.autograd.grad(expected, policy.logits)[0]


@pytest.mark.parametrize("level", [0.0, 0.4])
def test_the_mean_over_all_draws_is_the_gradient_of_the_expected_reward(tmp_path, level):
    run, policy, said = furnish(tmp_path, SAID)
    rewards = rewards_of(run, said)
    assert rewards[3] == rewards[6] == rewards[7] == rewards[8] == -0.5  # invalid
    assert rewards[9] == rewards[10] == rewards[1] and len(set(rewards)) == 4
    truth = brute_force(policy, said, rewards)
    assert truth.norm() > 0.05
    weights, exact, sampled, _ = estimates(run, policy, said, level)
    torch.testing.assert_close((weights * exact).sum(0), truth, rtol=0, atol=1e-6)
    torch.testing.assert_close((weights * sampled).sum(0), truth, rtol=0, atol=1e-6)
    assert variance(weights, exact) < variance(weights, sampled)


def test_where_no_valid_answer_is_spelt_oddly_it_is_the_mean_of_sampled_ones_given_the_reasoning(
    tmp_path,
):
    run, policy, said = furnish(tmp_path, SAID[:-2])
    weights, exact, sampled, thoughts = estimates(run, policy, said)
    for thought in set(thoughts):
        same = torch.tensor([t == thought for t in thoughts])
        mean = (weights * sampled)[same].sum(0) / weights[same].sum()
        torch.testing.assert_close(exact[same], mean.expand(int(same.sum()), -1), rtol=0, atol=1e-6)
    # what is left is the chance in the reasoning: three thoughts
    assert variance(weights, exact) < variance(weights, sampled) / 2


def test_a_single_completion_still_pushes_towards_valid_answers(tmp_path):
    run, policy, said = furnish(tmp_path, SAID)
    run.num_generations = 1  # a group of one has no baseline, so its reasoning learns nothing
    valid = [ids for ids in said if ids[0] == said[0][0] and ids in said[:3]]
    mass = torch.autograd.grad(torch.stack([policy.chance(v) for v in valid]).sum(), policy.logits)[
        0
    ]
    for ids in (said[3], said[6]):  # an action that is none, and no brackets at all
        batch = drawn(run, [ids])
        batch |= run.credit(policy, batch, [run.train_dataset[0]])
        assert not batch["advantages"].any()
        assert gradient(run, policy, batch) @ mass > 0.01
