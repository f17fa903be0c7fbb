"""What is written most often today: FastAPI on uvicorn with aiokafka. Validates JSON and writes it.

uvicorn --app-dir benchmarks/peers fastapi_aiokafka:app, with fastapi, uvicorn[standard] and aiokafka installed.
"""

import hmac
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

from aiokafka import AIOKafkaProducer
from fastapi import FastAPI, Header, HTTPException, Response
from pydantic import BaseModel


class Order(BaseModel):
    """A webhook's body."""

    orderId: str  # noqa: N815
    status: str
    updatedAt: datetime  # noqa: N815
    orderExternalId: str | None = None  # noqa: N815


class Kafka:
    """The producer, which is made in the running loop."""

    producer: AIOKafkaProducer


@asynccontextmanager
async def life(_app: FastAPI) -> AsyncIterator[None]:
    """Keep the producer for as long as the application runs."""
    Kafka.producer = AIOKafkaProducer(
        bootstrap_servers=os.environ["BENCH_BOOTSTRAP"], acks="all", enable_idempotence=True, linger_ms=0
    )
    await Kafka.producer.start()
    yield
    await Kafka.producer.stop()


app = FastAPI(lifespan=life)


@app.get("/webhooks", status_code=204)
async def here() -> Response:
    """Answer that somebody is here."""
    return Response(status_code=204)


@app.post("/webhooks", status_code=204)
async def webhook(order: Order, x_event_secret: str = Header()) -> Response:
    """Answer 204 once Kafka has the record."""
    if not hmac.compare_digest(x_event_secret, os.environ["BENCH_SECRET"]):
        raise HTTPException(401)
    await Kafka.producer.send_and_wait(
        os.environ["BENCH_TOPIC"], order.model_dump_json().encode(), order.orderId.encode()
    )
    return Response(status_code=204)
