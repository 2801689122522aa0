"""The paper's tables and its figures of several settings: each a sweep of one setting, plain and Bayesian.

`catalogue.py` names them and says what the paper found; `make.py` trains, samples and scores whatever is not there yet;
`verdicts.py` and `pictures.py` read the scores. A new sweep is an entry of the catalogue.
"""
