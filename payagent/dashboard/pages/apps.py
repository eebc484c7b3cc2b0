"""The programs that may pay: their budgets, scopes and tokens. May import: core, dashboard. Never: SQL."""

from payagent.dashboard.app import Page

PAGES: list[Page] = []
