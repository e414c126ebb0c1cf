"""A trained recommender behind HTTP.

``POST /rank`` takes a history and returns the items to follow it, ``GET /health`` says what is
served.  No value of a request is kept, logged or sent back in an error, which names unknown keys
alone, and no page loads anything from elsewhere: ``GET /openapi.json`` describes the service, but
there is no page that shows it.
"""

from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from graphcl.errors import DataError
from graphcl.recommend import Recommender

LONGEST_HISTORY = 10_000
LARGEST_K = 1000
_LATEST = 253_402_300_799  # the last second of the year 9999

Seconds = Annotated[StrictInt, Field(ge=-_LATEST, le=_LATEST)]


class Asked(BaseModel):
    """A history and how many items shall follow it."""

    model_config = ConfigDict(extra="forbid")

    history: Annotated[
        list[StrictStr | StrictInt],
        Field(
            max_length=LONGEST_HISTORY,
            description="Items, oldest first: names as text, numbers from 1 as integers",
        ),
    ] = []
    time: Annotated[
        list[Seconds] | None,
        Field(
            max_length=LONGEST_HISTORY,
            description="Seconds since 1970 of the events, never falling",
        ),
    ] = None
    now: Annotated[
        Seconds | None, Field(description="When it is asked; by default at the last event")
    ] = None
    k: Annotated[StrictInt, Field(ge=1, le=LARGEST_K)] = 10
    exclude_seen: StrictBool = True


class RankedItem(BaseModel):
    """An item, its name where the training data had names, and its score, larger being better."""

    item: int
    name: str | None
    score: float


class Ranked(BaseModel):
    """The items, the best first; fewer than k where the catalogue has no more."""

    items: list[RankedItem]


class Health(BaseModel):
    """What is served."""

    status: str = "ok"
    method: str
    items: int
    reads_times: Annotated[bool, Field(description="Whether it ranks worse without times")]


def create_app(model: Recommender) -> FastAPI:
    """Return the service of a trained recommender."""
    # FastAPI's own pages for reading load scripts from elsewhere.
    app = FastAPI(title="graphcl recommend", docs_url=None, redoc_url=None)
    app.add_exception_handler(RequestValidationError, _refuse)
    names = model.item_name or ()
    number = {name: item for item, name in enumerate(names) if item}

    @app.get("/health")
    def health() -> Health:
        return Health(
            method=type(model).__name__,
            items=model.num_items,
            reads_times=model.reads_times and bool(model.timed),
        )

    @app.post("/rank")
    def rank(asked: Asked) -> Ranked:
        history = _numbers(asked.history, number, model.num_items)
        try:
            items, scores = model.rank(
                history, asked.k, time=asked.time, now=asked.now, exclude_seen=asked.exclude_seen
            )
        except DataError:
            rule = (
                "one time per event of the history, never falling and none after now, in seconds "
                "since 1970"
            )
            problem = {"type": "times", "loc": ("body", "time"), "msg": rule}
            raise RequestValidationError([problem]) from None
        return Ranked(
            items=[
                RankedItem(item=item, name=names[item] if names else None, score=score)
                for item, score in zip(items.tolist(), scores.tolist(), strict=True)
                if item
            ]
        )

    return app


def _numbers(history: list[str | int], number: dict[str, int], num_items: int) -> list[int]:
    """Return the items' numbers.

    Raises:
        RequestValidationError: Some are unknown; it tells the place of each.
    """
    found = [number.get(item, 0) if isinstance(item, str) else item for item in history]
    rule = f"unknown item: use a number from 1 to {num_items}"
    rule += " or a name of the training data" if number else "; the model knows no names"
    unknown = [
        {"type": "unknown_item", "loc": ("body", "history", place), "msg": rule}
        for place, item in enumerate(found)
        if not 1 <= item <= num_items
    ]
    if unknown:
        raise RequestValidationError(unknown)
    return found


async def _refuse(request: Request, error: Exception) -> JSONResponse:
    """Say where a request is wrong, without the values that FastAPI would repeat."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
    problems = [{key: one[key] for key in ("loc", "msg", "type")} for one in error.errors()]
    return JSONResponse({"detail": problems}, status_code=422)
