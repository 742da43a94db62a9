"""Which of the two databases an instance has.

Its library loads with it, the other one's never: each takes megabytes.
"""

from __future__ import annotations

from pathlib import Path

from muniment_server.database_url import name_of
from muniment_server.settings import Settings
from muniment_server.storage import Store


async def open_database(sqlite: Path, url: str | None) -> Store:
    """Open the Postgres database at `url`, or else the embedded one in the file `sqlite`.

    Raises SchemaError, SettingsError or StoreUnavailable.
    """
    if url:
        from muniment_server.storage.postgres.open import open_postgres  # noqa: PLC0415 - see above

        return await open_postgres(url)
    from muniment_server.storage.sqlite.open import open_sqlite  # noqa: PLC0415 - see above

    return await open_sqlite(sqlite)


def place_of(settings: Settings) -> str:
    """Return which database an instance has, for people: nothing in it is secret."""
    return name_of(settings.database) if settings.database else f"SQLite database {settings.sqlite}"


async def open_store(settings: Settings) -> Store:
    """Open the database of an instance. Raises SchemaError, SettingsError or StoreUnavailable."""
    return await open_database(settings.sqlite, settings.database)


async def open_new_store(settings: Settings) -> Store:
    """As `open_store`; an empty Postgres database gets its schema first, as SQLite does by itself."""
    if settings.database:
        from muniment_server.storage.postgres.connect import make_schema  # noqa: PLC0415 - see above

        await make_schema(settings.database)
    return await open_store(settings)
