"""The top of the command line: finds commands without importing them, and prints hfadapt's errors plainly."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping

import click

import hfadapt

from ..errors import HFAdaptError, PluginError, did_you_mean
from ..errors.distributions import may_have_entry_points

__all__ = ["cli", "main"]

# name -> (module:attribute, help line). The help stands here so that `hfadapt --help` imports nothing heavy.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "train": ("hfadapt.cli.train:train", "Train the tasks of a recipe together and report."),
    "evaluate": ("hfadapt.cli.evaluate:evaluate", "Score a saved adapter on its tasks' data."),
    "predict": ("hfadapt.cli.predict:predict", "Predict texts with a saved adapter, tasks mixed in one batch."),
    "serve": ("hfadapt.cli.serve:serve", "Serve saved adapters over HTTP, all on one base."),
    "export": ("hfadapt.cli.export:export", "Write a saved adapter as peft, AdapterHub or a merged model."),
    "compare": ("hfadapt.cli.compare:compare", "Show runs beside each other: scores, cost, what differs."),
    "methods": ("hfadapt.cli.methods:methods", "List adaptation methods, or show the options of one."),
    "regularizers": ("hfadapt.cli.regularizers:regularizers", "List regularizers of training with their options."),
    "plugins": ("hfadapt.cli.plugins:plugins", "Show which plugins loaded, from where, and which failed."),
    "inspect": ("hfadapt.cli.inspect:inspect", "Show a model's slots, sizes and the methods that fit it."),
    "explain": ("hfadapt.cli.explain:explain", "Follow one call of an adapted model, slot by slot."),
    "doctor": ("hfadapt.cli.doctor:doctor", "Show versions, devices and which kernel serves which op here."),
    "data": ("hfadapt.cli.data:data", "List named data sets; build the minisuite."),
    "bench": ("hfadapt.cli.bench:bench", "Measure the kernels on this machine."),
    "new": ("hfadapt.cli.new:new", "Write the files of a plugin of your own."),
    "completion": ("hfadapt.cli.completion:completion", "Print a shell completion script."),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is used, and asks plugins only for names that are not built in."""

    _plugins_asked = False
    _origins: Mapping[str, str] = {}

    def list_builtin(self) -> list[str]:
        """The names of hfadapt's own commands, which plugins cannot take."""
        return list(COMMANDS)

    def invoke(self, ctx: click.Context) -> object:
        """As click; what a plugin's command raises is named with its origin."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.ClickException, click.exceptions.Exit, click.Abort, HFAdaptError):
            raise
        except Exception as error:
            origin = self._origins.get(str(ctx.invoked_subcommand))
            if origin is None:
                raise
            raise PluginError(
                f"the command {ctx.invoked_subcommand!r} failed",
                where=f"plugin {origin}",
                got=f"{type(error).__name__}: {error}",
                allowed="a command that ends, or raises a click.ClickException that says why not",
                try_="HFADAPT_DEBUG=1 shows the traceback; it is the plugin's to mend",
            ) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Built-in names in their order, then those of third-party plugins."""
        self._ask_plugins()
        return [*COMMANDS, *sorted(name for name in self.commands if name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command by its name."""
        if cmd_name in COMMANDS:
            module, _, attribute = COMMANDS[cmd_name][0].partition(":")
            return getattr(importlib.import_module(module), attribute)
        self._ask_plugins()
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table above, without importing them."""
        names = self.list_commands(ctx)
        rows = []
        for name in names:
            line = COMMANDS[name][1] if name in COMMANDS else self.commands[name].get_short_help_str(80)
            rows.append((name, line))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click, with the nearest name in the error."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            hint = did_you_mean(args[0], self.list_commands(ctx))
            ctx.fail(f"No such command {args[0]!r}. {hint}".rstrip())
        return super().resolve_command(ctx, args)

    def _ask_plugins(self) -> None:
        """Let third parties add commands. Without any of them nothing is loaded: help stays fast."""
        if self._plugins_asked:
            return
        self._plugins_asked = True
        # Plugins can be added by hand only where the module that loads them was imported.
        loader = sys.modules.get("hfadapt.plugins.loading")
        by_hand = loader is not None and bool(loader._ADDED)
        if not by_hand and (os.environ.get("HFADAPT_PLUGINS") == "" or not may_have_entry_points("hfadapt")):
            return
        from ..plugins import loading

        self._origins = loading.add_commands(self)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(hfadapt.__version__, prog_name="hfadapt")
def cli() -> None:
    """Adapt one pretrained transformer to many tasks.

    Try: hfadapt train examples/minisuite-pals.yaml --fast
    """


def main() -> None:
    """Run the command line. An error that hfadapt raises on purpose is printed without a traceback; exit status 1.

    ``HFADAPT_DEBUG=1`` shows the traceback.
    """
    try:
        cli(prog_name="hfadapt")
    except HFAdaptError as error:
        if os.environ.get("HFADAPT_DEBUG") == "1":
            raise
        click.secho("error: ", fg="red", bold=True, err=True, nl=False)
        click.echo(str(error), err=True)
        sys.exit(1)
