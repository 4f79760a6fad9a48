"""Foundations used by every other package: errors, console, statistics, machine, configuration."""
