"""The paper's experiments, a module for each part; each imports only those before it, and outside only
`run_experiments`, the command line, imports them.

protocols : the paper's two data sets, its parameters and its numbers
datasets : training and test events from files or from the synthetic log, and the data sets that papers report on
cells : a request, and its cells: models to be trained and evaluated for one number of a table
results : results on disk, under keys, with locks
search : the parameter search of Table 2
engines : processes of this machine, or of a cluster, that run tasks
work : missing cells and searches as tasks
published : numbers that papers report, looked up when tables are made
tables : Tables 1 to 3 and those of later papers as data, and as Markdown
claims : the paper's claims about variants of the network, compared and judged
page, report : pieces of an HTML page, and the page of all results
publish : all results of a folder, written as tables, claims and report
figures : Figures 1 and 2, symbolic graphs and training curves
"""
