"""Recipes: one file per dataset. Each holds TASK = timemaster.tasks.Task(...)."""
