"""What a dataset is, how its data are made and looked at."""

from timemaster.tasks.task import IMAGE, SMALL_PLOT, Task, demonstration, find_recipes, load_task, load_tasks, predict

__all__ = ["IMAGE", "SMALL_PLOT", "Task", "demonstration", "find_recipes", "load_task", "load_tasks", "predict"]
