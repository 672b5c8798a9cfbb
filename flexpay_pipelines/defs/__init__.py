"""Dagster's view of each engine: thin assets, checks, jobs, schedules and sensors, a module a domain.

What belongs here: names, dependencies, metadata. What does not: SQL, decisions, anything an engine could do.
"""
