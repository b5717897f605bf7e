"""The command ``bedside``: words on a command line in, parts called, answers printed. No logic of its own.

What this module keeps true: every command ends with 0 when it did what was asked, 1 when it did not and said why, 2 for a
wrong command line; errors name cause and remedy on one line, without a trace; imports are made by the command that needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from appliance.config import Config, ConfigError, example
from appliance.config import load as load_config
from appliance.records import Modality

if TYPE_CHECKING:
    from appliance.config import LogConfig

DEFAULT_CONFIG = Path("/etc/bedside/bedside.toml")

app = typer.Typer(
    name="bedside",
    help="Reads X-rays, ultrasound, heart and lung sounds at the bedside. Advice for a human, never a diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
models_app = typer.Typer(help="The model bundles: list, verify, evaluate, build.", no_args_is_help=True)
app.add_typer(models_app, name="models")

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help=f"Configuration file; {DEFAULT_CONFIG} when it is there.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
ModelsOption = Annotated[Path | None, typer.Option("--models", help="Folder of model bundles.")]
CacheOption = Annotated[Path | None, typer.Option("--cache", help="Folder for what is derived from them.")]
EngineOption = Annotated[str, typer.Option("--engine", help="auto, cpu, cuda, tensorrt-ort or tensorrt.")]


@app.command()
def run(config: ConfigOption = None) -> None:
    """Run the daemon: take captures, read them, send them, until stopped."""
    from appliance.daemon import Daemon
    from appliance.store.errors import StoreError

    settings = _config(config)
    _log_to_stderr(settings.log)
    with _told(StoreError, OSError):
        Daemon(settings).run()


@app.command()
def read(
    files: Annotated[list[Path], typer.Argument(help="DICOM, PNG, JPEG, WAV or FLAC files.")],
    modality: Annotated[Modality | None, typer.Option(help="What the files are of; DICOM says it itself.")] = None,
    age: Annotated[float | None, typer.Option(min=0, max=150, help="The patient's age in years.")] = None,
    json: JsonOption = False,
    overlay: Annotated[Path | None, typer.Option(help="Write a picture with the heatmap of each file here.")] = None,
    engine: EngineOption = "auto",
    models: ModelsOption = None,
    cache: CacheOption = None,
    config: ConfigOption = None,
) -> None:
    """Read files once, without a daemon, and print what was found or why not."""
    from appliance.reading.read_command import run_read

    folder, derived = _folders(config, models, cache)
    lines = run_read(
        _existing(files),
        models=folder,
        cache=derived,
        engine=engine,
        modality=modality,
        age=age,
        overlay_dir=overlay,
        on_problem=_complain,
    )
    with _told(OSError, _engine_error()):
        for line in lines:
            if json:
                _print_json(line)
            else:
                _print_line(line)


@app.command()
def add(
    files: Annotated[list[Path], typer.Argument(help="Files to keep, read and send as if they had been captured.")],
    modality: Annotated[Modality, typer.Option(help="What files are of that can't say it.")] = Modality.OTHER,
    config: ConfigOption = None,
) -> None:
    """Put files into the box; each is saved when its line is printed. Works beside a running daemon or without one."""
    from appliance.capture.add import add_files
    from appliance.health.clock import Clock
    from appliance.store.errors import StoreError

    with _told(StoreError, OSError):
        kept = [_say_added(*one) for one in add_files(_config(config), _existing(files), modality, Clock().now)]
    if not all(kept):
        raise typer.Exit(1)


@app.command()
def status(json: JsonOption = False, config: ConfigOption = None) -> None:
    """What the box holds, what waits for the link, and what a running daemon says of itself."""
    from appliance.health.status import state_of
    from appliance.store.errors import StoreError

    with _told(StoreError, OSError):
        state = state_of(_config(config))
    if json:
        _print_json(state)
        return
    for name, value in msgspec.to_builtins(state).items():
        text = ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{name.replace('_', ' '):18} {'; '.join(text) if isinstance(text, list) else text}")


@app.command()
def doctor(json: JsonOption = False, config: ConfigOption = None) -> None:
    """Check configuration, disk, broker, audio, engines, models and clock; say what to do for each failing point."""
    from appliance.health.doctor import run_checks

    checks = run_checks(_config(config))
    for check in checks:
        if json:
            _print_json(check)
        else:
            mark = {True: "ok  ", False: "FAIL", None: "?   "}[check.ok]
            typer.echo(f"{mark} {check.name}: {check.found}" + (f"\n     → {check.remedy}" if check.remedy else ""))
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


@app.command("config")
def config_command(
    show_example: Annotated[bool, typer.Option("--example", help="Print every field, commented.")] = False,
    check: Annotated[Path | None, typer.Option("--check", help="Check a file and say what is wrong.")] = None,
) -> None:
    """Print a commented configuration, or check one."""
    if show_example:
        typer.echo(example(), nl=False)
    elif check is not None:
        _config(check)
        typer.echo(f"{check}: valid")
    else:
        typer.echo("say --example or --check FILE", err=True)
        raise typer.Exit(2)


@app.command()
def audit(json: JsonOption = False, config: ConfigOption = None) -> None:
    """Verify the audit log's chain; with --json, print it."""
    from appliance.health.status import audit_of
    from appliance.store.errors import StoreError

    with _told(StoreError, OSError):
        entries, broken = audit_of(_config(config))
    if json:
        for entry in entries:
            _print_json(entry)
    typer.echo(f"{len(entries)} entries, " + (f"broken at entry {broken}" if broken else "unbroken"), err=json)
    if broken:
        raise typer.Exit(1)


