"""Balances, checks, exports and the month's report. May import: core, dashboard. Never: SQL."""

from payagent.dashboard.app import Page

PAGES: list[Page] = []
