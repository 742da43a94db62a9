"""What is done and the event of it are one transaction: neither is there without the other."""

from audit.models import AuditEvent
from django.db import transaction
from django.http import HttpRequest, JsonResponse
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_POST
from invoices.models import Invoice


@require_POST
def approve(request: HttpRequest, number: str) -> JsonResponse:
    with transaction.atomic():
        invoice = get_object_or_404(Invoice.objects.select_for_update(), number=number)
        invoice.approved = True
        invoice.save()
        event = {"actor": request.user.get_username(), "action": "invoice.approve", "resource": number}
        AuditEvent.objects.create(event=event)
    return JsonResponse({"approved": number})
