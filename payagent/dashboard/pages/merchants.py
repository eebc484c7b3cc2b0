"""Who may be paid: prices, pins, prepaid balances and top-ups. May import: core, dashboard. Never: SQL."""

from payagent.dashboard.app import Page

PAGES: list[Page] = []
