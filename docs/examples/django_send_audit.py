"""`manage.py send_audit`: audit/management/commands/send_audit.py. Run it every few seconds, in one place."""

import os

from audit.models import AuditEvent
from audit.outbox import send_pending
from django.core.management.base import BaseCommand

from muniment import Client, Policy


class Command(BaseCommand):
    help = "Send the events that wait to the log."

    def handle(self, **options: object) -> None:
        policy = Policy.read(os.environ["MUNIMENT_POLICY"])
        with Client(os.environ["MUNIMENT_URL"], policy=policy, api_key=os.environ.get("MUNIMENT_API_KEY")) as log:
            rows = AuditEvent.objects.filter(receipt=None).order_by("pk")[:1000]
            self.stdout.write(f"{send_pending(rows, log)} sent")
