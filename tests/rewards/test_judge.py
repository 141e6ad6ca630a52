"""The judge's client against a real server on loopback."""

import asyncio
import json
import logging
import os
import signal
import threading
import time

import judge_lab as lab
import pytest
from judge_lab import ScriptedJudge, question, says, sends, settings

from gptoss_tools.errors import ConfigError, GptossError, MachineError, TrainingError
from gptoss_tools.rewards.judge import Judge

TANK = says({"word": "tank"})


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_BASE_URL", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def word(answer):
    return None if answer is None else answer.word


def ask(server, n=1, **named):
    """Words for n different questions, and the judge's figures without their prefix."""
    judge = Judge(settings(server, **named))
    try:
        answers = judge.ask([question(f"which {i}?") for i in range(n)])
    except TrainingError:
        answers = [None] * n
    figures = {name.removeprefix("judge/"): n for name, n in judge.figures().items()}
    return [word(answer) for answer in answers], figures, judge


FAULTS = {
    "500": lab.broken,
    "429": lab.busy,
    "hangs up": lab.hangs_up,
    "too slow": lab.sleeps(1.0),
    "broken JSON": says('{"word": '),
    "wrong name": says({"words": "tank"}),
    "wrong type": says({"word": 3}),
    "JSON in prose": says('I would say {"word": "tank"}.'),
    "says nothing": says(""),
    "no completion": sends(b"<html>not JSON"),
    "empty choices": sends({"choices": []}),
    "null content": sends({"choices": [{"message": {"content": None}}]}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_judge_that_fails_once_is_asked_again(fault):
    with ScriptedJudge(FAULTS[fault], otherwise=TANK) as server:
        words, figures, _ = ask(server, judge_timeout=0.5)
    assert words == ["tank"]
    assert (figures["requests"], figures["retries"], figures["failures"]) == (2, 1, 0)


@pytest.mark.parametrize("fault", ["500", "429", "broken JSON", "empty choices"])
def test_the_tries_are_bounded_and_then_the_answer_is_none(fault):
    with ScriptedJudge(otherwise=FAULTS[fault]) as server:
        words, figures, judge = ask(server, judge_retries=2)
    assert words == [None]
    assert (figures["requests"], figures["retries"], figures["failures"]) == (3, 2, 1)
    assert judge.last_error


def test_busy_and_unreadable_share_one_budget():
    # 429, no JSON, 500, no JSON: four tries with three retries, and the fifth is never made.
    with ScriptedJudge(lab.busy, says("?"), lab.broken, says("?"), otherwise=TANK) as server:
        words, figures, _ = ask(server, judge_retries=3)
    assert (words, figures["requests"]) == ([None], 4)


def test_a_request_that_cannot_succeed_is_made_once():
    with ScriptedJudge(otherwise=sends({"error": {"message": "no such model"}}, 404)) as server:
        words, figures, judge = ask(server)
    assert (words, figures["requests"]) == ([None], 1)
    assert "no such model" in judge.last_error


def test_a_server_that_is_not_there_is_named_in_the_error():
    with ScriptedJudge() as server:
        gone = settings(server, judge_retries=0)
    with pytest.raises(TrainingError, match=r"failed on every .*: Connection error: "):
        Judge(gone).ask([question()])


def test_a_dead_judge_is_not_asked_about_the_rest_of_a_batch():
    with ScriptedJudge(otherwise=lab.broken) as server:
        _, figures, _ = ask(server, 40, judge_retries=1, judge_concurrency=4)
    # At least 8 fail before it is given up, and 3 others may be under way; each is tried twice.
    assert 16 <= len(server.requests) <= 22
    assert (figures["requests"], figures["failures"]) == (len(server.requests), 40)


def test_with_most_of_a_batch_known_a_single_failure_masks_one(tmp_path):
    kept = {"judge_cache": str(tmp_path / "kept"), "judge_retries": 0}
    with ScriptedJudge(otherwise=TANK) as server:
        ask(server, 3, **kept)
        server.otherwise = lab.broken
        judge = Judge(settings(server, **kept))
        answers = judge.ask([question(f"which {i}?") for i in range(4)])
    assert [word(answer) for answer in answers] == ["tank", "tank", "tank", None]


def test_retry_after_is_waited_for():
    wait = sends({"error": {"message": "slow down"}}, 429, Retry_After="1")
    with ScriptedJudge(wait, otherwise=TANK) as server:
        assert ask(server)[0] == ["tank"]
        assert server.times[1] - server.times[0] >= 1.0


def test_no_more_requests_are_under_way_than_allowed():
    with ScriptedJudge(otherwise=lab.sleeps(0.1)) as server:
        ask(server, 9, judge_concurrency=3, judge_retries=0)
        assert server.most_at_once == 3
    assert len(server.requests) == 9


def test_an_unreadable_answer_is_asked_for_less_deterministically():
    with ScriptedJudge(says("?"), otherwise=TANK) as server:
        ask(server)
    assert [request["temperature"] for request in server.requests] == [0.0, 0.7]


def test_json_in_a_code_fence_is_read():
    with ScriptedJudge(says('```json\n{"word": "tank"}\n```')) as server:
        assert ask(server)[0] == ["tank"]


@pytest.mark.parametrize(
    ("refusal", "refused", "instead"),
    [
        ("response_format is not supported", "response_format", set()),
        ("grammar backend failed", "response_format", set()),
        ("temperature must be 1 for this model", "temperature", set()),
        ("unknown field max_completion_tokens", "max_completion_tokens", {"max_tokens"}),
    ],
)
def test_what_an_endpoint_refuses_is_left_out_from_then_on(refusal, refused, instead):
    with ScriptedJudge(sends({"error": {"message": refusal}}, 400), otherwise=TANK) as server:
        judge = Judge(settings(server))
        assert word(judge.ask([question("one?")])[0]) == "tank"
        assert word(judge.ask([question("two?")])[0]) == "tank"
    first, *others = map(set, server.requests)
    assert others == [first - {refused} | instead] * 2


def test_a_prompt_that_is_refused_takes_no_json_from_the_others():
    too_long = sends({"error": {"message": "maximum context length exceeded"}}, 400)
    with ScriptedJudge(too_long, too_long, otherwise=TANK) as server:
        judge = Judge(settings(server, judge_concurrency=1))
        assert list(map(word, judge.ask([question("long?"), question("short?")]))) == [None, "tank"]
    assert ["response_format" in request for request in server.requests] == [True, False, True]


def test_tokens_and_cost_count_what_was_answered_readable_or_not():
    # Three words read and two written, `{"word":` and `"tank"}`, then one of `nonsense`.
    with ScriptedJudge(TANK, says("nonsense"), TANK) as server:
        _, figures, _ = ask(server, 2, judge_concurrency=1, judge_prices=[10.0, 100.0])
    assert (figures["tokens_in"], figures["tokens_out"]) == (9, 5)
    assert figures["cost"] == pytest.approx((9 * 10 + 5 * 100) / 1e6)


def test_an_endpoint_that_counts_no_tokens_is_read_all_the_same():
    choices = [{"message": {"content": '{"word": "tank"}'}}]
    for usage in (None, {}, {"prompt_tokens": 7, "completion_tokens": None}):
        with ScriptedJudge(otherwise=sends({"choices": choices, "usage": usage})) as server:
            words, figures, _ = ask(server)
        assert words == ["tank"]
        assert (figures["tokens_in"], figures["tokens_out"]) == (7 if usage else 0, 0)


def test_equal_questions_are_asked_once():
    with ScriptedJudge(otherwise=TANK) as server:
        judge = Judge(settings(server))
        assert [word(a) for a in judge.ask([question("a?"), question("b?"), question("a?")])] == [
            *("tank", "tank", "tank")
        ]
    assert (len(server.requests), judge.figures()["judge/cached"]) == (2, 1)


def test_what_is_kept_is_not_asked_again_wherever_the_judge_is(tmp_path):
    kept = {"judge_cache": str(tmp_path / "kept")}
    with ScriptedJudge(otherwise=TANK) as server:
        ask(server, 3, **kept)
    with ScriptedJudge() as elsewhere:
        words, figures, _ = ask(elsewhere, 3, **kept)
    assert words == ["tank"] * 3
    assert (elsewhere.requests, figures["requests"], figures["cached"]) == ([], 0, 3)


@pytest.mark.parametrize("change", [{"judge_model": "other"}, {"judge_max_tokens": 99}])
def test_another_judge_or_setting_is_another_judgement(tmp_path, change):
    kept = {"judge_cache": str(tmp_path / "kept")}
    with ScriptedJudge(otherwise=TANK) as server:
        ask(server, **kept)
        assert ask(server, **kept, **change)[1]["requests"] == 1


def test_failures_are_not_kept(tmp_path):
    kept = {"judge_cache": str(tmp_path / "kept"), "judge_retries": 0}
    with ScriptedJudge(says("?"), otherwise=TANK) as server:
        assert ask(server, **kept)[0] == [None]
        assert ask(server, **kept)[0] == ["tank"]


def test_damaged_judgements_are_asked_for_again_and_said_once(tmp_path, caplog):
    kept = {"judge_cache": str(tmp_path / "kept")}
    with ScriptedJudge(otherwise=TANK) as server:
        ask(server, 4, **kept)
        files = sorted((tmp_path / "kept").glob("*/*.json"))
        for file, damage in zip(files, [b"", b'{"wor', b'{"words": 1}', b"\xff\xfe"], strict=True):
            file.write_bytes(damage)
        with caplog.at_level(logging.WARNING, "gptoss_tools"):
            assert ask(server, 4, **kept)[0] == ["tank"] * 4
    assert len(server.requests) == 8
    assert [json.loads(file.read_text()) for file in files] == [{"word": "tank"}] * 4
    assert len(caplog.records) == 1


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    with ScriptedJudge() as server, pytest.raises(ConfigError, match="judge_cache"):
        ask(server, judge_cache=str(tmp_path / "file"))


def test_a_key_is_sent_and_never_shown(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", lab.KEY)
    caplog.set_level(logging.DEBUG)
    echo = sends({"error": {"message": f"the key {lab.KEY} is wrong"}}, 401)
    with ScriptedJudge(echo, otherwise=TANK) as server:
        kept = tmp_path / "kept"
        words, _, judge = ask(server, 2, judge_cache=str(kept), judge_concurrency=1)
    assert words == [None, "tank"]
    assert server.keys == [f"Bearer {lab.KEY}"] * 2
    assert "the key *** is wrong" in judge.last_error
    assert lab.KEY not in caplog.text
    assert not [file for file in kept.rglob("*.json") if lab.KEY in file.read_text()]


def test_a_judge_of_ones_own_needs_no_key_and_openai_does():
    with ScriptedJudge(otherwise=TANK) as server:
        assert ask(server)[0] == ["tank"]
        with pytest.raises(MachineError, match="needs a key") as error:
            Judge(settings(server, judge_url=None))
    assert "OPENAI_API_KEY" in (error.value.hint or "")


def test_what_is_missing_is_said_before_anything_is_asked():
    with ScriptedJudge() as server:
        with pytest.raises(ConfigError, match="judge_model") as error:
            Judge(settings(server, judge_model=None))
        assert "--judge-model" in (error.value.hint or "")
        for url in ("localhost:8000/v1", "http://h:99999/v1", "http://[::1/v1", "http:///v1"):
            with pytest.raises(ConfigError, match="judge_url"):
                Judge(settings(server, judge_url=url))
    assert server.requests == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("OPENAI_API_KEY", "schl\u00fcssel", "OPENAI_API_KEY"), ("HTTPS_PROXY", "a://b", "a://b")],
)
def test_a_machine_from_which_no_judge_can_be_asked_is_refused(name, value, message, monkeypatch):
    monkeypatch.setenv(name, value)
    with ScriptedJudge() as server, pytest.raises(GptossError, match=message):
        Judge(settings(server))


def test_it_can_be_asked_inside_a_running_loop():
    async def notebook(server):
        return ask(server)[0]

    with ScriptedJudge(otherwise=TANK) as server:
        assert asyncio.run(notebook(server)) == ["tank"]


def test_an_interrupt_ends_the_asking_at_once_and_leaves_no_thread(monkeypatch):
    with ScriptedJudge(otherwise=lab.sleeps(3.0)) as server:
        judge = Judge(settings(server))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            judge.ask([question("a?"), question("b?")])
        assert time.monotonic() - started < 2.0
        assert "judge" not in [thread.name for thread in threading.enumerate()]
