"""evaluate: answer held-out rows, put the answers beside the base model and the table's own rules.

docs/evaluation.md says what is written. What can be refused before a model loads is in `work`,
metrics are in `metrics`, the plant's part in `closed_loop`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptoss_tools.core.locks import hold
from gptoss_tools.core.publish import write_json
from gptoss_tools.data.decisions import DecisionTable
from gptoss_tools.errors import RewardError, RunFolderError
from gptoss_tools.evaluation import closed_loop
from gptoss_tools.evaluation.earned import assess_rewards, reward_rows, score_records
from gptoss_tools.evaluation.interview import Interview, Tick, choices
from gptoss_tools.evaluation.journal import NAME as JOURNAL
from gptoss_tools.evaluation.journal import Journal
from gptoss_tools.evaluation.metrics import assess
from gptoss_tools.evaluation.policy import Policy, load_policy, packed_by_itself
from gptoss_tools.evaluation.records import decision_rows, write_lines
from gptoss_tools.evaluation.sources import Source
from gptoss_tools.evaluation.work import Work, baselines_of
from gptoss_tools.models.names import resolve_model
from gptoss_tools.models.snapshot import fingerprint
from gptoss_tools.models.survey import version_of
from gptoss_tools.settings import EvaluateSettings

EVALUATION, DECISIONS, LOOP = "evaluation.json", "decisions.jsonl", "closed_loop.jsonl"
PACKAGES = ("gptoss-tools", "torch", "transformers", "peft", "numpy")
# What an answer depends on besides the weights and the prompt.
DECODING = (
    *("sample", "temperature", "top_p", "top_k", "max_new_tokens", "seed"),
    *("action_pattern", "dtype", "experts"),
)

Progress = Callable[[int, int], None]
Notice = Callable[[str], None]
Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Answers:
    """The journal's records in row order: of the policy, its base, each draw; and the loop."""

    greedy: Records
    base: Records | None
    draws: list[Records]
    loop: closed_loop.LoopResult | None


