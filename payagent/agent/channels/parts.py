"""The parts of channels, for one agent. `Agent` imports this only where channels are on.

Never: pays; signs.
"""

from payagent.agent.base.ports import Signatures
from payagent.agent.channels.follow import ChannelFollow
from payagent.agent.channels.steps import ChannelSteps
from payagent.agent.context import AgentContext
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.agent.payments.sign import PaymentSigner
from payagent.agent.payments.submit import TxSubmitter
from payagent.dialects.x402_batch import ChannelOffer


class ChannelParts:
    """What the agent does with channels.

    `offers`: the latest offer of each merchant by origin. `steps` are an operator's, `follow` a pass's.
    """

    def __init__(
        self,
        context: AgentContext,
        signing: PaymentSigner,
        lifecycle: PaymentLifecycle,
        submitter: TxSubmitter,
        signer: Signatures,
    ) -> None:
        self.offers: dict[str, ChannelOffer] = {}
        self.steps = ChannelSteps(context, signing, submitter, signer, self.offers)
        self.follow = ChannelFollow(context, lifecycle, self.steps)
