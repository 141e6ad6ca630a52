"""Published shapes of datasets: one function per shape, from a row's cells to a prompt.

To add one: a function under `@data_format`, here or in a module of yours (`--data-format
module:function`); CONTRIBUTING.md shows one. Leaves out what is done with the prompts
(data.prepare_rows).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptoss_tools import registry
from gptoss_tools.data.decisions import as_messages
from gptoss_tools.data.instruction_rows import (
    COLUMNS,
    READERS,
    Conversation,
    Instruction,
    Rendered,
    format_of,
    is_empty,
)
from gptoss_tools.errors import ConfigError, DataError

KIND = "data format"


@dataclass(frozen=True)
class PromptRow:
    """A prompt and what its answers are measured by.

    `prompt` is a question, a list of messages (`role`, `content`), or Harmony text; `answer` the
    short correct answer, `reference` a whole good response, `rubric` whatever
    data.rubrics.parse_rubric reads.
    """

    prompt: Any
    answer: str | None = None
    reference: str | None = None
    rubric: Any = None


class Unusable(DataError):
    """A row that cannot be prepared; rows are counted by `reason`."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class DataFormat:
    """A registered shape: its name, the columns it is told by, those it replaces, its reader.

    Rows of a format `as_it_is` go through with all their cells; its reader only shows the prompt.
    """

    name: str
    columns: Sequence[str]
    replaces: frozenset[str]
    read: Callable[[Mapping[str, Any]], PromptRow]
    as_it_is: bool = False

    @property
    def summary(self) -> str:
        """First line of what the reader says of itself."""
        return (inspect.getdoc(self.read) or "").partition("\n")[0]

    def __call__(self, cells: Mapping[str, Any]) -> PromptRow:
        return self.read(cells)


def data_format(
    name: str, columns: Sequence[str], *, also: Sequence[str] = (), as_it_is: bool = False
) -> Callable[[Callable[[Mapping[str, Any]], PromptRow]], DataFormat]:
    """Register a function from cells by column to a PromptRow; it raises Unusable to leave one out.

    `columns` tell the format (of names between `|` one is enough), `also` are read where they are
    there. Columns that are read do not come out again; all others do.
    """

    def keep(read: Callable[[Mapping[str, Any]], PromptRow]) -> DataFormat:
        replaces = frozenset(part for need in (*columns, *also) for part in need.split("|"))
        return registry.register(KIND, name)(
            DataFormat(name, tuple(columns), replaces, read, as_it_is)
        )

    return keep


def choose_format(names: Iterable[str], wanted: str, where: str) -> DataFormat:
    """The format of a file with these columns: the first that fits for `auto`, else the wanted one.

    DataError where the columns are not there, ConfigError where there is no such format.
    """
    known = registry.parts(KIND)
    if wanted != "auto":
        found = registry.get(KIND, wanted)
        if not isinstance(found, DataFormat):
            raise ConfigError(f"data_format {wanted!r} is not registered with @data_format")
        known = {found.name: found}
    columns = {name: part.columns for name, part in known.items()}
    return known[format_of(names, wanted if wanted == "auto" else found.name, where, columns)]


def text(cells: Mapping[str, Any], column: str, reason: str) -> str:
    """A cell as text; Unusable, for this reason, where it holds none. Numbers become text."""
    cell = cells.get(column)
    if is_empty(cell):
        raise Unusable(reason, f"column {column} is empty")
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise Unusable(reason, f"column {column} holds {type(cell).__name__}, not text")
    return str(cell)


@data_format("openrubrics", ("instruction", "rubric"), also=("response_a", "response_b", "winner"))
def openrubrics(cells: Mapping[str, Any]) -> PromptRow:
    """OpenRubrics: an instruction and its rubric; of two responses (v2) the winner's is kept."""
    reference = None
    if "winner" in cells:
        said = re.sub(r"\W|_", "", str(cells["winner"]).lower()).removeprefix("response")
        if said not in ("a", "b"):
            raise Unusable("no winner", f"column winner is {cells['winner']!r}, not A or B")
        reference = text(cells, f"response_{said}", "no reference")
    question = text(cells, "instruction", "no question")
    return PromptRow(question, reference=reference, rubric=_rubric(cells["rubric"]))


