"""The parts of channels, for one agent. `Agent` imports this only where channels are on.

Never: pays; signs.
"""

from typing import Any

from payagent.agent.base.ports import Signatures
from payagent.agent.channels.calls import ChannelCalls
from payagent.agent.channels.follow import ChannelFollow
from payagent.agent.channels.steps import ChannelSteps
from payagent.agent.context import AgentContext
from payagent.agent.payments.intake import Intake
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.agent.payments.sign import PaymentSigner


class ChannelParts:
    """What the agent does with channels.

    `steps` makes their transactions and has the offers, and `follow` is the part of each pass.
    """

    def __init__(
        self,
        context: AgentContext,
        signing: PaymentSigner,
        lifecycle: PaymentLifecycle,
        signer: Signatures,
        intake: Intake,
    ) -> None:
        self.steps = ChannelSteps(context, signing, lifecycle, signer)
        self.offers = self.steps.offers
        self.calls = ChannelCalls(context, intake, lifecycle, signer, self.offers, self.steps.open)
        self.follow = ChannelFollow(context, lifecycle, self.steps)

    async def order(self, step: str, app_id: str, **asked: Any) -> list[str]:
        """Do what the method of `ChannelSteps` with this name does. Returns the ids of its channels."""
        made = await getattr(self.steps, step)(app_id, **asked)
        return [channel.id for channel in (made if step == "recover" else made[:1])]