@models_app.command("list")
def models_list(
    json: JsonOption = False, models: ModelsOption = None, cache: CacheOption = None, config: ConfigOption = None
) -> None:
    """The bundles, what they read and whether they can serve."""
    from appliance.inference.commands import list_bundles

    _print_all(list_bundles(*_folders(config, models, cache)), json=json)


@models_app.command("verify")
def models_verify(
    engine: EngineOption = "auto",
    report: Annotated[Path | None, typer.Option(help="Write the full report here as JSON.")] = None,
    json: JsonOption = False,
    models: ModelsOption = None,
    cache: CacheOption = None,
    config: ConfigOption = None,
) -> None:
    """Replay every bundle's golden inputs on this box's engine."""
    from appliance.inference.commands import verify

    with _told(OSError, _engine_error()):
        outcome = verify(*_folders(config, models, cache), engine, report)
    _print_all(outcome, json=json)
    if not all(getattr(one, "ok", True) for one in _listed(outcome)):
        raise typer.Exit(1)


@models_app.command("evaluate")
def models_evaluate(
    bundle: Annotated[str, typer.Argument(help="A bundle's id, or its folder.")],
    labels: Annotated[Path, typer.Argument(help="CSV with the columns file,label[,patient,source,...].")],
    root: Annotated[
        Path | None, typer.Option(help="Folder the files are relative to; the CSV's own by default.")
    ] = None,
    positive: Annotated[str, typer.Option(help="Labels that mean positive, separated by commas.")] = "",
    finding: Annotated[str | None, typer.Option(help="Which finding the labels are of.")] = None,
    sensitivity: Annotated[float, typer.Option(min=0, max=1, help="Suggest a threshold for it.")] = 0.90,
    age: Annotated[float | None, typer.Option(min=0, max=150, help="The patients' age in years.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Write ROC and calibration plots (PNG) here.")] = None,
    engine: EngineOption = "auto",
    json: JsonOption = False,
    models: ModelsOption = None,
    cache: CacheOption = None,
    config: ConfigOption = None,
) -> None:
    """Validate a bundle on a clinic's own labelled files, as every guideline asks before use."""
    from appliance.inference.bundle import BundleError
    from appliance.reading.evaluate import run_evaluate
    from appliance.reading.labels import LabelsError

    directory, derived = _folders(config, models, cache)
    with _told(OSError, BundleError, LabelsError, _engine_error()):
        evaluation = run_evaluate(
            Path(bundle) if Path(bundle).is_dir() else directory / bundle,
            labels,
            cache=derived,
            root=root,
            engine=engine,
            finding=finding,
            positive=[one.strip() for one in positive.split(",") if one.strip()],
            sensitivity=sensitivity,
            age=age,
            plots=plots,
            on_progress=None if json else _show_progress,
        )
    if json:
        _print_json(evaluation)
    else:
        _print_evaluation(evaluation)


@models_app.command("build")
def models_build(
    engine: EngineOption = "auto", models: ModelsOption = None, cache: CacheOption = None, config: ConfigOption = None
) -> None:
    """Build what this box's engine needs (TensorRT plans, derived models), showing progress."""
    from appliance.inference.commands import build

    with _told(OSError, _engine_error()):
        _print_all(build(*_folders(config, models, cache), engine), json=False)


