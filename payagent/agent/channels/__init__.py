"""Channels: opens them, pays calls with vouchers, and follows them on the chain. Off unless `channels.enabled`."""
