"""Signs a transaction plan in one step, where the product asks its signer process.

Never: checks what it signs.
"""

from payagent.wallet.keys import Signer
from payagent.wallet.transaction import TxPlan, assemble


def sign(plan: TxPlan, signer: Signer) -> bytes:
    """Sign and return the bytes to submit."""
    return assemble(plan, signer.public_key, signer.sign(plan.body, plan.paid))
