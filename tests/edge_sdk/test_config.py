"""A device's configuration is read as it is meant, or refused in one line that names the key."""

from __future__ import annotations

import pathlib

import pytest

from edge_sdk.config import DataKind, DeviceConfig, all_cores, load_config
from edge_sdk.errors import ConfigError

GOOD = """
device = "pi-1"
fleet = "demo"
broker = "mqtt://127.0.0.1:1883"
budget = "256MB"
store = "store"

[data]
kind = "text-folder"
path = "texts"
"""


def load(folder: pathlib.Path, text: str) -> DeviceConfig:
    """Load `text` as a file in `folder`."""
    path = folder / "device.toml"
    path.write_text(text)
    return load_config(path)


def test_a_minimal_file_is_enough(tmp_path: pathlib.Path) -> None:
    """Defaults fill in, a megabyte is 10^6 bytes, and paths are relative to the file."""
    config = load(tmp_path, GOOD)
    assert config.budget_bytes == 256_000_000
    assert config.quota_bytes == 8_000_000_000
    assert config.store == tmp_path / "store"
    assert config.data.path == tmp_path / "texts"
    assert config.data.kind is DataKind.TEXT_FOLDER
    assert config.threads == all_cores()


def test_an_absolute_path_stays(tmp_path: pathlib.Path) -> None:
    """Only relative paths begin at the file."""
    assert load(tmp_path, GOOD.replace('"store"', '"/srv/store"')).store == pathlib.Path("/srv/store")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('budget = "256MB"', "", "budget is missing"),
        ('budget = "256MB"', 'bugdet = "256MB"', "unknown key 'bugdet'; allowed here: device, fleet, broker, budget"),
        ('path = "texts"', 'path = "texts"\ncolumn = "a"', "unknown key 'data.column'; allowed here: kind, path"),
        ('"256MB"', '"256MX"', "budget is '256MX'; it must be a size like 256MB"),
        ('"256MB"', '"-1MB"', "budget is '-1MB'; it must be a size"),
        ('"256MB"', '"1KB"', "budget is '1KB'; it must be from 1MB to 1000000MB"),
        ('"256MB"', "256", "budget is 256; it must be a text"),
        ('store = "store"', 'store = "store"\nthreads = 0', "threads is 0; it must be from 1 to 256"),
        ('store = "store"', 'store = "store"\nthreads = true', "threads is True; it must be a whole number"),
        ('store = "store"', 'store = "store"\nquota = "9999GB"', "quota is '9999GB'; it must be from 1MB"),
        ('"text-folder"', '"parquet"', "data.kind is 'parquet'; allowed: text-folder, csv, json-lines, token-arrays"),
        ('"pi-1"', '"pi/1"', "device is 'pi/1'; allowed: letters, digits"),
        ('"demo"', '""', "fleet is ''; it must be a text"),
        ('"demo"', '"+"', "fleet is '+'; allowed: letters, digits"),
        ('"mqtt://127.0.0.1:1883"', '"127.0.0.1"', "broker is '127.0.0.1'; write mqtt://host:port"),
        ('"mqtt://127.0.0.1:1883"', '"mqtt://127.0.0.1:65536"', "a port from 1 to 65535"),
        ('"mqtt://127.0.0.1:1883"', '"mqtt://127.0.0.1:0"', "a port from 1 to 65535"),
        ('[data]\nkind = "text-folder"\npath = "texts"', "", "data is missing"),
        ('[data]\nkind = "text-folder"\npath = "texts"', "data = 3", "data is 3; it must be a table, [data]"),
        ("device =", "device", "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: pathlib.Path, old: str, new: str, complaint: str) -> None:
    """One line names the file, the key, the value and what is allowed."""
    assert old in GOOD
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path, GOOD.replace(old, new))
    assert complaint in str(refusal.value)
    assert str(tmp_path / "device.toml") in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_said(tmp_path: pathlib.Path) -> None:
    """A file that is not there is an error of the configuration, not a traceback."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.toml")
