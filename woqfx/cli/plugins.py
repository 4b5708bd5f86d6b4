"""`woqfx plugins`: what is installed, and what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

import click

from woqfx.cli import text


@click.command(
    "plugins",
    short_help="List the plugins, what each provides, and what is wrong.",
    epilog="""\b
Examples:
  woqfx plugins
  woqfx plugins --json
  WOQFX_PLUGINS=no:rtn woqfx plugins            without one of them
  WOQFX_STRICT_PLUGINS=1 woqfx plugins          the first problem is an error
""",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object with a list of plugins.")
def command(as_json: bool) -> None:
    """List each plugin with its version and distribution, its hooks, and what it provides.

    Plugins are found through the entry-point group woqfx of installed packages; the built-in ones come the same way.
    """
    plugins = _plugins()
    if as_json:
        click.echo(json.dumps({"plugins": plugins}, indent=1))
        return
    rows = text.Grid("plugin", "distribution", "hooks", "provides", expendable=("hooks",))
    for plugin in plugins:
        provided = [f"{kind}: {', '.join(names)}" for kind, names in plugin["provides"].items()]
        rows.add(
            plugin["name"],
            f"{plugin['distribution']} {plugin['version']}".strip(),
            "\n".join(plugin["hooks"]),
            "\n".join(provided) or plugin["absent"],
            style="dim" if plugin["absent"] else "",
        )
    out = text.console()
    rows.show(out)
    for plugin in plugins:
        for problem in plugin["problems"]:
            out.print(f"{plugin['title']}: {problem}", style="red")


def _plugins() -> list[dict[str, Any]]:
    from woqfx.plugins import registry

    known = registry()
    # What they provide is asked first: that is when most problems show.
    provided = [known.provided_by(plugin) for plugin in known.plugins]
    return [
        {
            "name": plugin.name,
            "version": plugin.version,
            "distribution": plugin.distribution,
            "title": plugin.title,
            "hooks": known.hooks_of(plugin),
            "provides": names,
            "absent": plugin.absent,
            "problems": list(plugin.problems),
        }
        for plugin, names in zip(known.plugins, provided, strict=True)
    ]
