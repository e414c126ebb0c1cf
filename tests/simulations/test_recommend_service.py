"""The service of a recommender: what it answers, what it refuses, what it keeps to itself."""

import asyncio
import json
import logging
from dataclasses import replace

import httpx
import pytest

from graphcl.datasets import simulate_interactions
from graphcl.recommend import Popularity, RecommenderConfig, SASRec
from simulations.recommend_service import LARGEST_K, LONGEST_HISTORY, create_app


@pytest.fixture(scope="module")
def interactions():
    found = simulate_interactions(60, 40, num_clusters=4).interactions
    return replace(found, item_name=("", *(f"item-{i}" for i in range(1, 41))))


@pytest.fixture(scope="module")
def model(interactions):
    return SASRec(RecommenderConfig(hidden_channels=8, length=6)).start(interactions)


def ask(model, method, path, **content):
    """Return what the service answers, asked without a socket."""

    async def call():
        transport = httpx.ASGITransport(create_app(model))
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return await client.request(method, path, **content)

    return asyncio.run(call())


def rank(model, **body):
    return ask(model, "POST", "/rank", json=body)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_items_and_scores_are_the_models_whether_named_or_numbered(model, exclude_seen):
    items, scores = model.rank([3, 17, 9], 40, exclude_seen=exclude_seen)
    pairs = zip(items.tolist(), scores.tolist(), strict=True)
    kept = [(item, score) for item, score in pairs if item]
    for history in ([3, 17, 9], ["item-3", "item-17", "item-9"], [3, "item-17", 9]):
        answer = rank(model, history=history, k=40, exclude_seen=exclude_seen)
        assert answer.status_code == 200
        found = answer.json()["items"]
        assert [one["item"] for one in found] == [item for item, _ in kept]
        assert [one["name"] for one in found] == [f"item-{item}" for item, _ in kept]
        assert [one["score"] for one in found] == pytest.approx([score for _, score in kept])
    assert len(kept) == (37 if exclude_seen else 40)


def test_without_a_history_most_popular_items_come_ten_by_default(model):
    popular = model.count.argsort(descending=True, stable=True)[:10].tolist()
    for body in ({}, {"history": []}):
        assert [one["item"] for one in rank(model, **body).json()["items"]] == popular


def test_a_name_that_is_a_number_is_no_number(interactions):
    named = replace(interactions, item_name=("", *(str(100 + i) for i in range(40))))
    model = Popularity().fit(named)
    by_name = rank(model, history=["101"], k=40).json()["items"]
    assert by_name == rank(model, history=[2], k=40).json()["items"]
    assert rank(model, history=[101]).status_code == 422


def test_a_model_without_names_takes_numbers_and_says_so(interactions):
    model = Popularity().fit(replace(interactions, item_name=None))
    answer = rank(model, history=[3], k=2).json()["items"]
    assert [one["name"] for one in answer] == [None, None]
    refused = rank(model, history=["item-3"])
    assert refused.status_code == 422
    assert "the model knows no names" in refused.text


def test_unknown_items_are_refused_by_their_places_and_not_repeated(model, caplog):
    caplog.set_level(logging.DEBUG)
    answer = rank(model, history=[1, "secret-item", 2, 9_999_999, 0, -1])
    assert answer.status_code == 422
    places = [one["loc"] for one in answer.json()["detail"]]
    assert places == [["body", "history", place] for place in (1, 3, 4, 5)]
    assert "from 1 to 40" in answer.text
    for text in (answer.text, caplog.text):
        assert "secret-item" not in text
        assert "9999999" not in text


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ('{"k": 0}', ["body", "k"]),
        (f'{{"k": {LARGEST_K + 1}}}', ["body", "k"]),
        ('{"k": "3"}', ["body", "k"]),
        ('{"k": true}', ["body", "k"]),
        ('{"k": NaN}', ["body", "k"]),
        ('{"exclude_seen": 1}', ["body", "exclude_seen"]),
        ('{"history": 3}', ["body", "history"]),
        ('{"history": [1, 1.5]}', ["body", "history", 1]),
        ('{"history": [true]}', ["body", "history", 0]),
        (json.dumps({"history": [1] * (LONGEST_HISTORY + 1)}), ["body", "history"]),
        ('{"histroy": [1]}', ["body", "histroy"]),
        ('{"history": [1, 2], "time": [60]}', ["body", "time"]),
        ('{"history": [], "time": [60]}', ["body", "time"]),
        ('{"history": [1, 2], "time": [60, 30]}', ["body", "time"]),
        ('{"history": [1], "time": [99999999999999999999]}', ["body", "time", 0]),
        ('{"history": [1], "time": [1], "now": 1.5}', ["body", "now"]),
        ('{"history": [1, 2], "time": [60, 90], "now": 89}', ["body", "time"]),
        ("[1, 2]", ["body"]),
        ('{"k": ', ["body"]),
    ],
)
def test_a_request_that_breaks_a_rule_is_told_where(model, body, place):
    answer = ask(model, "POST", "/rank", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    problems = answer.json()["detail"]
    assert all(one["loc"][: len(place)] == place for one in problems)
    assert all(one.keys() == {"loc", "msg", "type"} for one in problems)


def test_the_largest_list_and_the_longest_history_are_taken(model):
    answer = rank(model, history=[1] * LONGEST_HISTORY, k=LARGEST_K)
    assert len(answer.json()["items"]) == 39


def test_times_go_with_a_history(model):
    assert rank(model, history=[], time=[], now=90).json() == rank(model, history=[]).json()
    timed = rank(model, history=[3, 4], time=[60, 60], now=90, k=3).json()["items"]
    assert timed == rank(model, history=[3, 4], k=3).json()["items"]  # SASRec reads no times


def test_health_says_what_is_served(model):
    answer = ask(model, "GET", "/health").json()
    assert answer == {"status": "ok", "method": "SASRec", "items": 40, "reads_times": False}


def test_no_page_loads_anything_from_elsewhere(model):
    assert ask(model, "GET", "/docs").status_code == 404
    assert ask(model, "GET", "/redoc").status_code == 404
    described = ask(model, "GET", "/openapi.json").json()
    assert set(described["paths"]) == {"/rank", "/health"}
