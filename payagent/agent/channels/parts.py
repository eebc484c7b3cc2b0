"""Builds what pays by channels, for one account. `Agent` has it where channels are on.

Never: decides.
"""

from payagent.agent.channels.calls import ChannelCalls
from payagent.agent.channels.promises import ChannelSigner
from payagent.agent.context import AgentContext
from payagent.agent.payments.intake import Intake
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.core.problems import Refused
from payagent.dialects.x402_batch import ChannelOffer


class ChannelParts:
    """`offers`: the latest trusted offer of each merchant."""

    def __init__(
        self, context: AgentContext, intake: Intake, lifecycle: PaymentLifecycle, signer: ChannelSigner
    ) -> None:
        self.offers: dict[str, ChannelOffer] = {}
        self.calls = ChannelCalls(context, intake, lifecycle, signer, self.offers, self._open)

    async def _open(self, app_id: str, origin: str) -> object:
        raise Refused("channel_missing", f"no channel is open at {origin}")
