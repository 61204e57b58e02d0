"""Rewriting: conjectures over tensors, proven, found in graphs, applied.

conjectures     the lines that whet ships
conjecture      their language                formula     sizes and attributes in it
prove           Conjecture -> Rule            refute      counterexamples
reading, terms, normal, spelling, integers    the normal form and the questions it asks
pattern         Rule -> Match -> Graph
"""
