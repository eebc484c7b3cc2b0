"""Receiving, UTxOs, splitting and sending. May import: core, dashboard. Never: SQL."""

from payagent.dashboard.app import Page

PAGES: list[Page] = []
