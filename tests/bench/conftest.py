"""The log is given back after each test."""

from log_kit import log_given_back as log_given_back
