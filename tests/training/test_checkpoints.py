import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptoss_tools.core.claims import claim
from gptoss_tools.core.publish import publish
from gptoss_tools.core.runs import Run
from gptoss_tools.errors import ConfigError, DataError
from gptoss_tools.models.snapshot import fingerprint
from gptoss_tools.settings import TrainSettings
from gptoss_tools.training.checkpoints import (
    FREE,
    Pace,
    check_resumable,
    mark_rolling,
    rotate,
    schedule_note,
)
from gptoss_tools.training.flow import follow_schedule
from gptoss_tools.training.method import ADAPTER_SHAPE


def folder(tmp_path, settings=None, world_size=1):
    config = {
        "settings": settings or {},
        "data": {"sha256": "a" * 64},
        "world_size": world_size,
    }
    return claim(tmp_path / "run", config)


def save(run: Run, step: int, rolling: bool = False) -> None:
    staging = run.checkpoints_path / f".tmp-{step}"
    staging.mkdir(parents=True)
    (staging / "weights").write_text("w")
    path = publish(staging, run.checkpoint_path_for(step), step=step)
    if rolling:
        mark_rolling(path)


def steps(run: Run) -> list[int]:
    return [c.step for c in run.checkpoints()]


def test_a_rolling_checkpoint_goes_when_a_newer_one_is_there(tmp_path):
    run = folder(tmp_path)
    save(run, 20)
    save(run, 23, rolling=True)
    rotate(run, None)
    assert steps(run) == [20, 23]
    save(run, 25, rolling=True)
    rotate(run, None)
    assert steps(run) == [20, 25]


def test_the_limit_counts_lasting_checkpoints_only(tmp_path):
    run = folder(tmp_path)
    for step in (20, 40, 60):
        save(run, step)
    save(run, 63, rolling=True)
    rotate(run, 2)
    assert steps(run) == [40, 60, 63]
    save(run, 80)
    rotate(run, 2)
    assert steps(run) == [60, 80]
    rotate(run, 1)
    assert steps(run) == [80]
    rotate(run, 1)
    assert steps(run) == [80]


@given(marks=st.lists(st.booleans(), min_size=1, max_size=6), limit=st.integers(1, 4) | st.none())
def test_rotation_never_takes_the_newest(tmp_path_factory, marks, limit):
    run = folder(tmp_path_factory.mktemp("rotate"))
    for step, rolling in enumerate(marks, 1):
        save(run, step, rolling)
    rotate(run, limit)
    left = steps(run)
    assert left[-1] == len(marks)
    lasting = [s for s in left if not marks[s - 1]]
    assert limit is None or len(lasting) <= limit
    assert all(not marks[s - 1] for s in left[:-1])


def test_saving_takes_at_most_its_share_of_the_time():
    now = [0.0]
    pace = Pace(share=0.05, clock=lambda: now[0])
    assert pace.due()  # nothing is known yet, so the first step is kept
    now[0] = 1.0
    pace.saved(0.1)  # 0.1 s of saving needs 0.1 / 0.05 = 2 s between saves
    now[0] = 2.9
    assert not pace.due()
    now[0] = 3.0
    assert pace.due()


def test_the_same_settings_and_free_ones_may_go_on(tmp_path):
    old = TrainSettings().model_dump(mode="json")
    run = folder(tmp_path, old)
    new = {**old, "max_steps": 900, "save_steps": 1, "logging_steps": 5, "report_to": "wandb"}
    assert check_resumable(run, new, data_hash="a" * 64, world_size=1) == []


def test_every_setting_is_either_free_or_guarded(tmp_path):
    old = TrainSettings().model_dump(mode="json")
    run = folder(tmp_path, old)
    assert set(old) >= FREE - {"resume_steps"} | ADAPTER_SHAPE
    for name in set(old) - FREE:
        with pytest.raises(ConfigError, match=name):
            check_resumable(run, {**old, name: "other"}, data_hash="a" * 64, world_size=1)


def test_changes_are_named_and_allowed_only_on_request(tmp_path):
    old = TrainSettings().model_dump(mode="json")
    run = folder(tmp_path, old)
    new = {**old, "seed": 43, "temperature": 0.5}
    with pytest.raises(ConfigError, match=r"seed was 42 and is 43 now; temperature was 1\.0"):
        check_resumable(run, new, data_hash="a" * 64, world_size=1)
    with pytest.raises(ConfigError, match="1 processes and are 2"):
        check_resumable(run, old, data_hash="a" * 64, world_size=2)
    with pytest.raises(DataError, match="bbbbbbbbbbbb"):
        check_resumable(run, old, data_hash="b" * 64, world_size=1)
    allowed = check_resumable(run, new, data_hash="b" * 64, world_size=2, allow_changes=True)
    assert len(allowed) == 4
    wider = {**old, "lora_r": 8}
    known = {"data_hash": "a" * 64, "world_size": 1, "shape": ADAPTER_SHAPE}
    with pytest.raises(ConfigError, match="another shape"):
        check_resumable(run, wider, **known, allow_changes=True)


def test_a_new_horizon_is_put_into_words_only_where_it_matters():
    assert schedule_note(200, 200, 100, "linear") is None
    assert schedule_note(200, 400, 100, "constant") is None
    assert "from step 101 on" in schedule_note(200, 400, 100, "cosine")


def test_following_the_same_schedule_changes_no_bit_and_another_one_takes_effect_at_once():
    from transformers import get_linear_schedule_with_warmup

    def trained(horizon):
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.AdamW([{"params": [weight], "weight_decay": 0.1}], lr=0.03)
        return optimizer, get_linear_schedule_with_warmup(optimizer, 2, horizon)

    optimizer, scheduler = trained(7)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    rate = optimizer.param_groups[0]["lr"]
    follow_schedule(0.03, optimizer, scheduler)
    assert optimizer.param_groups[0]["lr"] == rate
    assert scheduler.get_last_lr() == [rate]
    longer, schedule = trained(12)
    schedule.load_state_dict(scheduler.state_dict())
    longer.load_state_dict(optimizer.state_dict())
    follow_schedule(0.03, longer, schedule)
    # warm-up of 2, then down to 0 at 12: after 3 steps 9 of 10 are left
    assert longer.param_groups[0]["lr"] == pytest.approx(0.03 * 9 / 10)


def test_a_base_model_with_other_weights_is_refused_by_its_fingerprint(tmp_path):
    model = tmp_path / "base"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(bytes(100))
    first = fingerprint(model)
    assert first == fingerprint(model) and fingerprint("owner/name") is None
    (model / "model.safetensors").write_bytes(bytes(99) + b"1")
    second = fingerprint(model)
    assert first != second
    run = Run(tmp_path / "run")
    run.path.mkdir()
    record = {"settings": {}, "world_size": 1, "data": {"sha256": "a"}, "base_sha256": first}
    run.config_path.write_text(json.dumps(record))
    same = {"data_hash": "a", "world_size": 1}
    assert check_resumable(run, {}, base_hash=first, **same) == []
    with pytest.raises(ConfigError, match="other weights"):
        check_resumable(run, {}, base_hash=second, **same)
