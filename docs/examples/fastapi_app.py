"""A web service whose approvals are in a log before they are answered. Run: uvicorn fastapi_app:app"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Header, HTTPException, Request

from muniment import AsyncClient, MunimentError, Policy, Refused


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    policy = Policy.read(os.environ["MUNIMENT_POLICY"])
    async with AsyncClient(
        os.environ["MUNIMENT_URL"], policy=policy, api_key=os.environ.get("MUNIMENT_API_KEY")
    ) as log:
        app.state.log = log  # one client for the process: it keeps its connections
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/invoices/{invoice}/approve")
async def approve(invoice: str, request: Request, idempotency_key: str | None = Header(None)) -> dict[str, Any]:
    """Log first, then act: what is not in the log has not happened."""
    event = {"actor": "alice", "action": "invoice.approve", "resource": invoice}
    try:
        receipt = await request.app.state.log.append(event, idempotency_key=idempotency_key)
    except Refused as error:  # nothing is in the log: this key was used for another invoice, for example
        raise HTTPException(409, f"not logged, so not approved: {error.code}") from error
    except MunimentError as error:
        detail = "the log gave no answer. The approval may be in it: repeat it with the same Idempotency-Key"
        raise HTTPException(503, detail) from error
    # ... approve it in your database here, and keep the receipt beside it
    return {"approved": invoice, "entry": receipt.index, "receipt": str(receipt)}
