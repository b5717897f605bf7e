"""The units are accepted by systemd's own tools, are sandboxed as promised, and the program can live in that sandbox."""

from __future__ import annotations

import configparser
import ctypes.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "systemd"
UNITS = sorted(path.name for path in FOLDER.glob("*.service"))
ONESHOT = ("bedside-engines", "bedside-backup", "bedside-check", "bedside-export@")
LONG_RUNNING = [name for name in UNITS if name.removesuffix(".service") not in ONESHOT]
TIMERS = sorted(path.name for path in FOLDER.glob("*.timer"))
EXPOSURE = 20  # tenths

if shutil.which("systemd-analyze") is None:
    pytest.skip("systemd-analyze is not installed (apt-get install systemd)", allow_module_level=True)


class Unit:
    """A unit file; a key may stand more than once."""

    def __init__(self, name: str) -> None:
        parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
        parser.optionxform = str  # type: ignore[method-assign,assignment]
        text = (FOLDER / name).read_text()
        parser.read_string(text)
        self.sections = parser
        self.filters = re.findall(r"^SystemCallFilter=(.*)$", text, re.MULTILINE)

    def get(self, key: str, section: str = "Service") -> str:
        return self.sections[section].get(key, "")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the units, the programs they start and the distribution's own units."""
    shutil.copytree("/usr/lib/systemd/system", tmp_path / "usr/lib/systemd/system", symlinks=True)
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    for unit in (*UNITS, *TIMERS):
        shutil.copy(FOLDER / unit, tmp_path / "etc/systemd/system")
    programs = tmp_path / "opt/bedside/bin"
    programs.mkdir(parents=True)
    others = [tmp_path / name for name in ("usr/bin/cage", "usr/bin/chromium", "bin/mount", "bin/umount")]
    for path in (programs / "bedside", programs / "bedside-hub", *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return tmp_path


def verify(root: Path, unit: str) -> subprocess.CompletedProcess[str]:
    path = root / "etc/systemd/system" / unit
    return subprocess.run(
        ["systemd-analyze", "verify", f"--root={root}", "--recursive-errors=no", "--man=no", str(path)],
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("unit", [*UNITS, *TIMERS])
def test_the_unit_is_accepted_by_systemd_without_a_word(root: Path, unit: str) -> None:
    done = verify(root, unit)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_misspelt_setting_would_be_noticed(root: Path) -> None:
    path = root / "etc/systemd/system/bedside.service"
    path.write_text(path.read_text().replace("ProtectHome=", "ProtektHome="))
    assert "ProtektHome" in verify(root, "bedside.service").stderr


@pytest.mark.parametrize("unit", LONG_RUNNING)
def test_the_exposure_of_a_long_running_unit_is_at_most_2(unit: str) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE}", str(FOLDER / unit)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout.splitlines()[-1]


@pytest.mark.parametrize("unit", UNITS)
def test_no_unit_waits_for_the_network(unit: str) -> None:
    text = (FOLDER / unit).read_text()
    settings = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert "network" not in settings.replace("background-networking", "")


@pytest.mark.parametrize("unit", [name for name in UNITS if "kiosk" not in name])
def test_every_unit_starts_a_command_that_exists(unit: str) -> None:
    started = re.findall(r"^ExecStart=(.*)$", (FOLDER / unit).read_text(), re.MULTILINE)
    for line in started:
        known_command(line)


def known_command(line: str) -> None:
    from typer.main import get_command

    program, *words = line.split()
    names = [word for word in words[:2] if not word.startswith("-") and not word.startswith("/")]
    module = pytest.importorskip("hub.cli" if program.endswith("bedside-hub") else "appliance.cli")
    command = get_command(module.app)
    for name in names:
        assert hasattr(command, "commands"), f"{names} of {program}"
        assert name in command.commands, f"{names} of {program}"
        command = command.commands[name]


def test_the_box_is_watched_restarted_and_the_last_to_be_killed() -> None:
    box = Unit("bedside.service")
    assert box.get("Type") == "notify"
    assert int(box.get("WatchdogSec")) <= 60
    assert (box.get("Restart"), box.get("StartLimitIntervalSec", "Unit")) == ("on-failure", "0")
    assert int(box.get("OOMScoreAdjust")) < 0
    assert box.get("OOMPolicy") == "continue"
    assert {"local-fs.target", "time-set.target"} <= set(box.get("After", "Unit").split())


def allowed(unit: str) -> set[str]:
    """The system calls that the unit's filter lets through, expanded as systemd does."""
    calls: set[str] = set()
    for line in Unit(unit).filters:
        names: set[str] = set()
        for name in line.lstrip("~").split():
            names |= expand(name)
        calls = calls - names if line.startswith("~") else calls | names
    return calls | expand("@default")


def expand(name: str) -> set[str]:
    if not name.startswith("@"):
        return {name}
    command = ["systemd-analyze", "syscall-filter", "--no-pager", name]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[1:]
    words = [line.strip() for line in listed if line.strip() and not line.strip().startswith("#")]
    return {call for word in words for call in expand(word)}


_SANDBOX = """
import ctypes, sys
lib = ctypes.CDLL("libseccomp.so.2", use_errno=True)
lib.seccomp_init.restype = ctypes.c_void_p
EPERM, ALLOW = 0x00050000 | 1, 0x7FFF0000
context = ctypes.c_void_p(lib.seccomp_init(EPERM))
for name in sys.argv[1].split(","):
    number = lib.seccomp_syscall_resolve_name(name.encode())
    if number != -1:
        lib.seccomp_rule_add_array(context, ALLOW, number, 0, None)
assert lib.seccomp_load(context) == 0
exec(sys.argv[2])
"""


def in_the_filter_of(unit: str, code: str) -> subprocess.CompletedProcess[str]:
    if not ctypes.util.find_library("seccomp"):
        pytest.skip("libseccomp is not installed (apt-get install libseccomp2)")
    command = [sys.executable, "-c", _SANDBOX, ",".join(sorted(allowed(unit))), code]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=FOLDER.parent)


