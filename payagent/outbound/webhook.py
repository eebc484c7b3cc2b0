"""Deliver notifications to the operator's server, signed per Standard Webhooks 1.0 (v1, HMAC-SHA256).

Never: reads an answer's body, shows its URL or key.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping

from payagent.core.notifications import Missed, Notification
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time
from payagent.outbound.service_client import ServiceClient

SECRET_PREFIX = "whsec_"  # noqa: S105  the prefix of every such secret
KEY_BYTES_MIN, KEY_BYTES_MAX = 24, 64


def signing_key(secret: str) -> bytes:
    """Decode the key of a secret. Refused `config_invalid` if the text is not a valid secret."""
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(SECRET_PREFIX) or not KEY_BYTES_MIN <= len(key) <= KEY_BYTES_MAX:
        raise Refused(
            "config_invalid",
            f"the file of notifications.secret_file must hold {SECRET_PREFIX} and {KEY_BYTES_MIN} to "
            f'{KEY_BYTES_MAX} random bytes in base64; make one: echo "{SECRET_PREFIX}$(openssl rand -base64 32)"',
        )
    return key


def signature(key: bytes, notification_id: str, at_s: int, body: bytes) -> str:
    """Return the value of the webhook-signature header."""
    signed = f"{notification_id}.{at_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def payload(notification: Notification, links: Mapping[str, str]) -> bytes:
    """The body, as Standard Webhooks shapes it: the same bytes for each try while the links are the same."""
    about = {
        "id": notification.id,
        "title": notification.title,
        "text": notification.text,
        "payment": notification.payment_id,
        "merchant": notification.merchant,
        "app": notification.app,
    }
    body = {
        "type": notification.type,
        "timestamp": iso_time(notification.at_ms),
        "data": {
            name: value for name, value in {**notification.data, **about, **links}.items() if value is not None
        },
    }
    return json.dumps(body, separators=(",", ":")).encode()


class Webhook(ServiceClient):
    """A webhook that notifications are sent to."""

    def __init__(self, url: str, key: bytes) -> None:
        super().__init__()
        self._url = url
        self._key = key

    async def send(self, notification: Notification, links: Mapping[str, str], now_ms: int) -> Missed | None:
        """Send a notification. Returns None on a 2xx."""
        at_s, body = now_ms // 1000, payload(notification, links)
        headers = {
            "webhook-id": notification.id,
            "webhook-timestamp": str(at_s),
            "webhook-signature": signature(self._key, notification.id, at_s, body),
        }
        return await self.deliver(self._url, body, headers)
