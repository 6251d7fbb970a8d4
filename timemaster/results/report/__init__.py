"""A run as one page that opens in a browser: `timemaster report checkpoints/<project>/<experiment>`.

`read.py` collects a run's folder, `images.py` its plots, `page.py` puts them into `page.html` with its style and its
scripts. Knows nothing about training: it reads what `run.py` and `evaluate.py` wrote, also of older or unfinished runs.
"""
