"""How figures become measures and a report."""

import json
from pathlib import Path

import pytest
from bench.report import machine, measure, middle, table, with_left_out

pytestmark = pytest.mark.main_job


def test_a_measure_holds_at_its_goal_and_not_above() -> None:
    at = measure(ours={"seconds": 3}, peer="floor", theirs={"seconds": 1}, ratio=3.0, goal=3.0)
    above = measure(ours={"seconds": 3}, peer="floor", theirs={"seconds": 1}, ratio=3.01, goal=3.0)
    assert at == {"ours": {"seconds": 3}, "floor": {"seconds": 1}, "ratio": 3.0, "goal": 3.0, "holds": True}
    assert above["holds"] is False


def test_a_measure_with_a_second_ratio_holds_only_when_both_do() -> None:
    def both(wire: float) -> bool:
        one = measure(ours={}, peer="p", theirs={}, ratio=0.5, goal=1.0, wire_ratio=wire, wire_goal=0.5)
        return bool(one["holds"])

    assert both(0.5)
    assert not both(0.51)


def test_the_middle_of_an_even_number_of_values_lies_between() -> None:
    assert middle([1.0, 9.0, 2.0, 4.0]) == 3.0


def test_a_measure_left_out_comes_from_the_last_full_run_and_says_so(tmp_path: Path) -> None:
    last = tmp_path / "last-full.json"
    old = {"ratio": 0.4, "goal": 1.0, "holds": True}
    last.write_text(json.dumps({"machine": {"date": "2026-01-02"}, "measures": {"memory": old, "initial": old}}))
    fresh = {"ratio": 2.0, "goal": 1.0, "holds": False}
    measures = with_left_out({"initial": fresh}, last)
    assert measures == {"initial": fresh, "memory": {**old, "from": "full run of 2026-01-02"}}
    assert table(measures).splitlines() == [
        "initial         ratio 2.00, goal 1.0: DOES NOT HOLD",
        "memory          ratio 0.40, goal 1.0: holds (full run of 2026-01-02)",
    ]


def test_without_a_full_run_only_what_was_measured_is_reported(tmp_path: Path) -> None:
    assert with_left_out({}, tmp_path / "last-full.json") == {}


def test_the_machine_names_the_versions_of_all_tools() -> None:
    found = machine()
    assert all(found[tool][0].isdigit() for tool in ("qemu", "libvirt", "nbdcopy", "kernel", "python"))
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 1 << 28
