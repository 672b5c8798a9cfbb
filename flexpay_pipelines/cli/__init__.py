"""The `flexpay` command, a module a command group.

What belongs here: reading arguments, asking, showing. What does not: work: that is a Dagster run or an engine's.
"""
