"""HTTP interface of the registry: live trainers, jobs, metrics, and the health of the registry itself."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from services.registry.metrics import Metrics
from shared.errors import BadInput, FedqError, Unavailable
from shared.redis.ledger import JobRecord, Ledger
from shared.redis.roster import Member, Roster


def create(roster: Roster, ledger: Ledger, metrics: Metrics, away: Callable[[], list[str]]) -> FastAPI:
    """The application; `away` names the servers that cannot be reached now, each with a sentence."""
    app = FastAPI(title="fedq registry", description="Who is alive and what runs, in a fedq federation.")

    @app.exception_handler(Unavailable)
    @app.exception_handler(BadInput)
    def explain(_request: Request, error: FedqError) -> JSONResponse:
        status = 404 if isinstance(error, BadInput) else 503
        return JSONResponse({"detail": str(error)}, status)

    @app.get("/healthz")
    def health() -> JSONResponse:
        """200 while heartbeats are received and recorded; 503 with the reasons otherwise."""
        reasons = away()
        return JSONResponse({"status": "away" if reasons else "ok", "away": reasons}, 503 if reasons else 200)

    @app.get("/nodes")
    def nodes() -> list[Member]:
        """Every live trainer."""
        return roster.alive()

    @app.get("/jobs")
    def jobs() -> list[JobRecord]:
        """Every job, the newest first."""
        return ledger.jobs()

    @app.get("/jobs/{job}")
    def job(job: str) -> dict[str, Any]:
        """One job, with the round it has open."""
        record = ledger.required(job)
        open_round = ledger.round(job, record.round + 1)
        return {**asdict(record), "open_round": asdict(open_round) if open_round else None}

    @app.get("/metrics")
    def scrape() -> Response:
        """Numbers for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return app
