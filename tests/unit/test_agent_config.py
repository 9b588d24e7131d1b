"""The configuration file: defaults, and complaints that name file, key and remedy."""

from pathlib import Path

import pytest

from vmreplica.agent.config import load_config
from vmreplica.model.errors import BadRequest
from vmreplica.model.rates import NO_LIMIT, parse_limit

pytestmark = pytest.mark.main_job


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_file_means_all_defaults(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, ""))
    assert config.agent.listen == "0.0.0.0:7432"
    assert config.limits.concurrent_cycles == 2
    assert config.agent.addresses()[0].endswith(":7432")


def test_sizes_are_written_for_people(tmp_path: Path) -> None:
    config = load_config(written(tmp_path, '[limits]\nspool_cap = "2GiB"\nmin_free = "64M"\n'))
    assert config.limits.spool_cap == 2 << 30
    assert config.limits.min_free == 64 << 20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[agent]\nnmae = 'a'\n", "unknown key agent.nmae"),
        ("[agent]\nname = 'a b'\n", "agent.name"),
        ("[agent]\nstate_dir = 'relative'\n", "agent.state_dir: must be an absolute path"),
        ("[agent]\nlisten = 'nowhere'\n", "agent.listen: 'nowhere' is not host:port"),
        ("[agent]\nadvertise = ['x:99999']\n", "agent.advertise"),
        ("[limits]\nbandwidth = 'fast'\n", "limits.bandwidth: 'fast' is not a rate"),
        ("[limits]\nbandwidth = ['1M', '2M']\n", "limits.bandwidth: only one rate may stand without a window"),
        ("[limits]\nspool_cap = 'many'\n", "limits.spool_cap: 'many' is not a size"),
        ("[limits]\nconcurrent_cycles = 0\n", "limits.concurrent_cycles"),
        ("[log]\nlevel = 'loud'\n", "log.level"),
        ("[extra]\n", "unknown key extra"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_file(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BadRequest) as caught:
        load_config(path)
    assert caught.value.code == "config-invalid"
    assert said in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_all_wrong_keys_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"agent\.name.*limits\.workers"):
        load_config(written(tmp_path, "[agent]\nname = ''\n[limits]\nworkers = 0\n"))


def test_what_is_not_toml_is_said_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="line 2") as caught:
        load_config(written(tmp_path, "[agent]\nname = \n"))
    assert caught.value.code == "config-not-toml"


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"none\.toml") as caught:
        load_config(tmp_path / "none.toml")
    assert caught.value.code == "config-unreadable"


def test_the_common_bandwidth_is_a_rate_or_rates_by_time_of_day(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")).limits.bandwidth == NO_LIMIT
    one = load_config(written(tmp_path, "[limits]\nbandwidth = '50M'\npause_hold = '2h'\n")).limits
    assert (one.bandwidth.rate, one.pause_hold) == (50 << 20, 7200)
    text = "[limits]\nbandwidth = ['mon-fri 08:00-18:00 20M', '50M']\n"
    assert load_config(written(tmp_path, text)).limits.bandwidth == parse_limit(["mon-fri 08:00-18:00 20M", "50M"])
