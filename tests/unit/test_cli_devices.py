"""`devices`: what can be loaded where, and how to build for the rest."""

from __future__ import annotations

import json

from cli_samples import run_cli

from gguf_engine.backend.devices import install_lines
from gguf_engine.backend.llama import list_devices
from gguf_engine.backend.processors import usable_processors


def test_the_table_has_every_device_the_choice_and_the_install_lines() -> None:
    code, out, err = run_cli("devices")
    assert (code, err) == (0, "")
    for device in list_devices():
        assert any(line.startswith(f"{device.name} ") for line in out.splitlines())
    assert "auto took " in out
    assert f"threads: {usable_processors()}" in out
    for line in install_lines().values():
        assert line in out


def test_json_has_the_same_facts() -> None:
    values = json.loads(run_cli("devices", "--json").out)
    assert [device["name"] for device in values["devices"]] == [device.name for device in list_devices()]
    assert values["auto"]["device"] in {device["name"] for device in values["devices"]}
    assert values["n_threads"] == usable_processors()
    assert values["install"] == install_lines()
