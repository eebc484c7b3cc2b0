"""The HTTP layer below the routes: server, listeners, middleware, rate limit, problem responses."""
