"""`woqfx report`: a page about how a checkpoint was made."""

from __future__ import annotations

import json
from pathlib import Path

import click

from woqfx.cli import text


@click.command(
    "report",
    short_help="Write a page about how a checkpoint was made.",
    epilog="""\b
Examples:
  woqfx report out/
  woqfx report out/ --to report.html
  woqfx report out/ --json
""",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--to", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="The page.  [default: FOLDER.html]"
)
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
@click.option("--backend", default="torch_cpu", show_default=True, metavar="NAME", help="Whose kernels to name.")
@click.option("--json", "as_json", is_flag=True, help="The numbers as one JSON object on standard output, and no page.")
def command(folder: Path, to: Path | None, overwrite: bool, backend: str, as_json: bool) -> None:
    """Write one HTML file that shows a checkpoint's errors before and after each step, what was chosen, and the cost.

    It holds everything that it needs: no network, no script. What there is to show depends on the algorithm: one that
    looked at no data left the errors of its weights, and no more.
    """
    from woqfx.report import read_report, write_page

    found = read_report(folder, backend)
    if as_json:
        click.echo(json.dumps(found.to_json(), indent=1))
        return
    target = to or folder.resolve().with_name(folder.resolve().name + ".html")
    _write(target, write_page(found), overwrite)
    text.console().print(f"written: {target}", soft_wrap=True)


def _write(path: Path, page: str, overwrite: bool) -> None:
    from woqfx.disk.durable import explained
    from woqfx.errors import OutputError

    try:
        with explained(path), path.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(page)
    except OutputError as error:
        if isinstance(error.__cause__, FileExistsError):
            raise OutputError(f"{path} is there already: give --overwrite, or another name (--to)") from error
        raise
