"""Rewriting: conjectures over tensors, proven, found in graphs, applied, certified.

conjectures            the lines that whet ships
conjecture             their language; syntax, formula: what it is made of
prove                  Conjecture -> Rule | Refutation | Unknown; refute: counterexamples
reading, terms, normal, spelling, integers       the normal form and the questions it asks
bounds                 reads of records proven in bounds
pattern, match         Rule -> Match -> Graph
space, certificate     the search, and what lets anyone check its result
"""
