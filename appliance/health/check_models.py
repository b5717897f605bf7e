"""The doctor's look at ears and mind: audio devices, engines, model bundles.

What this module keeps true: bundles are opened and checked by the very code that serves them, on the engine that is set;
nothing is derived into the daemon's cache on behalf of another user (a doctor run as root leaves no files there).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from appliance.config import Config
from appliance.health.check import Check, unsure, well, wrong


def check_audio() -> Check:
    """PortAudio and the devices that can record."""
    name = "audio"
    try:
        import sounddevice
    except ImportError as error:
        return wrong(name, f"sounddevice is not installed ({error})", "install the program again with its dependencies")
    except OSError as error:
        return wrong(name, f"PortAudio is missing ({error})", "sudo apt-get install libportaudio2")
    try:
        inputs = [one["name"] for one in sounddevice.query_devices() if one["max_input_channels"] > 0]
    except sounddevice.PortAudioError as error:
        return wrong(name, f"PortAudio fails: {error}", "is the service's user in the group audio? (id bedside)")
    if not inputs:
        remedy = "plug the stethoscope in and look at: arecord -l; the service's user must be in the group audio"
        return unsure(name, "no device that can record", remedy)
    return well(name, f"{len(inputs)} that can record: {', '.join(inputs[:4])}{' …' if len(inputs) > 4 else ''}")


def check_engines(config: Config) -> Check:
    """What could run models here, and whether what ``models.engine`` asks for is among it."""
    from appliance.inference import device, onnx, tensorrt

    name, wanted = "engines", config.models.engine
    there = [one.removesuffix("ExecutionProvider") for one in onnx.installed()]
    found = f"{onnx.RUNTIME} with {', '.join(there)}"
    if tensorrt.installed():
        found += "; TensorRT"
    found += f"; {device.cpu().name}"
    if wanted == "auto":
        return well(name, found)
    problem: str | None = None
    if wanted == "tensorrt":
        if not tensorrt.installed():
            problem = "TensorRT's Python module is not installed"
    else:
        problem = onnx.missing(wanted)
    if problem is None:
        return well(name, f"{found}; {wanted}, which models.engine asks for, is there")
    return wrong(name, f"models.engine asks for {wanted}: {problem}", "install it, or set models.engine to auto or cpu")


def check_models(config: Config) -> Check:
    """Every bundle loads and passes its golden check on the engine that would serve it."""
    from appliance.inference.catalogue import Catalogue
    from appliance.inference.trust import of_config

    name = "models"
    with tempfile.TemporaryDirectory(prefix="bedside-doctor-") as own:
        cache = config.models_cache if _ours(config.models_cache) else Path(own)
        folders = (config.models_directory, config.models_installed)
        catalogue = Catalogue(folders, cache, config.models.engine, of_config(config))
        catalogue.open()
        try:
            served = [
                f"{one.bundle.id} {one.bundle.version} ({one.engine_record().provider})"
                for one in catalogue.bundles.values()
            ]
            problems = list(catalogue.problems)
        finally:
            catalogue.close()
    if not served:
        return wrong(
            name,
            "; ".join(problems) or "no bundle serves",
            "bedside models list says what is wrong with each; then: bedside models install FOLDER_OR_ZIP",
        )
    found = f"golden check passed: {', '.join(served)}"
    if problems:
        return wrong(
            name,
            f"{found}; but {'; '.join(problems)}",
            "bedside models verify shows it in full; then: bedside models install FOLDER_OR_ZIP",
        )
    return well(name, found)


def _ours(cache: Path) -> bool:
    try:
        return cache.stat().st_uid == os.geteuid()
    except OSError:
        return False
