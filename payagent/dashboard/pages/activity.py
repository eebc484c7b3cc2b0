"""Who changed what, by which way. May import: core, dashboard. Never: SQL."""

from payagent.dashboard.app import Page

PAGES: list[Page] = []
