"""Orders of the channels that runs have used, so that a table with its columns in another order fits them.

`<storage>/<study>/channels.json` is a list of lists of names, with one list for each set of channels.
"""

import json

from pm25.errors import InputError
from pm25.panel import Panel
from pm25.text import parse_json
from sweeps.store import records
from sweeps.store.records import StorageError, Store

FILE = "channels.json"


def stored_order(panel: Panel, store: Store) -> tuple[str, ...] | None:
    """Return the order in which runs have used the channels of a panel, or None if none has used them.

    Raises InputError for a damaged file, and for a storage that cannot be read.
    """
    return next((order for order in read(store) if {*order} == {*panel.channels}), None)


def record_order(panel: Panel, store: Store) -> None:
    """Store the order of a panel's channels, unless an order of the same channels is stored.

    Raises InputError for a damaged file, and for a storage that cannot be read or written.
    """
    orders = read(store)
    if any({*order} == {*panel.channels} for order in orders):
        return
    system, path = store.location(FILE)
    try:
        content = json.dumps([*orders, panel.channels], indent=1).encode()
        records.write(system, path, content, store.fenced)
    except StorageError as error:
        raise store.refusal("written", error) from None


def read(store: Store) -> list[tuple[str, ...]]:
    """Return the stored orders, one for each set of channels. Raises InputError."""
    content = store.own_file(FILE)
    if content is None:
        return []
    try:
        orders = parse_json(content)
    except ValueError:
        orders = None
    if not isinstance(orders, list) or not all(_is_order(order) for order in orders):
        fix = "delete the file; the channels are then used in the order of the table"
        raise InputError(store.location(FILE)[1], "", "not a list of lists of channels", fix)
    return [tuple(order) for order in orders]


def _is_order(order: object) -> bool:
    return isinstance(order, list) and all(isinstance(name, str) for name in order)
