"""Boot tests: a copy comes to life or does not, its screen is kept, nothing is left of it, a failover goes first."""

from pathlib import Path

import pytest
from job_kit import NewBlank, points, refusal
from talker_kit import DISPLAY, drawn, expect_no_copy, store_of, talker, verdict

from vmreplica.lab import Lab

pytestmark = pytest.mark.points


def test_a_copy_comes_to_life_and_its_verdict_and_screen_are_kept_with_the_point(
    lab: Lab, new_blank: NewBlank, tmp_path: Path
) -> None:
    a, b = lab.host("a"), lab.host("b")
    vm = talker(a, new_blank, devices=DISPLAY)
    plan = b.ask("boot-test", vm.name, "--dry-run")
    assert [step["name"] for step in plan["steps"]] == [
        "hold", "layer", "define", "start", "wait", "picture", "keep", "remove",
    ]  # fmt: skip
    assert (plan["kind"], verdict(b, vm)) == ("boot-test", None)

    told = b.ask("boot-test", vm.name)["booted"]["result"]
    assert told["verdict"] == "alive", told
    assert told["sign"] == "a login prompt on the serial console"
    assert 0 < told["seconds"] < 60
    expect_no_copy(b, vm)
    assert verdict(b, vm) == told
    assert points(a, vm.name)[-1]["boot_test"] == told, "the primary's list has it too"
    assert "alive" in b.vmreplica("points", vm.name).stdout
    assert "came to life" in b.vmreplica("status", vm.name).stdout

    file = tmp_path / "screen.png"
    b.vmreplica("boot-test", vm.name, "--picture", str(file))
    width, height, ink = drawn(file.read_bytes())
    assert (width, height) >= (640, 400)
    assert ink > 1000, "there is a text on it"
    assert (store_of(b, vm) / "points" / told["point"] / "boot-test.png").read_bytes() == file.read_bytes()
    assert refusal(b, "boot-test", vm.name, "--picture", str(file))[1]["code"] == "file-exists"
