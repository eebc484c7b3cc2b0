"""HTTP below the calls: server, listeners, middleware."""
