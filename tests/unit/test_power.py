"""Where the power comes from, from a folder that looks like the kernel's."""

from __future__ import annotations

from pathlib import Path

from appliance.health.power import Power, power


def supply(root: Path, name: str, **fields: str) -> None:
    folder = root / "sys/class/power_supply" / name
    folder.mkdir(parents=True)
    for field, value in fields.items():
        (folder / field).write_text(value + "\n")


def test_a_box_without_sensors_claims_nothing(tmp_path: Path) -> None:
    assert power(tmp_path) == Power()


def test_mains_and_battery_are_told_apart(tmp_path: Path) -> None:
    supply(tmp_path, "AC", type="Mains", online="0")
    supply(tmp_path, "BAT0", type="Battery", status="Discharging", capacity="41")
    assert power(tmp_path) == Power(on_mains=False, battery=0.41)


def test_any_plugged_supply_is_enough(tmp_path: Path) -> None:
    supply(tmp_path, "ac", type="Mains", online="0")
    supply(tmp_path, "usb", type="USB", online="1")
    assert power(tmp_path) == Power(on_mains=True)


def test_a_battery_alone_says_by_draining_that_the_mains_are_gone(tmp_path: Path) -> None:
    supply(tmp_path, "ups", type="UPS", status="Discharging", capacity="80")
    assert power(tmp_path) == Power(on_mains=False, battery=0.8)


def test_a_stethoscope_s_battery_is_not_the_box_s(tmp_path: Path) -> None:
    supply(tmp_path, "hid-1", type="Battery", scope="Device", status="Discharging", capacity="3")
    assert power(tmp_path) == Power()
