"""The jobs that the agent runs inside one write transaction. Start at `admission.Admission.admit`."""
