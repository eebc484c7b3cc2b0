"""The parts of channels, for one agent. `Agent` imports this only where channels are on.

Never: pays; signs.
"""

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