@data_format("rar", ("question", "reference_answer", "rubric|rubric_list"))
def rar(cells: Mapping[str, Any]) -> PromptRow:
    """Rubrics as Rewards: a question, a reference answer, weighted rubric items."""
    rubric = _as_objects(cells.get("rubric"))
    if is_empty(rubric):
        rubric = cells.get("rubric_list")
    return PromptRow(
        text(cells, "question", "no question"),
        reference=text(cells, "reference_answer", "no reference"),
        rubric=_rubric(rubric),
    )


@data_format("gsm8k", ("question", "answer"))
def gsm8k(cells: Mapping[str, Any]) -> PromptRow:
    """GSM8K: a question and its worked solution, the final answer after ####."""
    question = text(cells, "question", "no question")
    solution = text(cells, "answer", "no final answer after ####")
    _, mark, answer = solution.rpartition("####")
    if not mark or not answer.strip():
        raise Unusable(
            "no final answer after ####", "--data-format question-answer takes the whole answer"
        )
    return PromptRow(question, answer=answer.strip(), reference=solution)


@data_format("question-answer", ("question", "answer"))
def question_answer(cells: Mapping[str, Any]) -> PromptRow:
    """A question and its answer as a whole (auto takes gsm8k)."""
    question = text(cells, "question", "no question")
    return PromptRow(question, answer=text(cells, "answer", "no answer").strip())


@data_format("messages", COLUMNS["messages"])
def messages(cells: Mapping[str, Any]) -> PromptRow:
    """A conversation: its last answer is the reference, what was said before the prompt."""
    return _of_example("messages", cells)


@data_format("prompt-completion", COLUMNS["prompt-completion"])
def prompt_completion(cells: Mapping[str, Any]) -> PromptRow:
    """A prompt and its completion, as text or messages."""
    return _of_example("prompt-completion", cells)


@data_format("alpaca", COLUMNS["alpaca"], also=("input",))
def alpaca(cells: Mapping[str, Any]) -> PromptRow:
    """An instruction, maybe an input it is about, and the output."""
    return _of_example("alpaca", cells)


@data_format("decisions", COLUMNS["decisions"], as_it_is=True)
def decisions(cells: Mapping[str, Any]) -> PromptRow:
    """A prompt with values per action: passed through as it is."""
    return PromptRow(_prompt(cells))


@data_format("prompts", ("prompt", "answer|reference|rubric"))
def prompts(cells: Mapping[str, Any]) -> PromptRow:
    """A prompt with its answer, reference or rubric: what prepare-data writes."""
    known = {name: cells.get(name) for name in ("answer", "reference", "rubric")}
    held = {name: cell for name, cell in known.items() if not is_empty(cell)}
    if not held:
        raise Unusable("no answer, reference or rubric")
    for name in held.keys() & {"answer", "reference"}:
        held[name] = text(cells, name, f"unreadable {name}")
    return PromptRow(_prompt(cells), **held)


def _prompt(cells: Mapping[str, Any]) -> Any:
    found = as_messages(cells["prompt"])
    return text(cells, "prompt", "no question") if found is None else found


def _rubric(cell: Any) -> Any:
    return "" if is_empty(cell) else cell


def _as_objects(cell: Any) -> Any:
    """A list of objects, which `datasets` may have turned into an object of lists."""
    if not isinstance(cell, dict):
        return cell
    parts = list(cell.values())
    if not all(isinstance(p, list) for p in parts) or len({len(p) for p in parts}) > 1:
        raise Unusable("unreadable rubric", "an object, not a list of items")
    return [dict(zip(cell, item, strict=True)) for item in zip(*parts, strict=True)]


def _of_example(kind: str, cells: Mapping[str, Any]) -> PromptRow:
    """What train-sft would imitate, as a prompt and a reference."""
    try:
        (example,) = READERS[kind](dict(cells), "here", "last")
    except DataError as error:
        detail = str(error).removeprefix("here").lstrip(",: ")
        raise Unusable("no question with an answer", detail) from error
    match example:
        case Conversation(said):
            before = [{"role": m["role"], "content": m["content"]} for m in said[:-1]]
            return PromptRow(before, reference=said[-1]["content"])
        case Instruction(instruction, about, output):
            question = f"{instruction}\n\n{about}" if about else instruction
            return PromptRow(question, reference=output)
        case Rendered(prompt, answer):
            return PromptRow(prompt, reference=answer)
