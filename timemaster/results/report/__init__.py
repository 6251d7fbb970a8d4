"""A run as one page that opens in a browser: `timemaster report checkpoints/<project>/<experiment>`.

`read.py` collects the data of a run's folder, `images.py` its plots; `page.py` puts them into `page.html`, with style
and scripts. Knows nothing about training or recipes: it reads the files of a run, also of older and unfinished runs.
"""
