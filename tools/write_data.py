"""Write the shipped tables and the tiny model's prompts: `python tools/write_data.py`.

Everything comes from the generator with fixed seeds and a fixed date, through the same functions as
the commands. Training, held-out and pretraining episodes have seeds of their own.
"""

from __future__ import annotations

import json
import shutil
from datetime import date, timedelta
from pathlib import Path

from gptoss_tools.chat.harmony import parse_legacy, render
from gptoss_tools.data.convert import convert
from gptoss_tools.data.score import score
from gptoss_tools.data.table_writer import TableWriter
from gptoss_tools.tes.dataset import make_dataset

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = ROOT / "src" / "gptoss_tools" / "models" / "tiny_prompts.json"
DATE = "2026-01-01"
ON_PATH, OFF_PATH = 6, 6
TABLES = {"train": (48, 42), "heldout": (12, 1042)}
PRETRAINING = (48, 5000)


def write_tables(data: Path) -> None:
    """Write DATA/train and DATA/heldout: Harmony text, values and rewards, ready to train on."""
    for name, (episodes, seed) in TABLES.items():
        folder = data / name
        shutil.rmtree(folder, ignore_errors=True)
        table = make_dataset(
            episodes=episodes, seed=seed, on_path_rows=ON_PATH, off_path_rows=OFF_PATH
        )
        legacy = folder / f"tes_{name}.csv"
        with TableWriter(legacy) as writer:
            writer.write(table)
        convert([legacy], date=DATE)
        legacy.unlink()
        score([folder], tau=0.05, method="log-regret", overwrite=True)


def write_prompts(target: Path) -> None:
    """Write the prompts the tiny model learns to speak from; their dates differ on purpose.

    Users convert their tables on any day, and the model should not care which.
    """
    episodes, seed = PRETRAINING
    table = make_dataset(episodes=episodes, seed=seed, on_path_rows=4, off_path_rows=6)
    first = date(2024, 1, 1)
    prompts = [
        render(parse_legacy(text), date=(first + timedelta(days=37 * i % 1461)).isoformat())
        for i, text in enumerate(table["prompt"])
    ]
    target.write_text(json.dumps(prompts, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_tables(ROOT / "data")
    write_prompts(PROMPTS)