def evaluate(
    work: Work,
    *,
    on_progress: Progress | None = None,
    on_notice: Notice | None = None,
    cache_dir: Path | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Do the work, going on where an interrupted one stopped; write and return evaluation.json.

    Raises RunFolderError where the folder holds something else, and as `load_policy`.
    """
    settings, table = work.settings, work.table
    notice = on_notice or (lambda message: None)
    started, done = time.monotonic(), 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(min(done, work.questions), work.questions)

    with folder_of(work) as folder:
        plan, base_sha = plan_of(work, cache_dir)
        journal = Journal(folder, plan)
        if len(journal):
            notice(f"{len(journal)} answers are in {folder / JOURNAL} already")
        answers = _ask_everyone(work, journal, base_sha, tick, cache_dir, notice)
        sections, rows = (_by_values if work.rewards is None else _by_reward)(work, answers)
        result = {
            "format": 1,
            "target": str(settings.target),
            "label": work.source.label,
            "policy_sha256": plan["policy_sha256"],
            "step": work.source.step,
            "base": None if work.base is None else work.base.base,
            "data": list(settings.data),
            "data_sha256": plan["data_sha256"],
            "action_names": _common_names(table),
            **sections,
            **(answers.loop.summary() if answers.loop else {"kg_co2": None, "closed_loop": None}),
            "tokens": {"mean": float(np.mean([r["tokens"] for r in answers.greedy]))},
            "seconds": float(sum(record["seconds"] for record in journal.answers.values())),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": command,
            "versions": {name: version_of(name) for name in PACKAGES},
        }
        if result["sampled"] is not None:
            result["sampled"] |= {"temperature": settings.temperature, "top_p": settings.top_p}
        write_lines(folder / DECISIONS, rows)
        if answers.loop is not None:
            write_lines(folder / LOOP, answers.loop.hours())
        write_json(folder / EVALUATION, result)
    notice(f"decoded in {time.monotonic() - started:.0f} s")
    return result


def _by_values(work: Work, answers: Answers) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """Measure regret; return the sections of evaluation.json and the rows of decisions.jsonl."""
    settings, table, baselines = work.settings, work.table, baselines_of(work.table)
    sections = assess(
        table,
        choices(answers.greedy),
        base=None if answers.base is None else choices(answers.base),
        baselines=baselines,
        samples=[choices(draw) for draw in answers.draws],
        episodes=work.episodes,
        tie_tolerance=settings.tie_tolerance,
        seed=settings.seed,
    )
    rows = decision_rows(
        table,
        answers.greedy,
        base=answers.base,
        draws=answers.draws,
        baselines=baselines,
        episodes=work.episodes,
        tie_tolerance=settings.tie_tolerance,
    )
    return sections, rows


def _by_reward(work: Work, answers: Answers) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """Measure what answers earn; return the same as `_by_values`."""
    assert work.rewards is not None
    base = None
    try:
        own = score_records(work.table, answers.greedy, work.rewards)
        if answers.base is not None:
            base = score_records(work.table, answers.base, work.rewards)
    except RewardError as error:
        error.advise(f"the same command goes on with the answers, which {work.folder} keeps")
        raise
    sections = assess_rewards(own, base, episodes=work.episodes, seed=work.settings.seed)
    for name, weight in work.rewards.weights.items():
        sections["rewards"][name]["weight"] = weight
    return sections, reward_rows(work.table, answers.greedy, own, base, work.episodes)


def _ask_everyone(
    work: Work,
    journal: Journal,
    base_sha: str,
    tick: Tick,
    cache_dir: Path | None,
    notice: Notice,
) -> Answers:
    """Put every question to the base and to the policy; two models are never held at once."""
    settings, table = work.settings, work.table
    load = loader_of(work.source, settings, cache_dir, notice)
    base, base_rows = None, None
    if work.base is not None:
        apart = work.base is not work.source
        own = loader_of(work.base, settings, cache_dir, notice) if apart else load
        base = Interview(f"base {base_sha[:12]}", own, journal, settings, tick, bare=not apart)
        base_rows = base.rows(table)
        if apart:
            if work.series:  # so that the journal knows its answers when the policy drives
                _drive(work, {"base": base})
            own.cache_clear()
            gc.collect()
    policy = Interview("policy", load, journal, settings, tick)
    greedy = policy.rows(table)
    draws = [policy.rows(table, draw) for draw in range(settings.samples)]
    drivers = {"policy": policy} | ({} if base is None else {"base": base})
    return Answers(greedy, base_rows, draws, _drive(work, drivers) if work.series else None)


def _drive(work: Work, interviews: dict[str, Interview]) -> closed_loop.LoopResult:
    def driver(interview: Interview) -> closed_loop.Ask:
        def ask(questions: Sequence[closed_loop.Question]) -> list[tuple[int | None, str]]:
            named = [(f"{q.series}/{q.t}", q.prompt) for q in questions]
            records = interview.prompts(named, work.plant.n_actions)
            return [(record["action"], record["reason"]) for record in records]

        return ask

    return closed_loop.drive(
        work.plant,
        work.series,
        work.settings.start_soc,
        {name: driver(interview) for name, interview in interviews.items()},
        seed=work.settings.seed,
    )


def plan_of(work: Work, cache_dir: Path | None) -> tuple[dict[str, Any], str]:
    """Return what the journal depends on, and the hash of the base's weights ("" without one)."""
    settings, table = work.settings, work.table

    def weights(source: Source) -> str:
        name = resolve_model(source.base, cache_dir=cache_dir)
        return fingerprint(name) or hashlib.sha256(name.encode()).hexdigest()

    policy = weights(work.source)
    base = "" if work.base is None else weights(work.base)
    if work.source.adapter is not None:
        file = work.source.adapter / "adapter_model.safetensors"
        if not file.is_file():
            raise RunFolderError(f"{work.source.adapter} has no adapter_model.safetensors")
        policy = hashlib.sha256(policy.encode() + file.read_bytes()).hexdigest()
    digest = hashlib.sha256(table.sha256.encode())
    if table.q is not None:
        digest.update((table.q + 0.0).astype("<f8").tobytes())
    plan = {name: getattr(settings, name) for name in DECODING}
    return {"policy_sha256": policy, "data_sha256": digest.hexdigest(), **plan}, base


@contextlib.contextmanager
def folder_of(work: Work) -> Iterator[Path]:
    """Make and hold the folder; with `overwrite`, remove what an older evaluation left in it."""
    folder = work.folder
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file, not a folder", hint="name a folder with --out")
    ours = (JOURNAL, EVALUATION, DECISIONS, LOOP)
    foreign = folder.is_dir() and any(folder.iterdir()) and not (folder / JOURNAL).exists()
    if foreign and not all(p.name.startswith(".") for p in folder.iterdir()):
        raise RunFolderError(f"{folder} is not empty", hint="name another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be made: {error.strerror}") from error
    with hold(folder / ".lock", str(folder)):
        if work.settings.overwrite:
            for name in ours:
                (folder / name).unlink(missing_ok=True)
        yield folder


def loader_of(
    source: Source, settings: EvaluateSettings, cache_dir: Path | None, notice: Notice
) -> Any:
    """Return what loads the model once, and lets go of it by `cache_clear`.

    `notice` hears where experts stay packed although nobody asked for that.
    """

    @functools.cache
    def load() -> Policy:
        policy = load_policy(source, model=settings, cache_dir=cache_dir)
        if note := packed_by_itself(policy, settings.experts):
            notice(note)
        return policy

    return load


def _common_names(table: DecisionTable) -> list[str] | None:
    """Return the actions' names where all rows share one list."""
    if not table.names or any(names != table.names[0] for names in table.names):
        return None
    return list(table.names[0])