_COMPUTE = """
import numpy, scipy.fft, cv2, sqlite3, ssl, threading, socket, os, subprocess, tempfile, onnxruntime
from onnx import helper, TensorProto
value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in ("x", "y")]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
assert session.run(None, {"x": -numpy.ones((1, 8), "f4")})[0].sum() == 0
(numpy.ones((300, 300)) @ numpy.ones((300, 300))).sum(); cv2.GaussianBlur(numpy.ones((64, 64), "f4"), (5, 5), 1)
folder = tempfile.mkdtemp()
journal = sqlite3.connect(os.path.join(folder, "journal.sqlite"))
journal.execute("PRAGMA journal_mode=WAL"); journal.execute("CREATE TABLE t (x)"); journal.commit()
subprocess.run(["true"], check=True)
thread = threading.Thread(target=socket.create_server(("127.0.0.1", 0)).close); thread.start(); thread.join()
import resource
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
print("done")
"""


def test_the_box_can_compute_keep_and_serve_under_its_system_call_filter() -> None:
    done = in_the_filter_of("bedside.service", _COMPUTE)
    assert done.stdout == "done\n", done.stderr[-2000:]


def test_time_that_chrony_keeps_is_seen_through_the_filter_but_cannot_be_set() -> None:
    assert {"adjtimex", "clock_adjtime"} <= allowed("bedside.service")
    assert not {"clock_settime", "settimeofday", "mount", "reboot", "init_module", "ptrace"} & allowed(
        "bedside.service"
    )
    code = """
import ctypes, time
timex = (ctypes.c_byte * 512)()
print(ctypes.CDLL(None, use_errno=True).adjtimex(timex) >= 0)
try: time.clock_settime(time.CLOCK_REALTIME, time.time())
except PermissionError: print("refused")
"""
    done = in_the_filter_of("bedside.service", code)
    assert done.stdout == "True\nrefused\n", done.stderr[-2000:]
    assert not Unit("bedside.service").get("ProtectClock")


