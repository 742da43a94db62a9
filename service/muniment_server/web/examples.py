"""A command for each route, for the pages that describe them. Tests run each of them against a server.

$URL is an event log, $RAW a raw log; both have entries.
"""

from __future__ import annotations

CURL = {
    "POST /entries": """curl --json '{"actor":"alice","action":"invoice.approve"}' $URL/entries""",
    "POST /entries/batch": (
        """printf '%s\\n' '{"n":1}' '{"n":2}' | """
        """curl -H 'Content-Type: application/x-ndjson' --data-binary @- $URL/entries/batch"""
    ),
    "POST /add": "printf 'some bytes' | curl --data-binary @- $RAW/add",
    "GET /entries": 'curl "$URL/entries?start=0&limit=10"',
    "GET /export": 'curl -o log.jsonl "$URL/export?format=jsonl"',
    "GET /search": 'curl -G $URL/search --data-urlencode "q=actor:alice -action:login"',
    "GET /entries/{index}": "curl $URL/entries/1",
    "GET /entries/{index}/receipt": "curl $URL/entries/1/receipt",
    "GET /proof/inclusion": 'curl "$URL/proof/inclusion?index=1"',
    "GET /proof/consistency": 'curl "$URL/proof/consistency?first=1&second=2"',
    "GET /checkpoints": 'curl "$URL/checkpoints?start=0&limit=10"',
    "GET /checkpoints/stream": "curl -N $URL/checkpoints/stream",
    "GET /anchors": 'curl "$URL/anchors?start=0&limit=10"',
    "GET /anchors/{size}": "curl $URL/anchors/1",
    "GET /anchors/{size}/checkpoint": "curl -fO $URL/anchors/1/checkpoint",
    "GET /anchors/{size}/checkpoint.ots": "curl -fO $URL/anchors/1/checkpoint.ots",
    "GET /log": "curl $URL/log",
    "GET /log/coverage": "curl $URL/log/coverage",
    "GET /checkpoint": "curl $URL/checkpoint",
    "GET /tile/{path:path}": "curl -o tile $URL/tile/0/000.p/2",
    "GET /healthz": "curl $URL/healthz",
    "GET /readyz": "curl $URL/readyz",
    "GET /logs": "curl $URL/logs",
    "GET /version": "curl $URL/version",
    "POST /verify": "curl $URL/entries/1/receipt | curl --json @- $URL/verify",
    "GET /openapi.json": "curl $URL/openapi.json",
    "GET /docs": "curl $URL/docs",
    "GET /": "curl $URL/",
}
