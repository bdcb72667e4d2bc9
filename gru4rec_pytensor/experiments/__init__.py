"""The paper's experiments, a module for each part; every one imports only those before it, and none is imported from
outside but by `run_experiments`, the command line.

protocols : what the paper does with its two data sets, and the numbers it reports
published : what papers report on which data, to be looked up by a run
datasets : training and test events from files or from the synthetic log
cells : what is trained and evaluated for one number of a table
results : what is kept on disk, under keys, with locks
search : the parameter search of Table 2
engines : processes of this machine, or of a cluster, that run tasks
work : cells and searches as tasks
tables : Tables 1 to 3 and those of later papers as data, and as Markdown
claims : what the paper says about variants of the network, compared and judged
page, report : pieces of an HTML page, and the page of all results
publish : all that a folder has, written as tables, claims and report
figures : Figures 1 and 2, symbolic graphs and training curves
"""
