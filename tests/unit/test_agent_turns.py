"""A VM's turn that somebody else than its cycle takes."""

import threading
import time

import pytest

from vmreplica.agent.meter import Meter
from vmreplica.agent.relationship import Relationship
from vmreplica.agent.tasks import Task
from vmreplica.agent.turns import borrowed
from vmreplica.model.policy import Policy

pytestmark = pytest.mark.seeding


@pytest.fixture
def rel() -> Relationship:
    policy = Policy(replica="b" * 32)
    rel = Relationship(vm="11111111-2222-3333-4444-555555555555", name="web", policy=policy, due=100.0)
    rel.idle.set()
    return rel


def test_a_borrowed_turn_looks_like_a_running_cycle_and_ends_like_one(rel: Relationship) -> None:
    wake = threading.Condition()
    with borrowed(wake, rel, "doctor", patience=1, clock=lambda: 7.0) as taken:
        assert taken
        assert rel.running
        assert not rel.idle.is_set()
        assert rel.meter is not None
        assert rel.meter.progress().phase == "doctor"
    assert not rel.running
    assert rel.idle.is_set()
    assert rel.due == 100.0, "nothing was asked meanwhile"


def test_who_asks_for_a_cycle_during_a_borrowed_turn_gets_one_afterwards(rel: Relationship) -> None:
    early, late = Task("cycle of web"), Task("cycle of web")
    with borrowed(threading.Condition(), rel, "doctor", patience=1, clock=lambda: 7.0):
        rel.answering.append(early)  # took this for a cycle
        rel.waiting.append(late)
    assert rel.waiting == [early, late]
    assert rel.answering == []
    assert rel.due == 7.0


def test_a_turn_is_given_back_after_an_error(rel: Relationship) -> None:
    with pytest.raises(ZeroDivisionError), borrowed(threading.Condition(), rel, "x", patience=1, clock=time.monotonic):
        raise ZeroDivisionError
    assert not rel.running


def test_a_running_cycle_is_waited_for_and_then_let_alone(rel: Relationship) -> None:
    wake = threading.Condition()
    rel.meter = cycle = Meter()
    with borrowed(wake, rel, "doctor", patience=0.05, clock=time.monotonic) as taken:
        assert not taken
        assert rel.meter is cycle
    assert rel.meter is cycle

    def end_cycle() -> None:
        with wake:
            rel.meter = None
            wake.notify_all()

    ending = threading.Timer(0.1, end_cycle)
    ending.start()
    with borrowed(wake, rel, "doctor", patience=30, clock=time.monotonic) as taken:
        assert taken
    ending.join()
