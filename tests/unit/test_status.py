"""Claims about ``bedside status``: what serves, on what, and that a better engine is on its way."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from appliance.cli import app
from appliance.config import Config, StorageConfig
from appliance.health.status import say_serving, serving_of, state_of
from appliance.reading.requests import Described, Serving
from appliance.records import Engine, Modality
from tests.boxes import open_store

CPU = Engine(engine="onnxruntime 1", provider="CPUExecutionProvider", device="a CPU", precision="int8", golden="passed")
BUILDING = Described(
    serving=(
        Serving(bundle="chest", version="1.0.0", modality=Modality.CHEST_XRAY, engine=CPU, state="building"),
        Serving(bundle="heart", version="2.0.0", modality=Modality.HEART_SOUND, engine=CPU, state="ready"),
    ),
    problems=("chest 1.0.0: its plan is being built; the next best engine serves until then",),
    building="chest/net: tactics",
)


def test_while_a_plan_is_built_the_status_says_what_serves_meanwhile(tmp_path: Path) -> None:
    config = Config(storage=StorageConfig(state=str(tmp_path), refuse_below=16, reserve=4))
    daemon = open_store(tmp_path)
    say_serving(tmp_path, BUILDING)
    state = state_of(config)
    assert state.running
    assert state.models == (
        "chest 1.0.0 on CPUExecutionProvider, a better engine is being built",
        "heart 2.0.0 on CPUExecutionProvider",
    )
    assert state.building == "chest/net: tactics"
    settings = tmp_path / "bedside.toml"
    settings.write_text(f'[storage]\nstate = "{tmp_path}"\n')
    shown = CliRunner().invoke(app, ["status", "--config", str(settings)]).output
    assert "a better engine is being built" in shown
    daemon.close()
    stopped = state_of(config)
    assert (stopped.running, stopped.models, stopped.building) == (False, (), "")


def test_a_damaged_word_of_what_serves_is_no_word(tmp_path: Path) -> None:
    (tmp_path / "serving.json").write_bytes(b"{")
    assert serving_of(Config(storage=StorageConfig(state=str(tmp_path)))).serving == ()
