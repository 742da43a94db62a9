"""A site of Django made of the example of docs/frameworks.md, in the folder that it is started in: one act, and what was sent.

Prints the receipts of the rows, a line of JSON each.
"""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.http import Http404
from django.test import RequestFactory

INVOICES = """from django.db import models


class Invoice(models.Model):
    number = models.TextField(unique=True)
    approved = models.BooleanField(default=False)
"""


def _set_up() -> None:
    Path("invoices").mkdir()
    Path("invoices/__init__.py").touch()
    Path("invoices/models.py").write_text(INVOICES)
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": "site.sqlite"}
    apps = ["django.contrib.contenttypes", "audit", "invoices"]
    field = "django.db.models.BigAutoField"
    settings.configure(INSTALLED_APPS=apps, DATABASES={"default": database}, DEFAULT_AUTO_FIELD=field)
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)


def _send() -> str:
    said = io.StringIO()
    call_command("send_audit", stdout=said)
    return said.getvalue().strip()


def main() -> None:
    """Approve an invoice, fail to approve another one, and send what waits, twice."""
    _set_up()
    from audit.models import AuditEvent  # noqa: PLC0415 - Django has to be set up
    from audit.views import approve  # noqa: PLC0415
    from invoices.models import Invoice  # noqa: PLC0415

    Invoice.objects.create(number="inv-17")
    request = RequestFactory().post("/")
    request.user = SimpleNamespace(get_username=lambda: "alice")
    assert approve(request, "inv-17").status_code == 200
    with contextlib.suppress(Http404):
        approve(request, "inv-18")
    assert Invoice.objects.get().approved
    assert AuditEvent.objects.count() == 1, "an event of what was not done"
    assert [_send(), _send()] == ["1 sent", "0 sent"]
    for row in AuditEvent.objects.all():
        print(json.dumps({"event": row.event, "receipt": row.receipt}))
    connection.close()


if __name__ == "__main__":
    main()
