"""`steerkit models`: the model families that can be steered."""

from __future__ import annotations

from steerkit.cli.console import clean, console, print_json
from steerkit.cli.options import AsJson, Debug


def models(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the model families that can be steered.

    Each adapter with the model types that it serves and the distribution that provides it.
    """
    from steerkit._internal.plugins import ADAPTERS, registered
    from steerkit.cli.loading import import_libraries
    from steerkit.models import ModelAdapter

    import_libraries()
    found = registered(ADAPTERS, ModelAdapter)
    if as_json:
        rows = [
            {
                "name": each.name,
                "model_types": [] if each.value is None else list(each.value.model_types),
                "distribution": each.distribution,
                "error": each.error,
            }
            for each in found
        ]
        print_json({"adapters": rows})
        return
    from rich.table import Table

    table = Table("adapter", "model types (config.model_type)", "distribution")
    for each in found:
        types = f"BROKEN: {each.error}" if each.error is not None else ", ".join(each.value.model_types)
        table.add_row(clean(each.name), clean(types), clean(each.distribution), style="red" if each.error else None)
    console().print(table)
