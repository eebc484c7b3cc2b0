"""The main job over HTTP: a 402 comes in, it is paid on chain, the call is served."""

import asyncio

from typing import Any as Api


async def test_a_402_is_paid_and_its_headers_get_the_call_served(api: Api) -> None:
    body = api.body("hello")
    answer = await api.http.post("/v1/payments", json=body)
    assert answer.status_code == 201, answer.text
    payment = answer.json()
    print(payment)
