"""The commands ``bedside models …``: list, verify, evaluate, build, sign, trust and install the bundles."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from appliance.terminal import (
    CacheOption,
    ConfigOption,
    EngineOption,
    JsonOption,
    ModelsOption,
    configured,
    engine_error,
    flat,
    folders,
    listed,
    print_all,
    print_json,
    told,
)

models_app = typer.Typer(
    help="The model bundles: list, verify, evaluate, build, sign, trust, install.", no_args_is_help=True
)


@models_app.command("list")
def models_list(
    json: JsonOption = False, models: ModelsOption = None, cache: CacheOption = None, config: ConfigOption = None
) -> None:
    """The bundles, what they read and whether they can serve."""
    from appliance.inference.commands import list_bundles

    print_all(list_bundles(*folders(config, models, cache)), json=json)


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

    with told(OSError, engine_error()):
        outcome = verify(*folders(config, models, cache), engine, report)
    print_all(outcome, json=json)
    if not all(getattr(one, "ok", True) for one in listed(outcome)):
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

    directories, derived = folders(config, models, cache)
    inside = [one / bundle for one in directories]
    with told(OSError, BundleError, LabelsError, engine_error()):
        evaluation = run_evaluate(
            next((one for one in (Path(bundle), *inside) if one.is_dir()), inside[0]),
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
        print_json(evaluation)
    else:
        _print_evaluation(evaluation)


@models_app.command("build")
def models_build(
    engine: EngineOption = "auto", models: ModelsOption = None, cache: CacheOption = None, config: ConfigOption = None
) -> None:
    """Build what this box's engine needs (TensorRT plans, derived models), showing progress."""
    from appliance.inference.commands import build

    with told(OSError, engine_error()):
        print_all(build(*folders(config, models, cache), engine), json=False)


@models_app.command("keygen")
def models_keygen(
    file: Annotated[Path, typer.Argument(help="Where the private key goes; keep it off the boxes.")],
) -> None:
    """Make a key to sign bundles with, and print its public half for ``bedside models trust``."""
    from appliance.inference import signature

    with told(OSError):
        public = signature.generate(file)
    typer.echo(signature.public_text(public))


@models_app.command("sign")
def models_sign(
    folder: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    key: Annotated[Path, typer.Option(help="The private key, as keygen made it.")],
) -> None:
    """Check a bundle's files and sign its description."""
    from appliance.inference import bundle, signature

    with told(OSError, bundle.BundleError):
        found = bundle.load(folder)
        path = signature.sign(folder, signature.private_key(key))
    typer.echo(f"{found.id} {found.version} is signed: {path}")


@models_app.command("trust")
def models_trust(
    key: Annotated[
        str | None, typer.Argument(help="A public key, as keygen printed it; without one, list them.")
    ] = None,
    name: Annotated[str, typer.Option(help="Whose key it is.")] = "",
    remove: Annotated[str | None, typer.Option(help="Name, fingerprint or text of a key to trust no more.")] = None,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Let bundles serve that the owner of a key has signed; written to the audit log."""
    from appliance.health.clock import Clock
    from appliance.inference.bundle import BundleError
    from appliance.inference.installing import distrust, trust
    from appliance.inference.trust import of_config
    from appliance.store.errors import StoreError

    settings = configured(config)
    with told(OSError, BundleError, StoreError):
        if remove is not None:
            typer.echo(f"trusted no more: {distrust(settings, remove, Clock().now)}")
        elif key is not None:
            typer.echo(f"trusted: {trust(settings, key, name, Clock().now)}")
        else:
            print_all(of_config(settings).keys(), json=json)


@models_app.command("install")
def models_install(
    source: Annotated[Path, typer.Argument(help="The bundle: a folder, or a zip of one.")],
    force: Annotated[bool, typer.Option("--force", help="Take an older version all the same; audited.")] = False,
    json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Check signature, files, version and golden cases, then let the bundle serve; a running daemon takes it up."""
    from appliance.health.clock import Clock
    from appliance.inference.bundle import BundleError
    from appliance.inference.installing import install_here
    from appliance.store.errors import StoreError

    with told(OSError, BundleError, StoreError, engine_error()):
        done = install_here(configured(config), source, Clock().now, force=force)
    if json:
        print_json(done)
    elif done.news:
        before = f", in place of {done.before}" if done.before else ""
        typer.echo(f"{done.id} {done.version} is installed{before}; signed by {done.signed_by}")
    else:
        typer.echo(f"{done.id} {done.version} serves already")


def _print_evaluation(evaluation: Any) -> None:
    def interval(one: Any) -> str:
        return f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"

    typer.echo(
        f"{evaluation.bundle} {evaluation.version} on {evaluation.engine} ({evaluation.provider}): "
        f"{evaluation.read} of {evaluation.files} files read, median {evaluation.milliseconds_median:.0f} ms"
    )
    for one in evaluation.findings:
        counts = f"{one.positives} positive, {one.negatives} negative, {one.patients} patients"
        typer.echo(f"\n{one.finding}, by {one.unit}: {counts}")
        typer.echo(f"  AUROC {interval(one.auroc)}  calibration error {one.calibration_error:.3f}")
        _print_threshold("at the operating point", one.operating_point)
        if one.suggested is not None:
            _print_threshold(f"for a sensitivity of {one.wanted_sensitivity:.2f}", one.suggested)
        for source in one.by_source:
            typer.echo(f"  {flat(source)}")
        for note in one.notes:
            typer.echo(f"  note: {note}")
    for refused in evaluation.refused:
        typer.echo(f"not read: {flat(refused)}")


def _print_threshold(title: str, point: Any) -> None:
    """What calling positive from a threshold on does, also in people."""
    rates = msgspec.structs.asdict(point)
    thousand = rates.pop("per_thousand")
    typer.echo(f"  {title}: " + ", ".join(flat({name: value}) for name, value in rates.items() if value is not None))
    for one in thousand:
        ill = f"of 1,000 of whom {1000 * one.prevalence:.0f} are ill"
        typer.echo(f"    {ill}: {one.missed:.0f} missed, {one.false_alarms:.0f} false alarms")


def _show_progress(done: int, total: int) -> None:
    """On a terminal a line that counts; in a log a line for every tenth."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done} of {total} files read" + "\n" * (done == total))
        sys.stderr.flush()
    elif done == total or done * 10 // total > (done - 1) * 10 // total:
        typer.echo(f"{done} of {total} files read", err=True)
