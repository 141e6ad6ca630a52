"""Large tables: memory that does not grow with the rows, and work shared by two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from gptoss_tools.data.decisions import load_table

PEAK = """
import resource, sys
from gptoss_tools.data.check import check
from gptoss_tools.data.convert import convert
from gptoss_tools.data.score import score
name, kind = sys.argv[1:]
score([name], overwrite=True)
convert([name], date="2026-01-01")
problems = check([f"{name.removesuffix(kind)}_harmony{kind}"])
assert not problems, problems[:3]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
HALF = """
import sys
import datasets
from datasets.distributed import split_dataset_by_node
rank = int(sys.argv[1])
whole = datasets.load_dataset(
    "parquet", data_files=sys.argv[2:], split="train", cache_dir=f"cache{rank}"
)
assert whole.cache_files  # mapped from the disk, not held
print(*split_dataset_by_node(whole, rank, 2)["id"], sep="\\n")
"""


def write(path, rows, begin=0):
    """A legacy table, its prompts of 150 bytes, made without a loop over rows."""
    ids = [str(number) for number in range(begin, begin + rows)]
    legacy = f"system: Run a heat pump with a cold tank. {'Meet every load. ' * 4}\nuser: Hour "
    table = pa.table(
        {
            "id": ids,
            "prompt": [legacy + number for number in ids],
            "q_action_0": [0.5] * rows,
            "q_action_1": [number / 7 for number in range(rows)],
        }
    )
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)  # one row group
    return path


def children(script, *arguments):
    """What child processes print, one per list of arguments, all at the same time."""
    running = [
        subprocess.Popen(
            [sys.executable, *script, *map(str, own)], stdout=subprocess.PIPE, text=True
        )
        for own in arguments
    ]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running)
    return said


@pytest.mark.slow
@pytest.mark.parametrize("kind", [".csv", ".parquet"])
def test_ten_times_the_rows_take_hardly_more_memory(tmp_path, kind):
    paths = [write(tmp_path / f"{rows}{kind}", rows) for rows in (30_000, 300_000)]
    small, large = (int(children(["-c", PEAK], [path, kind])[0]) / 1024 for path in paths)
    # The rows more have 145 MB of Harmony text, and twice that where input and output meet. What
    # is kept per row is 24 bytes: 6 MB. The rest of the difference is chunks not yet full.
    assert large - small < 140, (small, large)


@pytest.mark.slow
def test_two_processes_share_the_tables_and_read_them_back_by_halves(tmp_path):
    for number in range(5):
        write(tmp_path / f"{number}.parquet", 10, begin=10 * number)
    for command in ("convert-harmony", "calc-reward"):
        script = ["-m", "gptoss_tools", command, tmp_path]
        children(script, *[["--shard", f"{part}/2"] for part in (1, 2)])
    done = sorted(tmp_path.glob("*_harmony_with_reward.parquet"))
    assert [path.name[0] for path in done] == list("01234")
    assert len(load_table(tmp_path)) == 50
    halves = children(["-c", HALF], *[[rank, *done] for rank in (0, 1)])
    ids = [half.split() for half in halves]
    assert [len(own) for own in ids] == [25, 25]
    assert ids[0] + ids[1] == [str(number) for number in range(50)]
    assert Path("cache0").is_dir()  # of this test's folder
