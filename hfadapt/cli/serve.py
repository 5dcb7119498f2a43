"""``hfadapt serve``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ..errors import ConfigError, HFAdaptError
from .output import base_option

__all__ = ["serve"]

_TOKEN = "HFADAPT_SERVE_TOKEN"


@click.command()
@click.argument("folders", nargs=-1, required=True, metavar="FOLDER...")
@base_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Where clients are heard; 0.0.0.0 for all.")
@click.option("--port", default=8000, show_default=True, help="0 for a free one.")
@click.option("--dtype", default="float32", show_default=True, help="Of the frozen weights; see hfadapt.pack.")
@click.option("--token-budget", default=4096, show_default=True, help="Padded tokens of a forward.")
@click.option("--max-characters", default=20_000, show_default=True, help="Of a text.")
@click.option("--max-new-tokens", default=64, show_default=True, help="Of what a base writes.")
@click.option("--wait-ms", default=4.0, show_default=True, help="How long a batch waits for more requests.")
@click.option("--batch-texts", default=64, show_default=True, help="At which a batch waits no longer.")
@click.option("--queue-texts", default=1024, show_default=True, help="Beyond which clients get status 429.")
@click.option("--request-texts", default=256, show_default=True, help="Of one request.")
@click.option("--body-bytes", default=4 << 20, show_default=True, help="Of one request.")
@click.option("--shutdown-seconds", default=30.0, show_default=True, help="For what is under way at the end.")
@click.option("--watch-seconds", default=10.0, show_default=True, help="Between looks at the folders; 0 for none.")
@click.option(
    "--root", type=click.Path(path_type=Path), help="Lets tasks be changed over HTTP, from folders below this one."
)
@click.option("--token-file", type=click.Path(path_type=Path), help=f"Who may, with --root; or the variable {_TOKEN}.")
def serve(
    folders: tuple[str, ...],
    base: str | None,
    host: str,
    port: int,
    dtype: str,
    token_budget: int,
    max_characters: int,
    max_new_tokens: int,
    wait_ms: float,
    batch_texts: int,
    queue_texts: int,
    request_texts: int,
    body_bytes: int,
    shutdown_seconds: float,
    watch_seconds: float,
    root: Path | None,
    token_file: Path | None,
) -> None:
    """Serve the tasks of each FOLDER over HTTP, all on one base; NAME=FOLDER calls its only task NAME.

    A page to try them stands at /, what may be asked at /docs. SIGTERM or Ctrl-C ends it when what is under way is
    answered.
    """
    from ..inference.serving import Admin, Limits

    # All that can be refused at once is, before weights are read.
    limits = Limits(
        wait_ms=wait_ms,
        batch_texts=batch_texts,
        queue_texts=queue_texts,
        request_texts=request_texts,
        body_bytes=body_bytes,
        shutdown_seconds=shutdown_seconds,
        watch_seconds=watch_seconds,
    )
    token = _token(token_file)
    if root is None and token_file is not None:
        raise click.UsageError("--token-file goes with --root")
    admin = None if root is None else Admin(root, token)
    try:
        from ..inference.serving.server import listen, make_server
    except ModuleNotFoundError as error:
        what, try_ = f"hfadapt serve needs {error.name}", "pip install 'hfadapt[serve]'"
        raise HFAdaptError(
            what,
            where="hfadapt serve",
            got="it is not installed",
            allowed="the packages of the extra 'serve'",
            try_=try_,
        ) from error
    from ..inference.engine import Engine

    with listen(host, port) as heard:
        engine = Engine.from_pretrained(
            _named(folders),
            base=base,
            dtype=dtype,
            token_budget=token_budget,
            max_characters=max_characters,
            max_new_tokens=max_new_tokens,
        )
        server = make_server(engine, limits, admin)
        name, number = heard.getsockname()[:2]
        click.echo(f"{len(engine.tasks)} tasks at http://{f'[{name}]' if ':' in name else name}:{number}")
        server.run(sockets=[heard])


def _named(folders: tuple[str, ...]) -> list[Path] | dict[str, Path]:
    """Return folders; by name where they are named."""
    from ..recipes.finished_run import adapter_of

    parts = [one.partition("=") for one in folders if not Path(one).exists()]
    named = [(name, folder) for name, sign, folder in parts if sign]
    if not named:
        return [adapter_of(Path(one)) for one in folders]
    if len(named) < len(folders):
        raise click.UsageError("give each folder as NAME=FOLDER, or none")
    if len(dict(named)) < len(named):
        raise click.UsageError("a name stands twice")
    return {name: adapter_of(Path(folder)) for name, folder in named}


def _token(file: Path | None) -> str:
    if file is None:
        return os.environ.get(_TOKEN, "")
    try:
        return file.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(
            "cannot read the token",
            where="--token-file",
            got=f"{file}: {error}",
            allowed="a file with one line",
            try_=f"write the token into that file, or leave the option out and set {_TOKEN}",
        ) from error
