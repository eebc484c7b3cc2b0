"""Every limit that is in force, and setting them. May import: core, dashboard. Never: SQL."""

from payagent.dashboard.app import Page

PAGES: list[Page] = []
