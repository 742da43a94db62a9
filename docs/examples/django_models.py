"""The table of events that wait, in an app of yours called `audit`."""

import uuid

from django.db import models


class AuditEvent(models.Model):
    key = models.UUIDField(default=uuid.uuid4, unique=True)
    event = models.JSONField()
    receipt = models.TextField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)
