"""The accounts that this daemon holds, seen as one wallet. Start at `fleet`."""
