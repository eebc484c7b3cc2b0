"""Payments that wait for a person, and the page of a signed link. May import: core, dashboard. Never: SQL."""

from payagent.dashboard.app import Page

PAGES: list[Page] = []