def test_the_hub_starts_its_parts_under_its_filter() -> None:
    code = (
        "import hub.service, hub.cli, sqlalchemy, uvicorn, starlette, paho.mqtt.client, resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)); print('done')"
    )
    done = in_the_filter_of("bedside-hub.service", code)
    assert done.stdout == "done\n", done.stderr[-2000:]


_NO_WRITE_AND_EXECUTE = """
import ctypes, sys
if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0):  # PR_SET_MDWE, Linux 6.3
    sys.exit(77)
"""


def without_writable_code(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _NO_WRITE_AND_EXECUTE + code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=FOLDER.parent)
    if done.returncode == 77:
        pytest.skip(f"this kernel ({os.uname().release}) has no PR_SET_MDWE (Linux 6.3)")
    return done


def test_audio_callbacks_are_why_the_box_may_write_code_and_the_hub_may_not() -> None:
    assert not Unit("bedside.service").get("MemoryDenyWriteExecute")
    assert all(Unit(unit).get("MemoryDenyWriteExecute") == "yes" for unit in LONG_RUNNING if "hub" in unit)
    audio = without_writable_code("import cffi; cffi.FFI().callback('int(int)', lambda x: x)")
    assert "MemoryError" in audio.stderr, "cffi no longer needs it: turn MemoryDenyWriteExecute= on for the box"
    hub = without_writable_code("import hub.service, hub.cli, sqlalchemy, uvicorn, cv2, numpy; print('done')")
    assert hub.stdout == "done\n", hub.stderr[-2000:]


def test_the_users_of_the_units_are_made_and_may_open_the_devices(root: Path) -> None:
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("systemd-sysusers is not installed (apt-get install systemd)")
    for name in ("passwd", "group"):
        shutil.copy(f"/etc/{name}", root / "etc" / name)
    command = ["systemd-sysusers", f"--root={root}", str(FOLDER / "sysusers.d/bedside.conf")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    groups = dict(line.split(":")[::3] for line in (root / "etc/group").read_text().splitlines())
    assert all("bedside" in groups[name].split(",") for name in ("audio", "video", "render"))
    users = [line.split(":")[0] for line in (root / "etc/passwd").read_text().splitlines()]
    assert {Unit(unit).get("User") for unit in UNITS} <= set(users)


_BROWSE = """
import os, subprocess, tempfile
folder = sys.argv[3]
page = "data:text/html,<p>seen</p>"
browse = ["chromium", "--headless=new", "--disable-gpu", f"--user-data-dir={folder}", "--dump-dom", page]
print("<p>seen</p>" in subprocess.run(browse, capture_output=True, text=True, env={**os.environ, "HOME": folder}).stdout)
"""
_AS_NOBODY = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"


def test_the_screens_browser_keeps_its_own_sandbox_under_the_units_filter() -> None:
    if os.geteuid() != 0 or shutil.which("chromium") is None or not Path("/usr/bin/python3").exists():
        pytest.skip("needs root (to become another user), chromium and the system's Python")
    if not ctypes.util.find_library("seccomp"):
        pytest.skip("libseccomp is not installed (apt-get install libseccomp2)")
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 65534, 65534)

        def browse(calls: set[str]) -> str:
            command = ["/usr/bin/python3", "-c", _AS_NOBODY + _SANDBOX, ",".join(sorted(calls)), _BROWSE, folder]
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100, cwd="/")
            return done.stdout.strip()

        calls = allowed("bedside-kiosk.service")
        if browse(calls | expand("@privileged") | expand("@resources") | expand("@mount")) != "True":
            pytest.skip("chromium can't make user namespaces here")
        assert browse(calls) == "True"
        assert browse(calls - {"chroot"}) != "True", "it would run without its sandbox"
