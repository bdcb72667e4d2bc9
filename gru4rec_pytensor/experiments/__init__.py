"""The paper's experiments, a module for each part; `tests/test_style.py` says which may import which.

protocols : the paper's two data sets, its parameters and its numbers
datasets : training and test events from files or from the synthetic log, and the data sets that papers report on
cells : a request, and its cells: models to be trained and evaluated for one number of a table
own : rows of one's own: models from a module, and lists that another program made
results : results on disk, under keys, with locks
spaces, storage, search, found : what is searched, the database of trials, the searches, what they found
engines : processes of this machine, or of a cluster, that run tasks
work : missing cells and searches as tasks
published : numbers that papers report, looked up when tables are made
tables : Tables 1 to 3 and those of later papers as data, and as Markdown
comparisons : intervals of rows, and rows compared
claims : the paper's claims about variants of the network, compared and judged
page, report : pieces of an HTML page, and the page of all results
publish : all results of a folder, written as tables, claims and report
figures : Figures 1 and 2, symbolic graphs and training curves
"""
