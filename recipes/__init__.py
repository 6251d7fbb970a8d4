"""Recipes: one file per dataset. Each holds TASK, a `timemaster.tasks.Task`."""
