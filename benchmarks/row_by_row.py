"""The data commands' work done row by row, as scripts with pandas usually do it.

    python benchmarks/row_by_row.py reward|reward-lean|convert SOURCE.csv TARGET.csv

`reward`: read_csv, iterrows, the row's Q columns as an array (`row[columns].to_numpy()`), its
softmax at tau 0.05, the reward columns, to_csv. `reward-lean`: the same with the four cells taken
one by one, the least a loop over rows can do. `convert`: read_csv, iterrows, the prompt's lines
read for `system:` and `user:`, the tokenizer's apply_chat_template, to_csv. No row is checked, and
an error would leave half a file. Prints the seconds from reading to the written file,
and the CPU's.
"""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any

import numpy as np
import pandas as pd

TAU = 0.05
COLUMNS = [f"q_action_{action}" for action in range(4)]
ROLE = re.compile(r"^\s*(system|user):\s*(.*)$", re.IGNORECASE)


def softmax(q: np.ndarray) -> np.ndarray:
    scaled = q / TAU
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def reward(source: str, target: str, lean: bool) -> None:
    """Add reward columns, a row at a time."""
    frame = pd.read_csv(source)
    rewards = []
    row: Any
    for _, row in frame.iterrows():
        if lean:
            q = np.array([row[column] for column in COLUMNS], dtype=np.float64)
        else:
            q = row[COLUMNS].to_numpy(dtype=np.float64)
        rewards.append(softmax(q))
    for action, column in enumerate(COLUMNS):
        frame[column.replace("q_", "reward_")] = [own[action] for own in rewards]
    frame.to_csv(target, index=False)


def messages(prompt: str) -> list[dict[str, str]]:
    """The messages of a legacy prompt, a line at a time."""
    parts: dict[str, list[str]] = {"system": [], "user": []}
    role = "user"
    for text in prompt.splitlines():
        if found := ROLE.match(text):
            role, text = found[1].lower(), found[2]
        parts[role].append(text)
    joined = {role: "\n".join(lines).strip() for role, lines in parts.items()}
    if not joined["user"]:
        return [{"role": "user", "content": prompt}]
    return [{"role": role, "content": text} for role, text in joined.items() if text]


def convert(source: str, target: str, tokenizer: Any) -> None:
    """Render the prompts, a row at a time."""
    frame = pd.read_csv(source)
    prompts = []
    row: Any
    for _, row in frame.iterrows():
        turns = messages(row["prompt"])
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        prompts.append(prompt)
    frame["prompt"] = prompts
    frame.to_csv(target, index=False)


def main() -> None:
    """Do one of the three and say how long it took."""
    way, source, target = sys.argv[1:]
    tokenizer: Any = None
    if way == "convert":
        from gptoss_tools.models.tiny_cache import shipped_prompts
        from gptoss_tools.models.tiny_tokenizer import build_tokenizer

        tokenizer = build_tokenizer(shipped_prompts(), 1024)
        tokenizer.apply_chat_template(messages("user: warm"), tokenize=False)  # compiled now
    start, used = time.perf_counter(), time.process_time()
    if way == "convert":
        convert(source, target, tokenizer)
    else:
        reward(source, target, lean=way == "reward-lean")
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu}))


if __name__ == "__main__":
    main()
