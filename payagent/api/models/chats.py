"""Chats that are paired with a notification target. May import: pydantic, the rest of api. Never: I/O."""

from typing import Annotated

from pydantic import BaseModel, Field

from payagent.api.models.base import RequestBody, Time

ChatId = Annotated[
    int, Field(ge=-(2**52), le=2**52, description="As Telegram numbers chats; a group is negative.")
]


class Pairing(BaseModel):
    """A code that pairs one chat, once."""

    code: Annotated[str, Field(description="Send it to the bot in the chat that is to be paired.")]
    expires_at: Time


class Chat(BaseModel):
    """A chat that is told news. `user`: the person who paired it, the only one whose presses on buttons decide."""

    chat: int
    user: int
    paired_at: Time


class Chats(BaseModel):
    chats: list[Chat]


class UnpairChat(RequestBody):
    """Unpair a chat."""

    chat: ChatId
