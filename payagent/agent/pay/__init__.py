"""Whether an intent gets a payment. Start at `admission.Admission.admit`, which asks in this order:

  offers     which offer of the 402 is chosen? The lookup is for its invoice
  lookup     has the intent a payment? The one answer, for every part of the agent that asks
  admission  acts on the answer: admits, decides, holds

Never: signs; waits for anything.
"""
