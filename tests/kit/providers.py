"""An honest provider and a lying one."""

import httpx

from kit.agent import Relay, Run
from kit.http import NO_TLS
from payagent.store.rows import alerts

FAKE = "fa" * 32


def told(relay: Relay, path: str) -> dict[str, object]:
    return dict(httpx.get(f"{relay.upstream}{path}", verify=NO_TLS, trust_env=False).json())


def tip_of(relay: Relay) -> dict[str, object]:
    return told(relay, "/blocks/latest")


def raised(run: Run) -> set[str]:
    """Subjects of the open alerts."""
    subjects = {alert.subject for alert in alerts.after(run.context.conn, 0)}
    return {subject for subject in subjects if alerts.last_kind(run.context.conn, subject) == "provider_excluded"}


def providers(liar: Relay, honest: Relay, liar_is_first: bool) -> dict[str, str]:
    pair = {"liar": liar.url, "honest": honest.url}
    return pair if liar_is_first else dict(reversed(pair.items()))
