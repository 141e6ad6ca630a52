"""A session: one loaded base model, its data, and the run that trains on them.

Whatever is trained, the base stays as it was loaded, and every new run gets a fresh adapter.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import set_seed

from gptoss_tools.core.claims import next_free
from gptoss_tools.core.runs import Run, open_run
from gptoss_tools.errors import ConfigError
from gptoss_tools.evaluation.policy import Policy, Source, find_source, load_policy
from gptoss_tools.load import cache_dir
from gptoss_tools.models.adapters import attach_adapter
from gptoss_tools.models.held import HeldModel
from gptoss_tools.models.names import TINY
from gptoss_tools.notebook.display import Display, display_for
from gptoss_tools.notebook.helpers import held_out_rows
from gptoss_tools.notebook.isolation import borrowed
from gptoss_tools.notebook.places import Credential, find_credentials, mount_drive
from gptoss_tools.notebook.settings import SessionSettings
from gptoss_tools.settings import TrainSettings
from gptoss_tools.training.grpo_method import METHOD
from gptoss_tools.training.outcome import Outcome
from gptoss_tools.training.resuming import START_ONLY
from gptoss_tools.training.train import Claimed, claim_run


@dataclass(frozen=True)
class TrainerState:
    """Where training stands; `outcome` is None while the run is not finished."""

    run: Path
    steps: int
    outcome: Outcome | None = None

    @property
    def checkpoint_dir(self) -> Path:
        """The folder of the run's checkpoints."""
        return Run(self.run).checkpoints_path


class Session:
    """What `prepare_session` made; `with` or `close` lets go of the model."""

    def __init__(
        self,
        config: SessionSettings,
        display: Display,
        credentials: list[Credential],
        home: Path | None,
    ) -> None:
        self.config, self.display, self.home = config, display, home
        self.credentials = credentials
        self.base = HeldModel()
        self.state: TrainerState | None = None
        self.claimed: Claimed
        self._sampler: Policy | None = None
        self._test: tuple[Claimed, Dataset | None] | None = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model; a run that never began leaves no folder behind."""
        self.release()
        self.base.free()
        if self.state is None:
            self.run.abandon()

    @property
    def run(self) -> Run:
        """The run folder, read anew: its newest checkpoint, adapter and figures."""
        return Run(self.claimed.run.path)

    @property
    def tokenizer(self) -> Any:
        """The base model's tokenizer, its template pinned to the run's date."""
        return self.claimed.prepared.tokenizer

    @property
    def train_dataset(self) -> Dataset:
        """The rows to train on, as TRL reads them."""
        return self.claimed.prepared.dataset  # type: ignore[attr-defined]

    @property
    def test_dataset(self) -> Dataset | None:
        """The held-out rows, where the settings name any that are there."""
        if self._test is None or self._test[0] is not self.claimed:
            rows = held_out_rows(self.config, self.claimed.prepared)  # type: ignore[arg-type]
            self._test = (self.claimed, rows)
        return self._test[1]

    @property
    def sampler(self) -> Policy:
        """The model with its newest adapter, ready to answer; untrained: with a fresh one.

        Ask for it anew after a training, which takes the model back.
        """
        if self._sampler is None:
            with self.at_work():
                self._sampler = self._policy()
        return self._sampler

    @property
    def model(self) -> Any:
        """The model behind `sampler`."""
        return self.sampler.model

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Lend credentials to the environment and keep the process's random states."""
        with borrowed({c.variable: c.value.get_secret_value() for c in self.credentials}):
            yield

    def release(self) -> None:
        """Let go of the sampler: the base is about to be lent to somebody else."""
        self._sampler = None

    def claim(self, config: SessionSettings) -> None:
        """Make a new run of `config` this session's own."""
        settings = config.training()
        if self.home is not None and settings.output_dir is None:
            settings = config.training(output_dir=str(next_free(self.home / "runs")))
        self._build_tiny(settings)
        self.claimed = claim_run(
            settings,
            origins=config.origins(),
            command="gptoss_tools.notebook",
            on_notice=self.display.notice,
            cache_dir=cache_dir(),
            load=self.base,
        )
        self.config, self.state = config, None

    def adopt(self, target: str, config: SessionSettings) -> None:
        """Make a run that is there already this session's own, to go on with it."""
        run = open_run(target)
        settings = config.training()
        self._build_tiny(settings)
        home = run.config.get("cwd")
        prepared = METHOD.prepare(settings, cache_dir=cache_dir(), home=home)
        own = Run(run.path)
        self.claimed = Claimed(METHOD, own, prepared, self.display.notice, cache_dir(), self.base)
        point = own.checkpoint()
        self.state = TrainerState(own.path, point.step if point else 0)

    def _build_tiny(self, settings: TrainSettings) -> None:
        if settings.model == TINY:
            from gptoss_tools.models.tiny_cache import tiny_path

            with self.display.building("building the tiny model, step") as show:
                tiny_path(cache_dir(), on_progress=show)

    def _policy(self) -> Policy:
        prepared = self.claimed.prepared
        trained = bool(self.run.checkpoints() or self.run.outcome)
        source = Source(prepared.model, None, f"untrained, on {self.config.model}")
        policy = load_policy(
            find_source(self.run.path) if trained else source,
            model=prepared.settings,
            cache_dir=cache_dir(),
            load=self.base,
        )
        if not trained:
            set_seed(prepared.settings.seed)
            policy.model = attach_adapter(policy.model, prepared.settings).eval()
        return policy


def settings_of(config: TrainSettings) -> SessionSettings:
    """Return `config` as a session's settings, completed by those of the run to resume."""
    config = SessionSettings.of(config)
    if config.resume is None:
        return config
    run = open_run(config.resume)
    if run.config.get("command") != METHOD.command or run.selected is not None:
        raise ConfigError(
            f"{config.resume} is no run of {METHOD.command}", hint="name a run folder: ls runs"
        )
    known = set(TrainSettings.model_fields) - START_ONLY
    own = {name: value for name, value in run.settings.items() if name in known}
    given = {name: getattr(config, name) for name in config.model_fields_set - {"resume"}}
    return SessionSettings(**{**own, **given})


def prepare_session(config: TrainSettings) -> Session:
    """Check everything, find credentials, read the data, make the run folder and load the model.

    `config` is a SessionSettings, or the command line's own TrainSettings. With `resume` the run
    named there is taken up, with its own settings where none are given. Raises as
    `training.train`; a session that could not be prepared leaves nothing behind.
    """
    target, config = config.resume, settings_of(config)
    display = display_for(config.quiet)
    credentials, notes = find_credentials(config)
    for note in [f"{c.variable} from {c.source}" for c in credentials] + notes:
        display.notice(note)
    home = mount_drive(display.notice) if config.mount_drive else None
    session = Session(config, display, credentials, home)
    with session.at_work():
        session.claim(config) if target is None else session.adopt(target, config)
        try:
            said = sum(p.numel() for p in session.model.parameters() if p.requires_grad)
            rows, held = len(session.train_dataset), session.test_dataset
        except BaseException:
            session.close()
            raise
    display.notice(
        f"{config.model}: {said:,} weights to train on {rows} rows"
        + (f", {len(held)} held out" if held is not None else "")
    )
    return session