def main() -> None:
    """Entry point of the command."""
    app()


def _config(path: Path | None) -> Config:
    chosen = path or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    if chosen is None:
        return Config()
    with _told(ConfigError):
        return load_config(chosen)
    raise AssertionError


def _folders(config: Path | None, models: Path | None, cache: Path | None) -> tuple[Path, Path]:
    """Bundles and cache: as said, else as configured; without a configuration the cache is the user's own."""
    settings = _config(config)
    configured = config is not None or DEFAULT_CONFIG.exists()
    derived = settings.models_cache if configured else Path.home() / ".cache" / "bedside"
    return models or settings.models_directory, cache or derived


def _engine_error() -> type[Exception]:
    from appliance.inference.engine import EngineError

    return EngineError


@contextmanager
def _told(*kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds become one line and exit status 1."""
    try:
        yield
    except kinds as error:
        typer.echo(f"bedside: {error}", err=True)
        raise typer.Exit(1) from None


def _existing(files: list[Path]) -> Iterator[Path]:
    for path in files:
        if path.is_dir():
            yield from sorted(one for one in path.rglob("*") if one.is_file())
        else:
            yield path


def _complain(problem: str) -> None:
    typer.echo(f"bedside: {problem}", err=True)


def _print_evaluation(evaluation: Any) -> None:
    def interval(one: Any) -> str:
        return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"

    typer.echo(
        f"{evaluation.bundle} {evaluation.version} on {evaluation.engine} ({evaluation.provider}): "
        f"{evaluation.read} of {evaluation.files} files read, median {evaluation.milliseconds_median:.0f} ms"
    )
    for one in evaluation.findings:
        point = one.operating_point
        typer.echo(f"\n{one.finding}: {one.positives} positive, {one.negatives} negative, {one.patients} patients")
        typer.echo(f"  AUROC {interval(one.auroc)}  calibration error {one.calibration_error:.3f}")
        typer.echo(f"  at the operating point: {_flat(point)}")
        if one.suggested is not None:
            typer.echo(f"  for a sensitivity of {one.wanted_sensitivity:.2f}: {_flat(one.suggested)}")
        for source in one.by_source:
            typer.echo(f"  {_flat(source)}")
        for note in one.notes:
            typer.echo(f"  note: {note}")
    for refused in evaluation.refused:
        typer.echo(f"not read: {_flat(refused)}")


def _flat(one: Any) -> str:
    """A record on one line, for people."""
    parts = []
    for name, value in msgspec.to_builtins(one).items():
        if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
            parts.append(f"{name} {value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]")
        elif isinstance(value, float):
            parts.append(f"{name} {value:.3f}")
        elif value not in ("", None, [], {}):
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def _show_progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    sys.stderr.write(f"\r{done} of {total} files read{end}")
    sys.stderr.flush()


def _say_added(path: Path, outcome: str, kept: bool) -> bool:
    typer.echo(f"{path}: {outcome}", err=not kept)
    return kept


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def _print_line(line: Any) -> None:
    mark = {"critical": "!!!", "urgent": "!! ", "routine": "   "}[line.triage]
    found = ", ".join(
        f"{one.label} {one.probability:.0%}{' (positive)' if one.positive else ''}" for one in line.findings
    )
    typer.echo(f"{mark} {line.file}: {found or line.reason}")
    typer.echo(f"      {line.advice}  [{line.bundle} {line.engine} {line.provider} {line.milliseconds:.0f} ms]")


def _listed(outcome: Any) -> list[Any]:
    return list(outcome) if isinstance(outcome, (list, tuple)) else [outcome]


def _print_all(outcome: Any, *, json: bool) -> None:
    for one in _listed(outcome):
        if json:
            _print_json(one)
        else:
            fields = msgspec.to_builtins(one)
            shown = [f"{key} {value}" for key, value in fields.items() if value not in ("", [], {}, None)]
            typer.echo("  ".join(shown))


def _log_to_stderr(config: LogConfig) -> None:
    import logging

    import structlog

    level: int = getattr(logging, config.level.upper())
    logging.basicConfig(stream=sys.stderr, level=max(level, logging.WARNING), format="%(name)s: %(message)s")
    last: Callable[..., Any] = (
        structlog.processors.JSONRenderer() if config.format == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


if __name__ == "__main__":
    main()
